"""Which format a file or folder is of, by what is in it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from model.checkpoint import CONFIG_FILE, newest_inside
from model.convert import gguf, gguf_file, huggingface, llm_c, megatron, nanogpt, openai, torch_dist
from model.convert.source import Source, Wishes
from model.torch_archive import is_archive
from model.weights import WEIGHTS_FILES, load_torch_file

KNOWN = (
    "a Hugging Face folder or a run's, nanoGPT's ckpt.pt, llm.c's .bin, a folder of Megatron-LM's or OpenAI's, or a "
    "GGUF file"
)


def open_source(path: Path, wishes: Wishes | None = None) -> Source:
    """The checkpoint at `path`, of whatever format.

    Raises:
        ValueError: naming the file, and the tensor where one is at fault, if it is of no known format, damaged, or of
            a model that is not implemented.
    """
    wishes = wishes or Wishes()
    if not path.exists():
        raise ValueError(f"{path}: does not exist; give {KNOWN}")
    return _in_folder(path, wishes) if path.is_dir() else _in_file(path, wishes)


def _in_folder(path: Path, wishes: Wishes) -> Source:
    if (path / CONFIG_FILE).is_file() or any((path / name).is_file() for name in WEIGHTS_FILES):
        return huggingface.read(path, wishes)
    if torch_dist.is_checkpoint(path):
        return torch_dist.read(path, wishes)
    if megatron.pieces_in(path):
        return megatron.read(path, wishes)
    if (path / megatron.LATEST_FILE).is_file():
        return _in_folder(megatron.latest(path), wishes)
    if openai.is_checkpoint(path):
        return openai.read(path, wishes)
    newest = newest_inside(path)
    if newest is not None:
        return huggingface.read(newest, wishes)
    files = [file for file in sorted(path.iterdir()) if file.is_file() and _has_a_format(file)]
    if len(files) == 1:
        return _in_file(files[0], wishes)
    if files:
        raise ValueError(f"{path}: holds several checkpoints; give one of {', '.join(file.name for file in files)}")
    raise ValueError(f"{path}: holds no checkpoint that is known; give {KNOWN}")


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def _has_a_format(path: Path) -> bool:
    first = _beginning(path)
    known = (gguf_file.MAGIC, struct.pack("<i", llm_c.MAGIC), b"PK\x03\x04")
    return first.startswith(known)


def _in_file(path: Path, wishes: Wishes) -> Source:
    first = _beginning(path)
    number = struct.unpack("<i", first[:4])[0] if len(first) >= 4 else 0
    if first.startswith(gguf_file.MAGIC):
        return gguf.read(path, wishes)
    if number == llm_c.MAGIC:
        return llm_c.read(path, wishes)
    if number == llm_c.STATE_MAGIC:
        raise ValueError(f"{path}: is the optimizer's state of llm.c; the weights are in the model_*.bin beside it")
    if is_archive(path) or first.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        return _in_torch_file(path, wishes)
    if first[8:9] == b"{":
        raise ValueError(f"{path}: is a file of weights; give the folder that has {CONFIG_FILE} beside it")
    raise ValueError(f"{path}: is no checkpoint that is known; give {KNOWN}")


def _in_torch_file(path: Path, wishes: Wishes) -> Source:
    if megatron.is_piece(path):
        raise ValueError(f"{path}: is a piece of Megatron-LM's; give the folder with its mp_rank folders")
    content: Any = load_torch_file(path, within=("model",))
    if nanogpt.is_nanogpt(content):
        return nanogpt.read(path, content, wishes)
    raise ValueError(
        f"{path}: is no checkpoint of nanoGPT (no model and model_args in it); if it holds the weights alone, give a "
        f"folder with them as pytorch_model.bin and with {CONFIG_FILE}"
    )
