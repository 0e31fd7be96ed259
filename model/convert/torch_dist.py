"""Megatron-LM's folders of the format `torch_dist`: torch.distributed.checkpoint's files, and common.pt beside them.

`.metadata` is a pickle that says of each tensor which files hold which parts of it; each part is what torch.save makes
of a tensor. A tensor of all layers has them as its first dimension, or each layer has one of its own.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.convert.megatron import arguments, source_of
from model.convert.megatron_model import PASSED_OVER, our_name
from model.convert.raw_file import RawFile
from model.convert.source import Source, Weight, Wishes
from model.torch_archive import StandIn, check_parts
from model.weights import first_line, load_torch_file

METADATA, COMMON = ".metadata", "common.pt"
_MODULES = ("torch.distributed.checkpoint.", "torch.distributed._shard.", "megatron.core.")


class Part(NamedTuple):
    """Where a box of a tensor lies."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    place: int
    length: int


class Entry(NamedTuple):
    """A tensor of the checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: list[Part]


class _Unpickler(pickle.Unpickler):
    """Makes plain values and StandIns only: whatever the file names, nothing of it runs."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name == "Size":
            return torch.Size
        if module == "torch" and isinstance(getattr(torch, name, None), (torch.dtype, torch.layout)):
            return getattr(torch, name)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        inert = {("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib", "Path")}
        if f"{module}.".startswith(_MODULES) or (module, name) in inert:
            return StandIn
        raise pickle.UnpicklingError(f"{module}.{name}")


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is of this format."""
    return (path / METADATA).is_file() and (path / COMMON).is_file()


def read_metadata(path: Path) -> dict[str, Entry]:
    """The tensors of a checkpoint by Megatron's names. Raises ValueError naming the file that says too little."""
    file = path / METADATA
    try:
        with file.open("rb") as opened:
            metadata = _Unpickler(opened).load()
        entries = {
            name: Entry(tuple(entry.size), _dtype(entry.properties), [])
            for name, entry in metadata.state_dict_metadata.items()
            if hasattr(entry, "chunks")
        }
        sizes = {
            (name, tuple(chunk.offsets)): tuple(chunk.sizes)
            for name, entry in metadata.state_dict_metadata.items()
            for chunk in getattr(entry, "chunks", ())
        }
        for index, info in metadata.storage_data.items():
            key = (index.fqn, tuple(getattr(index, "offset", None) or ()))  # not there where it is the default
            if index.fqn in entries and key in sizes:
                if getattr(info, "transform_descriptors", None):
                    raise ValueError("its tensors are compressed")
                part = Part(key[1], sizes[key], info.relative_path, info.offset, info.length)
                entries[index.fqn].parts.append(part)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file}: is damaged, or holds objects ({error}) that are not loaded because they may run code; write the "
            "checkpoint again"
        ) from error
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except Exception as error:  # whatever a damaged pickle makes
        raise ValueError(f"{file}: cannot be read ({first_line(error)}); is the file complete?") from error
    return entries


def _dtype(properties: Any) -> torch.dtype:
    """Of TensorProperties, which are pickled as a tuple."""
    dtype = properties.state[0] if hasattr(properties, "state") else properties.dtype
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"a tensor of the type {dtype!r}")
    return dtype


def read(path: Path, wishes: Wishes) -> Source:
    """A folder of an iteration. Raises ValueError naming the file and the tensor at fault."""
    common = load_torch_file(path / COMMON, PASSED_OVER)
    args = arguments(common if isinstance(common, dict) else {})
    tensors: dict[str, list[Weight]] = {}
    for theirs, entry in read_metadata(path).items():
        theirs = theirs[len("model.") :] if theirs.startswith("model.") else theirs
        if theirs.startswith(("optimizer.", "chained_", "rng_state", "rerun_state")):
            continue
        if theirs.startswith("decoder.layers.") and not theirs.split(".")[2].isdecimal():
            rest = theirs[len("decoder.layers.") :]
            for layer in range(entry.shape[0]):
                name = our_name(f"decoder.layers.{layer}.{rest}")
                if name is not None:
                    tensors[name] = [_weight(path, name, entry, layer)]
        else:
            name = our_name(theirs)
            if name is not None:
                tensors[name] = [_weight(path, name, entry, None)]
    return source_of(path, args, tensors, 3, wishes)


def _weight(path: Path, name: str, entry: Entry, layer: int | None) -> Weight:
    """The tensor, or of one with all layers that of one of them."""
    shape = entry.shape if layer is None else entry.shape[1:]
    parts = [p for p in entry.parts if layer is None or p.offsets[0] <= layer < p.offsets[0] + p.sizes[0]]
    wanted, there = math.prod(shape), 0
    for part in parts:
        there += math.prod(part.sizes if layer is None else part.sizes[1:])
        if os.path.basename(part.file) != part.file or not (path / part.file).is_file():
            raise ValueError(f"{path / part.file}: is missing, and holds a part of {name}")
        RawFile(path / part.file).bytes(name, part.place, part.length)
    if there != wanted:
        raise ValueError(f"{path / METADATA}: names parts of {name} with {there:,} of {wanted:,} values")

    def read_all() -> Tensor:
        pieces = [(part, _read_part(path, name, part)) for part in parts]
        if len(pieces) == 1:
            piece = pieces[0][1]
            return piece if layer is None else piece[layer - parts[0].offsets[0]]
        whole = torch.empty(shape, dtype=entry.dtype)
        for part, piece in pieces:
            skip = 0 if layer is None else 1
            if layer is not None:
                piece = piece[layer - part.offsets[0]]
            box = tuple(slice(at, at + size) for at, size in zip(part.offsets[skip:], part.sizes[skip:]))
            whole[box] = piece
        return whole

    return Weight(shape, entry.dtype, read_all)


def _read_part(path: Path, name: str, part: Part) -> Tensor:
    raw = RawFile(path / part.file).bytes(name, part.place, part.length).numpy().tobytes()
    check_parts(io.BytesIO(raw), path / part.file, whole=name)
    try:
        tensor = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damage makes of the unpickler
        raise ValueError(f"{path / part.file}: the part of {name} cannot be read; is the file complete?") from error
    if not isinstance(tensor, Tensor) or tensor.numel() != torch.Size(part.sizes).numel():
        raise ValueError(f"{path / part.file}: the part of {name} is no tensor of {part.sizes}")
    return tensor.view(part.sizes)
