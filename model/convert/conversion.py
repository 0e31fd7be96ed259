"""From the flags to a checkpoint in another format."""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

from model.checkpoint import CONFIG_FILE
from model.config import parameter_count
from model.config_fields import check_fields
from model.convert import gguf, huggingface, llm_c, megatron, nanogpt
from model.convert.recognition import open_source
from model.convert.sink import Target, choose_dtype
from model.convert.source import Source, Wishes
from model.disk_space import free_bytes

_WRITERS: dict[str, Any] = {
    "huggingface": huggingface,
    "nanogpt": nanogpt,
    "llm.c": llm_c,
    "megatron": megatron,
    "gguf": gguf,
}
_FOLDERS = ("huggingface", "megatron")
_PADDED, _ROWS_MULTIPLE = ("llm.c", "megatron"), 128
_WITH_TOKENIZER = ("huggingface", "gguf")
# Which kinds of IN read these of the Wishes: the others would compute the same without them.
_READ_BY = {
    "config": (huggingface.KIND, megatron.KIND),
    "activation": (nanogpt.KIND, llm_c.KIND, megatron.KIND, gguf.KIND),
}


def convert(args: argparse.Namespace) -> None:
    """Writes OUT and says what it is. Raises ValueError naming a file or flag, RuntimeError, OSError; then nothing is
    written.
    """
    _check_output(args.IN, args.OUT, args.to in _FOLDERS, args.overwrite)
    _check_written(args)
    told_of_config = check_fields(args.config) if args.config is not None else ""
    writer = _WRITERS[args.to]
    wishes = Wishes(args.config, args.real_vocab_size, args.activation, args.tokenizer)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        source = open_source(args.IN, wishes)
    _check_read(wishes, source)
    dtype = choose_dtype(source, args.dtype, writer.ALLOWED, writer.KIND)
    target = Target(args.OUT, dtype, args.vocab_multiple or _ROWS_MULTIPLE)
    note = writer.check(source, target)
    _check_room(args.OUT, writer.size(source, target))
    for line in filter(None, [told_of_config, *(str(w.message) for w in told), *source.notes, note]):
        print(f"note: {line}")
    writer.write(source, target)
    count, kind = parameter_count(source.config), str(source.dtype).split(".")[-1]
    print(f"{source.path} ({source.kind}, {kind}, {count:,} parameters) -> {args.OUT} ({writer.KIND}, {dtype})")


def as_folder(path: Path, folder: Path) -> Path:
    """`path` if it is a Hugging Face folder or is not there, else a new one in `folder` with the same model.

    Raises ValueError naming the file if it is of no known format, damaged, or there is no room.
    """
    if not path.exists() or (path / CONFIG_FILE).is_file():
        return path
    source = open_source(path)
    target = Target(folder, choose_dtype(source, None, huggingface.ALLOWED, huggingface.KIND), 1)
    _check_room(folder, huggingface.size(source, target))
    huggingface.write(source, target)
    return folder


def _check_written(args: argparse.Namespace) -> None:
    """Raises ValueError for a flag that says nothing of the format to write."""
    for name, what, formats in (
        ("vocab_multiple", "padding of the vocabulary", _PADDED),
        ("tokenizer", "tokenizer in it", _WITH_TOKENIZER),
    ):
        if getattr(args, name) is not None and args.to not in formats:
            raise ValueError(
                f"--{name.replace('_', '-')}: {args.to} has no {what} ({' and '.join(formats)} have); leave it out"
            )


def _check_read(wishes: Wishes, source: Source) -> None:
    for name, kinds in _READ_BY.items():
        if getattr(wishes, name) is not None and source.kind not in kinds:
            raise ValueError(
                f"--{name}: {source.path} is of {source.kind}, where it says nothing (it is for {', '.join(kinds)}); "
                "leave it out"
            )


def _check_room(output: Path, needed: int) -> None:
    free = free_bytes(output.parent)
    if needed > free:
        raise ValueError(f"{output}: takes {needed:,} bytes, {free:,} are free there; make room or name another")


def _check_output(source: Path, output: Path, is_folder: bool, overwrite: bool) -> None:
    if not output.exists() and not output.is_symlink():
        return
    if os.path.realpath(source) == os.path.realpath(output):
        raise ValueError(f"{output}: is IN as well; name another OUT")
    if os.path.realpath(source).startswith(os.path.join(os.path.realpath(output), "")):
        raise ValueError(f"{output}: has IN in it; name another OUT")
    if output.is_dir() != is_folder:
        there, wanted = ("folder", "file") if output.is_dir() else ("file", "folder")
        raise ValueError(f"{output}: is a {there}, and a {wanted} is to be written; name another OUT")
    if not overwrite and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output}: is there already; name another OUT, or replace it with --overwrite")
