"""llm.c's gpt2_124M.bin and model_*.bin: a header of 256 int32, then each kind of tensor for all layers.

Header: 20240326, version (3: float32, 5: bfloat16), positions, tokens, layers, heads, channels, rows of the vocabulary.
Matrices are (out, in). https://github.com/karpathy/llm.c, train_gpt2.py (write_model), train_gpt2.cu
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import NamedTuple

import torch

from corpora.atomic import atomic_file, folder_made
from model.config import GPT2Config
from model.convert.nanogpt import CONV1D
from model.convert.raw_file import RawFile
from model.convert.sink import DTYPES, Target, as_bytes, check_computes, kept_bytes, write_tensor
from model.convert.source import Source, Weight, Wishes, make_config, make_source
from model.weights import PREFIX, WPE, WTE

KIND = "llm.c"
ALLOWED = ("float32", "bfloat16")
MAGIC = 20240326
STATE_MAGIC = 20240527  # of state_*.bin, the optimizer's
HEADER = 256 * 4
VERSIONS = {3: torch.float32, 5: torch.bfloat16}
DESCRIBED = "its header"
_IN_BLOCK = [
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias"),
    *("ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
]


class Place(NamedTuple):
    """A tensor of the file, in its order: Hugging Face's name, and the shape in the file."""

    name: str
    shape: tuple[int, ...]


def places(config: GPT2Config) -> list[Place]:
    """Every tensor of the file, in its order; wte has config.vocab_size rows."""
    C, inner = config.n_embd, config.inner_size
    shapes = {
        "attn.c_attn.weight": (3 * C, C),
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),
        "mlp.c_fc.weight": (inner, C),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (C, inner),
    }
    found = [Place(WTE, (config.vocab_size, C)), Place(WPE, (config.n_positions, C))]
    for part in _IN_BLOCK:
        for layer in range(config.n_layer):
            found.append(Place(f"{PREFIX}h.{layer}.{part}", shapes.get(part, (C,))))
    return [*found, Place(f"{PREFIX}ln_f.weight", (C,)), Place(f"{PREFIX}ln_f.bias", (C,))]


def read(path: Path, wishes: Wishes) -> Source:
    """A file that begins with MAGIC. Raises ValueError naming it, and the tensor at which it ends too early."""
    file = RawFile(path)
    numbers = struct.unpack("<8i", bytes(file.bytes("header", 0, HEADER)[:32].tolist()))
    version, positions, tokens, layers, heads, channels, rows = numbers[1:]
    if version not in VERSIONS:
        raise ValueError(
            f"{path}: is of llm.c's version {version}; 3 (float32) and 5 (bfloat16) are known: write it again with a "
            "newer llm.c"
        )
    dtype = VERSIONS[version]
    config = make_config(
        path,
        DESCRIBED,
        vocab_size=rows,
        n_positions=positions,
        n_embd=channels,
        n_layer=layers,
        n_head=heads,
        real_vocab_size=tokens,
        activation_function=wishes.activation or "gelu_new",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),  # llm.c has no dropout
    )
    width = torch.empty(0, dtype=dtype).element_size()
    if layers > file.size:  # a header of nonsense: not so many tensors are listed
        raise ValueError(f"{path}: its header has {layers:,} layers, the file only {file.size:,} bytes; it is damaged")
    weights: dict[str, Weight] = {}
    at = HEADER
    for name, shape in places(config):
        weight = file.weight(name, at, shape, dtype)
        weights[name] = weight.transposed() if CONV1D.search(name) else weight
        at += width * math.prod(shape)
    if at != file.size:
        raise ValueError(f"{path}: has {file.size - at:,} bytes after its last tensor, ln_f.bias; its header is wrong")
    return make_source(path, KIND, config, weights, DESCRIBED, None, wishes)


def check(source: Source, target: Target) -> str:
    """What to tell; raises ValueError for a model that llm.c does not have."""
    return check_computes(source.config, KIND, "gelu_new")


def _rows(config: GPT2Config, target: Target) -> int:
    return -(-config.vocab_size // target.rows_multiple) * target.rows_multiple


def size(source: Source, target: Target) -> int:
    """Bytes of the file."""
    return kept_bytes(source.config, target.dtype, _rows(source.config, target)) + HEADER


def write(source: Source, target: Target) -> None:
    """The file; rows of padding are zeros, as llm.c writes them and never reads them."""
    config, dtype = source.config, DTYPES[target.dtype]
    rows = _rows(config, target)
    version = next(number for number, known in VERSIONS.items() if known == dtype)
    numbers = (
        MAGIC,
        version,
        config.n_positions,
        config.vocab_size,
        config.n_layer,
        config.n_head,
        config.n_embd,
        rows,
    )
    with folder_made(target.path.parent), atomic_file(target.path) as file:
        file.write(struct.pack("<8i", *numbers).ljust(HEADER, b"\0"))
        for name, _ in places(config):
            weight = source.weights[name]
            tensor = weight.transposed().read() if CONV1D.search(name) else weight.read()
            write_tensor(file, tensor, dtype, name)
            if name == WTE:
                file.write(as_bytes(torch.zeros(rows - config.vocab_size, config.n_embd, dtype=dtype).flatten()))
