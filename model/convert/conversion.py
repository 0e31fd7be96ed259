"""From the flags to a checkpoint in another format."""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

from model.config import parameter_count
from model.convert import gguf, huggingface, llm_c, megatron, nanogpt
from model.convert.recognition import open_source
from model.convert.sink import Target, choose_dtype
from model.convert.source import Wishes
from model.disk_space import free_bytes

_WRITERS: dict[str, Any] = {
    "huggingface": huggingface,
    "nanogpt": nanogpt,
    "llm.c": llm_c,
    "megatron": megatron,
    "gguf": gguf,
}
_FOLDERS = ("huggingface", "megatron")


def convert(args: argparse.Namespace) -> None:
    """Writes OUT and says what it is. Raises ValueError naming a file or flag, RuntimeError, OSError; then nothing is
    written.
    """
    _check_output(args.IN, args.OUT, args.to in _FOLDERS, args.overwrite)
    writer = _WRITERS[args.to]
    wishes = Wishes(args.config, args.real_vocab_size, args.activation, args.tokenizer)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        source = open_source(args.IN, wishes)
    dtype = choose_dtype(source, args.dtype, writer.ALLOWED, writer.KIND)
    target = Target(args.OUT, dtype, args.vocab_multiple)
    note = writer.check(source, target)
    needed, free = writer.size(source, target), free_bytes(args.OUT.parent)
    if needed > free:
        raise ValueError(f"{args.OUT}: takes {needed:,} bytes, {free:,} are free there; make room or name another")
    for line in [*(str(w.message) for w in told), *source.notes, *([note] if note else [])]:
        print(f"note: {line}")
    writer.write(source, target)
    count, kind = parameter_count(source.config), str(source.dtype).split(".")[-1]
    print(f"{source.path} ({source.kind}, {kind}, {count:,} parameters) -> {args.OUT} ({writer.KIND}, {dtype})")


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
