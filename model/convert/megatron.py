"""Megatron-LM's folders of the format `torch`: iter_N/mp_rank_TT[_PPP]/model_optim_rng.pt, a file for each rank.

TT counts the pieces that tensor parallelism cuts matrices into, PPP the pipeline's stages. `torch_dist`, the other
format, is read by torch_dist.py. Written is one piece, with the names of --transformer-impl local.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, Iterator, Mapping

import torch
from torch import Tensor

from model.checkpoint import write_atomically
from model.config import GPT2Config
from model.convert.megatron_model import (
    DESCRIBED,
    KIND,
    PASSED_OVER,
    config_of,
    cut_dimension,
    fused,
    joined,
    our_name,
    queries_keys_values,
    their_name,
)
from model.convert.nanogpt import CONV1D, without_biases
from model.convert.scratch import mapped_copies
from model.convert.sink import DTYPES, Target, check_computes, kept_bytes
from model.convert.source import Source, Weight, Wishes, make_source, weight_of
from model.torch_archive import StandIn
from model.weights import HEAD, WTE, load_torch_file

ALLOWED = ("float32", "float16", "bfloat16")
LATEST_FILE = "latest_checkpointed_iteration.txt"
FILES = ("model_optim_rng.pt", "model_rng.pt")
_RANK = re.compile(r"mp_rank_(\d+)(?:_(\d+))?")


def latest(path: Path) -> Path:
    """The folder of the iteration that LATEST_FILE names. Raises ValueError naming that file."""
    file = path / LATEST_FILE
    word = file.read_text(encoding="utf-8", errors="replace").strip()
    folder = path / (word if word == "release" else f"iter_{int(word):07d}" if word.isdecimal() else word or "-")
    if not re.fullmatch(r"release|\d{1,9}", word) or not folder.is_dir():
        raise ValueError(f"{file}: names {word!r}, and there is no folder {folder.name}; give the iteration's folder")
    return folder


def pieces_in(path: Path) -> dict[tuple[int, int], Path]:
    """(tensor-parallel rank, pipeline stage) -> file."""
    found = {}
    for folder in path.glob("mp_rank_*"):
        match = _RANK.fullmatch(folder.name)
        files = [folder / name for name in FILES if (folder / name).is_file()]
        if match and files:
            found[int(match.group(1)), int(match.group(2) or 0)] = files[0]
    return found


def is_piece(path: Path) -> bool:
    """Whether a file lies where a piece would."""
    return path.name in FILES and _RANK.fullmatch(path.resolve().parent.name) is not None


def read(path: Path, wishes: Wishes) -> Source:
    """A folder of an iteration. Raises ValueError naming the file and the tensor at fault."""
    files = pieces_in(path)
    ranks, stages = (1 + max(key[i] for key in files) for i in (0, 1))
    contents: dict[tuple[int, int], Mapping[str, Any]] = {}
    for key, file in sorted(files.items()):
        contents[key] = _checked(load_torch_file(file, PASSED_OVER, within=("model",)), file)
    first = min(files)
    args, file = arguments(contents[first]), files[first]
    ranks = max(ranks, args.get("tensor_model_parallel_size") or 1)
    stages = max(stages, args.get("pipeline_model_parallel_size") or 1)
    for rank in range(ranks):
        for stage in range(stages):
            if (rank, stage) not in files:
                name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
                raise ValueError(f"{path}: the piece {name} is missing; of {ranks} x {stages} all are needed")
    tensors = _stages(contents, files, ranks, stages)
    version = contents[first].get("checkpoint_version", 0)
    if any(name.startswith("decoder.") for name in flattened(contents[first]["model"])):
        version = 3  # megatron.core has no other
    return source_of(file, args, tensors, version, wishes)


def _checked(content: Any, file: Path) -> Mapping[str, Any]:
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        later = isinstance(content, dict) and "model0" in content
        why = "is of an interleaved pipeline, which is not read" if later else "has no model in it"
        raise ValueError(f"{file}: {why}; write it again with --ckpt-format torch and no virtual stages")
    return content


def arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the program was started with; empty if the file has none."""
    args = content.get("args")  # a Namespace where another library has told torch that it is safe
    return dict(vars(args)) if isinstance(args, (StandIn, argparse.Namespace)) else {}


def flattened(model: Mapping[str, Any], before: str = "") -> dict[str, Tensor]:
    """Tensors of dicts in dicts under names with dots."""
    found: dict[str, Tensor] = {}
    for name, value in model.items():
        if isinstance(value, Mapping):
            found.update(flattened(value, f"{before}{name}."))
        elif isinstance(value, Tensor) and not str(name).endswith("_extra_state"):
            found[f"{before}{name}"] = value
    return found


def _stages(
    contents: Mapping[tuple[int, int], Mapping[str, Any]],
    files: Mapping[tuple[int, int], Path],
    ranks: int,
    stages: int,
) -> dict[str, list[Weight]]:
    """Hugging Face's name -> the pieces of it, a rank each."""
    found: dict[str, list[Weight]] = {}
    first_layer = 0
    for stage in range(stages):
        here: dict[str, list[Weight]] = {}
        for rank in range(ranks):
            for name, tensor in _named(contents[rank, stage]["model"], first_layer):
                here.setdefault(name, []).append(weight_of(tensor))
        for name, pieces in here.items():
            if len(pieces) != ranks or len({piece.shape for piece in pieces}) != 1:
                shapes = ", ".join(str(piece.shape) for piece in pieces)
                raise ValueError(
                    f"{files[0, stage].parent.parent}: {name} has other shapes from rank to rank: {shapes}"
                )
            if name in found:
                if name != WTE:
                    raise ValueError(f"{files[0, stage]}: {name} is in two stages")
                name = HEAD  # the last stage's copy
            found[name] = pieces
        numbers = [int(name.split(".")[2]) for name in here if name.startswith("transformer.h.")]
        first_layer = max(numbers, default=first_layer - 1) + 1
    return found


def _named(model: Mapping[str, Any], first_layer: int) -> Iterator[tuple[str, Tensor]]:
    for theirs, tensor in flattened(model).items():
        ours = our_name(theirs, first_layer)
        if ours is not None:
            yield ours, tensor


def source_of(
    path: Path, args: Mapping[str, Any], tensors: Mapping[str, list[Weight]], version: float, wishes: Wishes
) -> Source:
    """The model of these pieces, (out, in) each. Raises ValueError naming `path`."""
    tensors = dict(tensors)
    if WTE not in tensors:
        raise ValueError(f"{path}: has no embedding.word_embeddings.weight; is it a GPT of Megatron-LM's?")
    rows = sum(piece.shape[0] for piece in tensors[WTE])
    config = config_of(path, args, rows, wishes)
    if config.n_head % len(tensors[WTE]):
        raise ValueError(
            f"{path}: {config.n_head} heads are not shared by {len(tensors[WTE])} ranks; its args are wrong"
        )
    for copy, piece in zip(tensors.pop(HEAD, []) if config.tie_word_embeddings else [], tensors[WTE]):
        if copy.shape != piece.shape or not copy.read().equal(piece.read()):
            raise ValueError(
                f"{path}: the output layer differs from the embedding, and {wishes.config or DESCRIBED} does not say "
                "that it may; name a config.json with tie_word_embeddings false with --config"
            )
    weights: dict[str, Weight] = {}
    for name, pieces in tensors.items():
        cut = cut_dimension(name)
        if ".attn.c_attn." in name and sum(p.shape[0] for p in pieces) == 3 * config.n_embd:  # or it is told as wrong
            weight = queries_keys_values(pieces, config.n_head, version)
        elif cut is not None:
            weight = joined(pieces, cut)
        else:
            weight = pieces[0]
            if not all(piece.read().equal(weight.read()) for piece in pieces[1:]):
                raise ValueError(f"{path}: {name} differs from rank to rank; the pieces are not of one checkpoint")
        weights[name] = weight.transposed() if CONV1D.search(name) else weight
    if args.get("add_bias_linear") is False:
        weights.update(without_biases(weights))
    return make_source(path, KIND, config, weights, str(wishes.config or DESCRIBED), None, wishes)


def check(source: Source, target: Target) -> str:
    """What to tell; raises ValueError for a model that Megatron-LM does not have."""
    used = source.config.activation_function
    return check_computes(source.config, KIND, used if used != "relu" else "gelu", epsilon=True, inner=True, head=True)


def _rows(config: GPT2Config, target: Target) -> int:
    return -(-config.vocab_size // target.rows_multiple) * target.rows_multiple


def size(source: Source, target: Target) -> int:
    """Bytes of the file and, for as long as it is written, of the tensors beside it."""
    return 2 * kept_bytes(source.config, target.dtype, _rows(source.config, target))


def write(source: Source, target: Target) -> None:
    """A `release`. The vocabulary is padded with copies of its last row, as Megatron-LM's own converters do."""
    config, rows = source.config, _rows(source.config, target)
    with write_atomically(target.path) as folder:
        piece = folder / "release" / "mp_rank_00"
        piece.mkdir(parents=True)
        weights = {their_name(name): _theirs(name, w, config, rows) for name, w in source.weights.items()}
        model = mapped_copies(weights, DTYPES[target.dtype], piece)
        args = argparse.Namespace(**_arguments(config, rows, target))
        content = {"args": args, "checkpoint_version": 3.0, "iteration": 0, "model": model}
        torch.save(content, piece / FILES[0])
        (folder / LATEST_FILE).write_text("release\n", encoding="utf-8")


def _theirs(name: str, weight: Weight, config: GPT2Config, rows: int) -> Weight:
    """A tensor as megatron.core has it."""
    if CONV1D.search(name):
        weight = weight.transposed()
    if ".attn.c_attn." in name:
        weight = weight.changed(weight.shape, lambda tensor: fused(tensor, config.n_head))
    if name in (WTE, HEAD):
        padding = rows - config.vocab_size
        weight = weight.changed((rows, config.n_embd), lambda t: torch.cat((t, t[-1:].expand(padding, -1))))
    return weight


def _arguments(config: GPT2Config, rows: int, target: Target) -> dict[str, Any]:
    return {
        "num_layers": config.n_layer,
        "hidden_size": config.n_embd,
        "ffn_hidden_size": config.inner_size,
        "num_attention_heads": config.n_head,
        "kv_channels": config.head_size,
        "max_position_embeddings": config.n_positions,
        "seq_length": config.n_positions,
        "padded_vocab_size": rows,
        "vocab_size": config.vocab_size,
        "make_vocab_size_divisible_by": target.rows_multiple,
        "norm_epsilon": config.layer_norm_epsilon,
        "layernorm_epsilon": config.layer_norm_epsilon,
        "hidden_dropout": config.resid_pdrop,
        "attention_dropout": config.attn_pdrop,
        "bias_gelu_fusion": config.activation_function == "gelu_new",
        "openai_gelu": False,
        "swiglu": False,
        "add_bias_linear": True,
        "add_position_embedding": True,
        "position_embedding_type": "learned_absolute",
        "normalization": "LayerNorm",
        "apply_layernorm_1p": False,
        "untie_embeddings_and_output_weights": not config.tie_word_embeddings,
        "group_query_attention": False,
        "transformer_impl": "local",
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
    }
