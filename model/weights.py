"""The tensors in the weight files of a checkpoint, under the model's own names, and whether they are all of it."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from model.config import GPT2Config, read_json_object
from model.gpt2 import GPT2LMHeadModel

WEIGHTS_FILE = "model.safetensors"
# In order of preference. An index is a JSON file whose weight_map names the shard of each tensor.
WEIGHTS_FILES = (WEIGHTS_FILE, WEIGHTS_FILE + ".index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

PREFIX = "transformer."
WTE, WPE, HEAD = PREFIX + "wte.weight", PREFIX + "wpe.weight", "lm_head.weight"
# What programs that wrap a model put before its names: DistributedDataParallel, or a module of one's own. torch.compile
# adds _orig_mod, wherever a part was compiled.
WRAPPERS = re.compile(r"^(?:(?:module|model)\.)+")
PARTS = ("wte", "wpe", "h", "ln_f", "lm_head")  # first names within the language model
# Heads of other tasks that transformers and trl put beside the language model.
OTHER_HEADS = ("score", "classifier", "multiple_choice_head", "qa_outputs", "v_head")
# The causal mask and its value, which older transformers stored with the weights.
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def read_weights(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file that names the weights, and the tensors under the keys they have there.

    Raises ValueError naming the file that is missing, damaged, or no mapping from names to tensors.
    """
    path = next((directory / file for file in WEIGHTS_FILES if (directory / file).is_file()), None)
    if path is None:
        raise ValueError(f"{directory}: holds no weights; looked for {', '.join(WEIGHTS_FILES)}")
    if path.suffix != ".json":
        return path, _read_tensors(path)
    shards = read_json_object(path).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{path}: has no weight_map from tensor names to files; download the checkpoint again")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        if os.path.basename(shard) != shard:
            raise ValueError(f"{path}: names a shard outside its directory, {shard!r}")
        tensors.update(_read_tensors(directory / shard))
    absent = sorted(set(shards) - set(tensors))
    if absent:
        raise ValueError(
            f"{path}: the shards lack tensors of the index: {_some(absent)}; download the checkpoint again"
        )
    return path, tensors


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(path)  # mapped, not read, until a tensor is used
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: is damaged, or holds objects other than tensors, which are not loaded because they may run code; "
            f"download it again or convert it to {WEIGHTS_FILE}"
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); is the file complete?") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path}: is not a mapping from names to tensors; save model.state_dict()")
    return tensors


def with_our_names(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors under the names of GPT2LMHeadModel.named_parameters(), and those that the model does not know.

    Left out are buffers of older files and, with a warning, what stands beside the language model and changes nothing
    that it computes, such as the head of a classifier. Raises ValueError for a tensor that is there twice, and for a
    head that is not tied.
    """
    ours: dict[str, Tensor] = {}
    surplus: list[str] = []
    bare: dict[str, str] = {}  # name without wrappers -> key
    for key in tensors:
        name = WRAPPERS.sub("", key.replace("_orig_mod.", ""))
        if name in bare:
            raise ValueError(f"{path}: holds {name} twice, as {bare[name]} and as {key}; leave one of them out")
        bare[name] = key
    prefixed = any(name.startswith(PREFIX) for name in bare)
    for name, key in bare.items():
        inner = name[len(PREFIX) :] if name.startswith(PREFIX) else name
        first = inner.split(".")[0]
        if MASK_BUFFER.fullmatch(inner):
            continue
        beside = first not in PARTS and (first in OTHER_HEADS or (prefixed and inner == name))
        if beside or (inner == "lm_head.bias" and not tensors[key].any()):
            surplus.append(key)
        else:
            ours[inner if first == "lm_head" else PREFIX + inner] = tensors[key]
    if surplus:
        warnings.warn(
            f"{path}: passed over {_some(sorted(surplus))}: not of the language model, changes nothing it computes",
            stacklevel=3,
        )
    head = ours.pop(HEAD, None)
    if head is not None and not torch.equal(ours.setdefault(WTE, head), head):
        raise ValueError(f"{path}: {HEAD} differs from {WTE}; a head that is not tied is not implemented")
    return ours


def check_weights(tensors: Mapping[str, Tensor], config: GPT2Config, path: Path) -> None:
    """Raises ValueError unless `tensors` are the parameters of a model of `config`."""
    with torch.device("meta"):
        expected = dict(GPT2LMHeadModel(config, initialize=False).named_parameters())
    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(parameter.shape)}"
        for key, parameter in expected.items()
        if key in tensors and tensors[key].shape != parameter.shape
    ]
    faults = {
        "missing": [key for key in expected if key not in tensors],
        "unexpected": [key for key in tensors if key not in expected],
        "of another shape than config.json says": shapes,
        "not floating point": [key for key, tensor in tensors.items() if not tensor.is_floating_point()],
    }
    if any(faults.values()):
        lines = [f"\n  {fault}: {_some(keys)}" for fault, keys in faults.items() if keys]
        raise ValueError(f"{path}: is not the GPT-2 that config.json beside it describes" + "".join(lines))


def _some(keys: list[str], limit: int = 8) -> str:
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + rest
