"""Hugging Face checkpoint directories, both ways, and directories that appear whole or not at all.

A checkpoint holds config.json and the weights (model.safetensors, the same in shards with an index,
or pytorch_model.bin). Files hold the real rows of the vocabulary; in memory it is padded.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pickle
import re
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Mapping, Union

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from model.config import GPT2_VOCAB_SIZE, GPT2Config, read_json_object
from model.gpt2 import GPT2LMHeadModel

PathLike = Union[str, "os.PathLike[str]"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# In order of preference. An index is a JSON file whose weight_map names the shard of each tensor.
WEIGHTS_FILES = (WEIGHTS_FILE, WEIGHTS_FILE + ".index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

VOCAB_MULTIPLE = 16  # rows of the vocabulary in memory: 50,257 -> 50,272

PREFIX = "transformer."
WTE, WPE, HEAD = PREFIX + "wte.weight", PREFIX + "wpe.weight", "lm_head.weight"
# The causal mask and its value, which older transformers stored with the weights.
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


# Loading


def load_pretrained(
    path_or_name: PathLike, n_positions: int | None = None, dropouts: Mapping[str, float] | None = None
) -> GPT2LMHeadModel:
    """Builds the model of a Hugging Face checkpoint, in eval mode, parameters in the file's dtype.

    Args:
        path_or_name: a checkpoint directory or, if there is no such directory, a name on the
            Hugging Face hub.
        n_positions: positions to keep, the first ones; None keeps all.
        dropouts: probabilities in place of the checkpoint's, by their names in the configuration.

    The vocabulary is padded with zero rows to a multiple of 16.

    Raises:
        ValueError: naming the file, and the keys where they are at fault, if the checkpoint is
            missing, unreadable, incomplete, of other shapes or has fewer than `n_positions`.
    """
    directory = _checkpoint_directory(path_or_name)
    stored = _read_config(directory / CONFIG_FILE)
    if n_positions is not None and n_positions > stored.n_positions:
        raise ValueError(
            f"{directory}: the checkpoint has n_positions {stored.n_positions}, not the {n_positions} asked for; "
            f"use --max-len {stored.n_positions} or less"
        )
    path, tensors = _read_weights(directory)
    tensors = _with_our_keys(tensors, path)
    _check(tensors, stored, path)
    config = dataclasses.replace(
        stored,
        **(dropouts or {}),
        n_positions=n_positions or stored.n_positions,
        vocab_size=-(-stored.real_vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
    )
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))  # of mixed: the widest
    model = GPT2LMHeadModel(config, initialize=False).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # the tied head is not named again
            tensor = tensors.pop(name)
            if name == WTE:
                parameter.zero_()
                parameter[: config.real_vocab_size] = tensor[: config.real_vocab_size]
            elif name == WPE:
                parameter.copy_(tensor[: config.n_positions])
            else:
                parameter.copy_(tensor)
    return model.eval()


def _checkpoint_directory(path_or_name: PathLike) -> Path:
    """The local directory of a checkpoint, downloaded if it is a name on the hub."""
    path = Path(path_or_name)
    remedy = "give a directory with config.json and model.safetensors"
    if path.is_dir():
        if not (path / CONFIG_FILE).exists():
            inside = sorted(file.parent for file in path.glob(f"*/{CONFIG_FILE}"))
            if inside:  # the folder that runs save to
                latest = max(inside, key=lambda checkpoint: (checkpoint / CONFIG_FILE).stat().st_mtime)
                raise ValueError(f"{path}: holds checkpoints and is none; give one of them, the latest is {latest}")
            raise ValueError(f"{path / CONFIG_FILE}: cannot be read (No such file or directory); {remedy}")
        return path
    if path.exists():
        raise ValueError(f"{path}: is a file, not a checkpoint directory; {remedy}")
    aside = _names(path)[2]
    if aside.is_dir():
        raise ValueError(
            f"{path}: a save was interrupted while replacing it; its last content is {aside}, rename it back"
        )
    name = os.fspath(path_or_name)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name):
        raise ValueError(f"{name}: no such checkpoint directory; {remedy}")
    try:
        from huggingface_hub import snapshot_download

        weights = ["model*.safetensors", "model.safetensors.index.json"]
        downloaded = Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, *weights]))
        if not any((downloaded / file).is_file() for file in WEIGHTS_FILES):
            downloaded = Path(snapshot_download(name, allow_patterns=["pytorch_model*.bin", "pytorch_model*.json"]))
        return downloaded
    except Exception as error:  # what a network may raise differs between versions of the library
        raise ValueError(
            f"{name}: no such checkpoint directory, and as a name on the Hugging Face hub it cannot be fetched "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}); "
            f"{remedy}, or download the checkpoint on a machine with network access and give its path. `make demo` "
            "needs no hub and leaves a small one in demo/checkpoints/epoch_0"
        ) from error


def _read_config(path: Path) -> GPT2Config:
    config = GPT2Config.from_json(path)
    if config.vocab_size > GPT2_VOCAB_SIZE and "real_vocab_size" not in read_json_object(path):
        warnings.warn(
            f"{path}: vocab_size {config.vocab_size} without real_vocab_size: rows from {GPT2_VOCAB_SIZE} on are taken "
            f'for padding; if they are tokens, add "real_vocab_size": {config.vocab_size} to the file',
            stacklevel=3,
        )
    return config


def _read_weights(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file that names the weights, and the tensors under the keys they have there."""
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


def _with_our_keys(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors under the names of GPT2LMHeadModel.named_parameters()."""
    ours: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        bare = key[len(PREFIX) :] if key.startswith(PREFIX) else key
        if not MASK_BUFFER.fullmatch(bare):
            ours[key if key == HEAD else PREFIX + bare] = tensor
    head = ours.pop(HEAD, None)
    if head is not None and not torch.equal(ours.setdefault(WTE, head), head):
        raise ValueError(f"{path}: {HEAD} differs from {WTE}; a head that is not tied is not implemented")
    return ours


def _check(tensors: Mapping[str, Tensor], config: GPT2Config, path: Path) -> None:
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
        raise ValueError(f"{path}: is not the GPT-2 that {CONFIG_FILE} beside it describes" + "".join(lines))


def _some(keys: list[str], limit: int = 8) -> str:
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + rest


# Saving


def save_pretrained(model: GPT2LMHeadModel, directory: PathLike) -> None:
    """Writes config.json and model.safetensors into `directory`, made if need be.

    `transformers.GPT2LMHeadModel.from_pretrained` loads the result. The padding of the vocabulary is
    left out and the parameters keep their dtype. To replace a checkpoint: inside write_atomically.

    Raises:
        RuntimeError: if the files cannot be written.
    """
    real = model.config.real_vocab_size
    tensors = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items() if key != HEAD}
    tensors[WTE] = tensors[WTE][:real]
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    values = dataclasses.replace(model.config, vocab_size=real).to_dict()
    values["torch_dtype"] = str(tensors[WTE].dtype).split(".")[-1]  # transformers 5 reads this old name too
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        # transformers 4.26 refuses a file without the format
        safetensors.torch.save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise RuntimeError(
            f"{directory}: the checkpoint cannot be written ({error})\n"
            "HINT: check the free space and the permissions there, or choose another directory"
        ) from error


@contextmanager
def write_atomically(directory: PathLike) -> Iterator[Path]:
    """Replaces `directory` by what the body writes, as a whole: `with write_atomically("epoch_1") as new`.

    Yields a new empty directory beside the final one. When the body ends its files reach the disk
    and it takes the final name; if the body raises it is removed and the old content stays. A kill
    at any moment leaves old or new content whole, under the final name or, between the two renames,
    under the name from which `recover_interrupted` fetches it. One writer at a time.

    Raises:
        ValueError: if the final name is taken by a file or cannot be created.
    """
    final, new, old = _names(directory)
    if final.exists() and not final.is_dir():
        raise ValueError(f"{final}: is a file; a directory is to be written there, choose another name")
    recover_interrupted(final)
    try:
        new.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{final}: cannot be created ({error.strerror}); choose another directory") from error
    try:
        yield new
        for folder, _, files in os.walk(new):
            for file in files:
                _sync(os.path.join(folder, file))
            _sync(folder)
        if final.exists():  # a directory cannot be renamed over one with content
            os.rename(final, old)
        os.rename(new, final)
        _sync(final.parent)
    finally:
        recover_interrupted(final)


def recover_interrupted(directory: PathLike) -> bool:
    """Tidies up after a write_atomically(directory) that was killed. Not while one is running.

    Returns:
        True if the last whole content had been moved aside and was put back.
    """
    final, new, old = _names(directory)
    put_back = old.exists() and not final.exists()
    if put_back:
        os.rename(old, final)
        _sync(final.parent)
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return put_back


def _names(directory: PathLike) -> tuple[Path, Path, Path]:
    """The final name, and those of new and old content during a write: hidden, so that no `step_*` finds them."""
    final = Path(os.path.realpath(directory))  # through a symbolic link: what it points to is replaced
    return final, final.with_name(f".{final.name}.new"), final.with_name(f".{final.name}.old")


def _sync(path: PathLike) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
