"""Tensors in files without a name, for formats that torch.save writes: it wants all tensors at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Mapping

import torch
from torch import Tensor

from corpora.atomic import unique_beside
from model.convert.sink import check_fits, row_slices
from model.convert.source import Weight


def mapped_copies(weights: Mapping[str, Weight], dtype: torch.dtype, folder: Path) -> dict[str, Tensor]:
    """Each weight in a file in `folder` that is mapped and has lost its name: it goes with the tensor, or the process.

    Raises OSError if there is no room, ValueError for values that do not fit into `dtype`.
    """
    # All of them before the first is read: what is kept between two large allocations splits the memory that the first
    # one leaves, and the second needs new memory. GPT-2 XL took 2.5 GB like that.
    copies = {name: _mapped(weight.shape, dtype, folder) for name, weight in weights.items()}
    for name, weight in weights.items():
        tensor = weight.read()
        for rows in row_slices(tensor):
            copies[name][rows].copy_(tensor[rows])
            check_fits(copies[name][rows], tensor[rows], name)
    return copies


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> Tensor:
    count = 1
    for extent in shape:
        count *= extent
    path = unique_beside(folder / "tensor")
    width = torch.empty(0, dtype=dtype).element_size()
    try:
        with path.open("xb") as file:
            # Room that is really there: a write to a mapped file on a full disk ends the process.
            os.posix_fallocate(file.fileno(), 0, max(1, count * width))
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)
    finally:
        if path.exists():
            path.unlink()
