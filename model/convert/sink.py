"""What every writer needs: which dtype, whether the other program computes the same, and a tensor as bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import BinaryIO, Iterator, NamedTuple

import torch
from torch import Tensor

from model.config import GPT2Config, parameter_count
from model.convert.source import Source

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPE_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "q8_0": 34 / 32}
_AT_ONCE = 1 << 24  # bytes of a tensor that are converted together

# The difference of GELU and its approximation by tanh is 4.7e-4 at most.
_GELUS = ("gelu", "gelu_new")
# What every format keeps, or what does not change the output of a model that is evaluated.
_ANYWHERE = {"vocab_size", "real_vocab_size", "n_positions", "n_embd", "n_layer", "n_head"} | {
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range", "bos_token_id", "eos_token_id"),
    *("n_inner", "activation_function", "reorder_and_upcast_attn", "initialization"),
}


class Target(NamedTuple):
    """Where to write and how."""

    path: Path
    dtype: str  # of DTYPE_BYTES
    rows_multiple: int  # to which a format that pads its vocabulary pads it


def choose_dtype(source: Source, wanted: str | None, allowed: tuple[str, ...], kind: str) -> str:
    """`wanted`, or the source's own, or the narrowest that holds it exactly.

    Raises ValueError for what `kind` does not have.
    """
    if wanted is not None:
        if wanted not in allowed:
            raise ValueError(f"--dtype {wanted}: {kind} has {', '.join(allowed)}")
        return wanted
    name = str(source.dtype).split(".")[-1]
    if name in allowed:
        return name
    if name in ("float16", "bfloat16") and "float32" in allowed:
        return "float32"
    raise ValueError(f"{source.path}: is in {name}, which {kind} has not; choose --dtype {' or '.join(allowed)}")


def check_computes(
    config: GPT2Config, kind: str, activation: str, epsilon: bool = False, inner: bool = False, head: bool = False
) -> str:
    """What to tell of a model that `kind` computes a little differently, empty if nothing.

    `epsilon`, `inner` and `head`: whether the format has another layer_norm_epsilon than 1e-5, another n_inner than 4
    n_embd, and a head of its own. Raises ValueError for a model that it would compute otherwise.
    """
    known = _ANYWHERE | ({"layer_norm_epsilon"} if epsilon else set()) | ({"tie_word_embeddings"} if head else set())
    others = [
        f"{field.name} {getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in known and getattr(config, field.name) != field.default
    ]
    if not inner and config.inner_size != 4 * config.n_embd:
        others.append(f"n_inner {config.inner_size}")
    used = config.activation_function
    if used != activation and not {used, activation} <= set(_GELUS):
        others.append(f"activation_function {used!r}")
    if others:
        raise ValueError(
            f"{kind} has no {' and no '.join(others)}: it would compute something else; huggingface keeps them"
        )
    if used == activation:
        return ""
    exact, approximated = "exactly", "by its approximation with tanh"
    theirs, ours = (exact, approximated) if activation == "gelu" else (approximated, exact)
    return f"{kind} computes GELU {theirs}, the model {ours}: an activation differs by up to 0.0005"


def row_slices(tensor: Tensor) -> Iterator[slice]:
    """Rows that are converted together, the first ones first."""
    row_bytes = max(1, tensor[:1].numel() * max(tensor.element_size(), 4))
    step = max(1, _AT_ONCE // row_bytes)
    for start in range(0, len(tensor), step):
        yield slice(start, start + step)


def check_fits(converted: Tensor, tensor: Tensor, name: str) -> None:
    """Raises ValueError naming the tensor if a finite value is none in its new dtype."""
    if converted.dtype == torch.float16 and not torch.isfinite(converted).all() and torch.isfinite(tensor).all():
        raise ValueError(f"{name}: has values beyond 65504, the largest of float16; choose --dtype float32")


def pieces(tensor: Tensor, dtype: torch.dtype, name: str) -> Iterator[Tensor]:
    """The tensor in another dtype, some rows at a time. Raises ValueError for values that do not fit."""
    for rows in row_slices(tensor):
        piece = tensor[rows].to(dtype).contiguous()
        check_fits(piece, tensor[rows], name)
        yield piece


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    # Flat: of a matrix with an extent of 1 the last stride may be any number.
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def write_tensor(file: BinaryIO, tensor: Tensor, dtype: torch.dtype, name: str) -> None:
    """Raw, row after row, little-endian as all machines are that torch runs on."""
    for piece in pieces(tensor, dtype, name):
        file.write(as_bytes(piece))


def kept_bytes(config: GPT2Config, dtype: str, rows: int | None = None) -> int:
    """About how much the weights take, `rows` of the vocabulary among them (default: those that are tokens)."""
    config = dataclasses.replace(config, vocab_size=rows or config.real_vocab_size)
    return int(parameter_count(config) * DTYPE_BYTES[dtype])
