"""Tensors in files without a name, for formats that torch.save writes: it wants all tensors at once."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from corpora.atomic import unique_beside
from model.convert.sink import pieces
from model.convert.source import Weight


def mapped_copy(weight: Weight, dtype: torch.dtype, name: str, folder: Path) -> Tensor:
    """The weight in a file in `folder` that is mapped and has lost its name: it goes with the tensor, or the process.

    Raises OSError if there is no room, ValueError for values that do not fit into `dtype`.
    """
    count = 1
    for extent in weight.shape:
        count *= extent
    path = unique_beside(folder / "tensor")
    width = torch.empty(0, dtype=dtype).element_size()
    try:
        with path.open("xb") as file:
            # Room that is really there: a write to a mapped file on a full disk ends the process.
            os.posix_fallocate(file.fileno(), 0, max(1, count * width))
        copy = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(weight.shape)
    finally:
        if path.exists():
            path.unlink()
    place = 0
    for piece in pieces(weight.read(), dtype, name):
        copy[place : place + len(piece)] = piece
        place += len(piece)
    return copy
