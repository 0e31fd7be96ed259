"""The tensors in the weight files of a checkpoint, under the model's own names, and whether they are all of it."""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, ContextManager, Mapping, Sequence

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from model import safetensors_file
from model.config import VARIANT_TYPE, GPT2Config, read_json_object
from model.gpt2 import GPT2LMHeadModel
from model.torch_archive import StandIn, check_parts, is_archive, refuse_cut

WEIGHTS_FILE = "model.safetensors"
# In order of preference. An index is a JSON file whose weight_map names the shard of each tensor.
WEIGHTS_FILES = (WEIGHTS_FILE, WEIGHTS_FILE + ".index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

PREFIX = "transformer."
WTE, WPE, HEAD = PREFIX + "wte.weight", PREFIX + "wpe.weight", "lm_head.weight"
# What programs that wrap a model put before its names: DistributedDataParallel, or a module of one's own. torch.compile
# adds _orig_mod, wherever a part was compiled.
WRAPPERS = re.compile(r"^(?:(?:module|model)\.)+")
# First names within the language model.
PARTS = ("wte", "ln_e", "wpe", "project_in", "h", "ln_f", "project_out", "lm_head")
# Heads of other tasks that transformers and trl put beside the language model.
OTHER_HEADS = ("score", "classifier", "multiple_choice_head", "qa_outputs", "v_head")
_IN_LAYER = re.compile(r"transformer\.h\.(\d{1,9})\.")
# Tensors that some variants have and others have not, and the setting that decides it.
DECIDED_BY = (
    (re.compile(r"transformer\.wpe\."), "position_embedding"),
    (re.compile(r"transformer\.ln_e\."), "embedding_norm"),
    (re.compile(r"transformer\.project_(in|out)\."), "embedding_size"),
    (re.compile(r"transformer\.h\.\d+\.ln_2\."), "parallel_residual"),
    (re.compile(r"transformer\.h\.\d+\.attn\.\w+\.bias"), "attention_bias"),
    (re.compile(r"transformer\.ln_f\."), "final_norm"),
    (re.compile(r"lm_head\.weight"), "tie_word_embeddings"),
)
# The causal mask and its value, which older transformers stored with the weights.
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def file_metadata(config: GPT2Config) -> dict[str, str]:
    """The metadata of a weight file: transformers 4.26 refuses one without a format, or of another than its own."""
    return {"format": VARIANT_TYPE if config.variant else "pt"}


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
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(path))  # mapped, not read, until a tensor is used
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            safetensors_file.refuse_cut(path)
            raise ValueError(f"{path}: cannot be read ({first_line(error)}); is the file complete?") from error
    return tensor_mapping(load_torch_file(path), path)


def tensor_mapping(content: Any, path: Path) -> dict[str, Tensor]:
    """`content` if it is a mapping from names to tensors. Raises ValueError naming the file otherwise."""
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{path}: is not a mapping from names to tensors; save model.state_dict()")
    return content


def load_torch_file(
    path: Path, passed_over: str | None = None, within: Sequence[str] = (), compared: bool = True
) -> Any:
    """What torch.save has written, without running code; tensors are mapped where torch can do so (from 2.1 on).

    Args:
        passed_over: classes and functions whose full names match become a StandIn; that takes torch 2.6.
        within: keys of what is loaded; the bytes of other tensors are not compared with their CRCs.
        compared: False where another process of this machine compares the bytes of the same file.

    Raises ValueError naming the file, and the tensor at fault: it cannot be read, is damaged, or holds other objects
    than these, tensors, numbers, texts, lists and mappings; or torch is too old to pass over them.
    """
    # The format from before torch 1.6, which is no archive, cannot be mapped.
    archive = is_archive(path)
    if not archive:
        refuse_cut(path)
    elif compared:
        check_parts(path, path, within)
    try:
        mapped = {"mmap": True} if archive and "mmap" in inspect.signature(torch.load).parameters else {}
        with _stand_ins(path, passed_over if archive else None):
            return torch.load(str(path), map_location="cpu", weights_only=True, **mapped)
    except pickle.UnpicklingError as error:
        if passed_over and archive and not _finds_foreign():
            raise ValueError(
                f"{path}: is damaged, or holds objects of another program, and to pass over them takes torch 2.6; "
                f"install it in place of {torch.__version__}"
            ) from error
        raise ValueError(
            f"{path}: is damaged, or holds objects other than tensors, which are not loaded because they may run code; "
            f"copy or download it again, or convert weights to {WEIGHTS_FILE}"
        ) from error
    except Exception as error:  # whatever a damaged file makes of the unpickler
        raise ValueError(f"{path}: cannot be read ({first_line(error)}); is the file complete?") from error


def _finds_foreign() -> bool:
    """Whether this torch can say which objects of other programs a file holds: from 2.6 on."""
    return hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")


def _stand_ins(path: Path, passed_over: str | None) -> ContextManager[Any]:
    if passed_over is None or not _finds_foreign():
        return contextlib.nullcontext()
    names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    return torch.serialization.safe_globals([(StandIn, name) for name in names if re.fullmatch(passed_over, name)])


def first_line(error: Exception) -> str:
    """Of what an error says; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def with_our_names(tensors: Mapping[str, Tensor], path: Path, tied: bool = True) -> dict[str, Tensor]:
    """The tensors under the names of GPT2LMHeadModel.named_parameters(), and those that the model does not know.

    Left out are buffers of older files and, with a warning, what stands beside the language model and changes nothing
    that it computes, such as the head of a classifier. A `tied` head is the token embedding and has no name of its own.
    Raises ValueError for a tensor that is there twice, and for a tied head that differs.
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
    head = ours.pop(HEAD, None) if tied else None
    if head is not None and not torch.equal(ours.setdefault(WTE, head), head):
        raise ValueError(
            f"{path}: {HEAD} differs from {WTE}, and config.json beside it says tie_word_embeddings true, or nothing; "
            "put false there if the head has a matrix of its own"
        )
    return ours


def check_weights(
    tensors: Mapping[str, Tensor], config: GPT2Config, path: Path, described: str = "config.json beside it"
) -> list[str]:
    """The names of the parameters of a model of `config`, in its order.

    Raises ValueError unless `tensors`, of which only shapes and types are looked at, are these parameters; `described`
    says where `config` is from.
    """
    wrong = f"{path}: is not the GPT-2 that {described} describes"
    # Before a model is built: a damaged configuration may ask for more layers than there is memory for.
    found = [int(match.group(1)) for match in map(_IN_LAYER.match, tensors) if match]
    if found and not config.share_layers and 1 + max(found) != config.n_layer:
        shared = ", share_layers False" if max(found) == 0 else ""  # of a block that is all layers
        raise ValueError(f"{wrong}\n  layers: {1 + max(found)}, and n_layer is {config.n_layer}{shared}")
    try:
        with torch.device("meta"):
            expected = dict(GPT2LMHeadModel(config, initialize=False).named_parameters())
    except RuntimeError as error:  # more bytes than an integer counts
        raise ValueError(f"{path}: {described} describes a model that is too large ({first_line(error)})") from error
    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(parameter.shape)}"
        for key, parameter in expected.items()
        if key in tensors and tensors[key].shape != parameter.shape
    ]
    faults = {
        "missing": [key for key in expected if key not in tensors],
        "unexpected": [key for key in tensors if key not in expected],
        f"of another shape than {described} says": shapes,
        "not floating point": [key for key, tensor in tensors.items() if not tensor.is_floating_point()],
    }
    if any(faults.values()):
        lines = [f"\n  {fault}: {_some(keys)}" for fault, keys in faults.items() if keys]
        told = [*faults["missing"], *faults["unexpected"]]
        settings = _deciding(told, config)
        lines += [f"\n  {name}, which decides on such tensors, is {getattr(config, name)!r} there" for name in settings]
        raise ValueError(wrong + "".join(lines))
    return list(expected)


def _deciding(keys: list[str], config: GPT2Config) -> list[str]:
    """The settings that decide on tensors which are missing, or unexpected."""
    further = re.compile(r"transformer\.h\.[1-9]\d*\.")  # with share_layers nothing else is to be said of them
    told = [key for key in keys if not (config.share_layers and further.match(key))]
    settings = [name for pattern, name in DECIDED_BY if any(map(pattern.match, told))]
    return settings + ["share_layers"] * (len(told) < len(keys))


def _some(keys: list[str], limit: int = 8) -> str:
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + rest
