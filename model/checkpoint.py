"""Hugging Face checkpoint directories, both ways, and directories that appear whole or not at all.

A checkpoint holds config.json and the weights (model.safetensors, the same in shards with an index,
or pytorch_model.bin). Files hold the real rows of the vocabulary; in memory it is padded.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shutil
import stat
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Union

import safetensors.torch
import torch
from safetensors import SafetensorError

from model.config import GPT2_VOCAB_SIZE, GPT2Config, padded_rows, padding_note, read_json_object
from model.gpt2 import GPT2LMHeadModel
from model.weights import (
    HEAD,
    WEIGHTS_FILE,
    WEIGHTS_FILES,
    WPE,
    WTE,
    check_weights,
    file_metadata,
    read_weights,
    with_our_names,
)
from tokenizer.entries import read_entries

PathLike = Union[str, "os.PathLike[str]"]

CONFIG_FILE = "config.json"


# Loading


def load_pretrained(
    path_or_name: PathLike,
    n_positions: int | None = None,
    dropouts: Mapping[str, float] | None = None,
    at_least: int = 0,
) -> GPT2LMHeadModel:
    """Builds the model of a Hugging Face checkpoint, in eval mode, parameters in the file's dtype.

    Args:
        path_or_name: a checkpoint directory or, if there is no such directory, a name on the
            Hugging Face hub.
        n_positions: positions to keep, the first ones, or to make where none are learned; None keeps all.
        at_least: where positions are not learned, as many are made if `n_positions` or the checkpoint has fewer.
        dropouts: probabilities in place of the checkpoint's, by their names in the configuration.

    The vocabulary is padded with zero rows to a multiple of 16. Which rows of the file are tokens: read_config.

    Raises:
        ValueError: naming the file, and the keys where they are at fault, if the checkpoint is
            missing, unreadable, incomplete, of other shapes or has fewer than `n_positions`.
    """
    directory = _checkpoint_directory(path_or_name)
    stored = read_config(directory / CONFIG_FILE)
    _warn_of_padding(directory, stored)
    if stored.padding_id is not None:
        warnings.warn(f"{directory / CONFIG_FILE}: {padding_note(stored.padding_id)}", stacklevel=2)
    if n_positions is not None and n_positions > stored.n_positions and stored.learns_positions:
        raise ValueError(
            f"{directory}: the checkpoint has n_positions {stored.n_positions}, not the {n_positions} asked for; "
            f"use --max-len {stored.n_positions} or less"
        )
    positions = n_positions or stored.n_positions
    path, tensors = read_weights(directory)
    tensors = with_our_names(tensors, path, stored.tie_word_embeddings)
    check_weights(tensors, stored, path)
    config = dataclasses.replace(
        stored,
        **(dropouts or {}),
        n_positions=positions if stored.learns_positions else max(positions, at_least),
        vocab_size=padded_rows(stored.real_vocab_size),
    )
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))  # of mixed: the widest
    model = GPT2LMHeadModel(config, initialize=False).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a tied head is not named again
            tensor = tensors.pop(name)
            if name in (WTE, HEAD):
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
            latest = newest_inside(path)
            if latest is not None:
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


def newest_inside(path: Path) -> Path | None:
    """Of the folder that a run saves to, its newest checkpoint; None if none is in it.

    Hidden ones are those of a save that is under way, or was interrupted (write_atomically); a config.json without
    weights is of a tokenizer or of a model to come.
    """
    inside = [file for file in sorted(path.glob(f"*/{CONFIG_FILE}")) if not file.parent.name.startswith(".")]
    whole = [file for file in inside if any(file.with_name(name).is_file() for name in WEIGHTS_FILES)]
    return max(whole, key=lambda file: file.stat().st_mtime).parent if whole else None


def read_config(path: Path, entries: int | None = None) -> GPT2Config:
    """Reads a config.json and finds out how many rows of its vocabulary are tokens: `real_vocab_size`.

    As many as the file states under that name. Without it as many as the tokenizer in the same folder has, or if there
    is none, `entries`; without these all of them. A tokenizer with more than is stated counts as well, as far as there
    are rows: tokens were added since.

    Raises:
        ValueError: naming the file, if it cannot be read or is no valid configuration.
    """
    config, stated = GPT2Config.from_json(path), read_json_object(path).get("real_vocab_size")
    beside = _entries_beside(path)
    count = entries if beside is None else beside
    if count is None or (stated is not None and count <= stated):
        return config
    return dataclasses.replace(config, real_vocab_size=min(count, config.vocab_size))


def _entries_beside(path: Path) -> int | None:
    try:
        entries = read_entries(path.parent)
    except ValueError:  # who reads texts with it will say so
        return None
    return None if entries is None else entries.rows


def _warn_of_padding(directory: Path, config: GPT2Config) -> None:
    """Says where rows of a checkpoint are left out, or may be padding that nobody told of."""
    rows, real = config.vocab_size, config.real_vocab_size
    path, text = directory / CONFIG_FILE, ""
    if real < rows:
        text = (
            f"{path}: {real} of {rows} rows of the vocabulary are tokens, the others are left out as padding; if they "
            f'are tokens, put "real_vocab_size": {rows} there'
        )
    elif rows > GPT2_VOCAB_SIZE and read_json_object(path).get("real_vocab_size") is None:
        if _entries_beside(path) is None:
            text = (
                f"{path}: no tokenizer is beside it and it has no real_vocab_size, so that all {rows} rows of the "
                f'vocabulary are tokens; if those from {GPT2_VOCAB_SIZE} on are padding, put "real_vocab_size": '
                f"{GPT2_VOCAB_SIZE} there"
            )
    if text:
        warnings.warn(text, stacklevel=3)


# Saving


def tensor_bytes(values: Any) -> int:
    """Bytes of all tensors in nested dicts and lists; of several over one storage, once."""
    sizes: dict[int, int] = {}
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            place = value.data_ptr() or id(value)
            sizes[place] = max(sizes.get(place, 0), value.numel() * value.element_size())
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
    return sum(sizes.values())


def save_pretrained(model: GPT2LMHeadModel, directory: PathLike) -> None:
    """Writes config.json and model.safetensors into `directory`, made if need be.

    `transformers.GPT2LMHeadModel.from_pretrained` loads the result, and refuses it if the model is a variant that it
    does not have (GPT2Config.variant). The padding of the vocabulary is left out and the parameters keep their dtype.
    To replace a checkpoint: inside write_atomically.

    Raises:
        RuntimeError: if the files cannot be written.
    """
    real = model.config.real_vocab_size
    tensors = {key: parameter.detach().cpu() for key, parameter in model.named_parameters()}  # of tied ones the first
    tensors.update({key: tensors[key][:real] for key in (WTE, HEAD) if key in tensors})
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG_FILE).write_text(config_text(model.config, tensors[WTE].dtype), encoding="utf-8")
        safetensors.torch.save_file(tensors, directory / WEIGHTS_FILE, metadata=file_metadata(model.config))
        # newer safetensors make the file for its owner alone, whatever the umask
        os.chmod(directory / WEIGHTS_FILE, stat.S_IMODE(os.stat(directory / CONFIG_FILE).st_mode))
    except (OSError, SafetensorError) as error:
        raise RuntimeError(
            f"{directory}: the checkpoint cannot be written ({error})\n"
            "HINT: check the free space and the permissions there, or choose another directory"
        ) from error


def config_text(config: GPT2Config, dtype: torch.dtype) -> str:
    """The content of config.json beside weights of that dtype, whose vocabulary has no padding."""
    values = dataclasses.replace(config, vocab_size=config.real_vocab_size).to_dict()
    values["torch_dtype"] = str(dtype).split(".")[-1]  # transformers 5 reads this old name too
    return json.dumps(values, indent=2) + "\n"


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
