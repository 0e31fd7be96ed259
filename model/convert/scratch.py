"""Tensors in files without a name, for formats that torch.save writes: it wants all tensors at once."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from pathlib import Path
from typing import BinaryIO, Mapping

import torch
from torch import Tensor

from corpora.atomic import unique_beside
from model.convert.sink import check_fits, row_slices
from model.convert.source import Weight

# What posix_fallocate says where the file system has none, and the C library does not write in its place.
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


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
    count = math.prod(shape)
    path = unique_beside(folder / "tensor")
    width = torch.empty(0, dtype=dtype).element_size()
    try:
        with path.open("xb") as file:
            _allocate(file, max(1, count * width))
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _allocate(file: BinaryIO, size: int) -> None:
    """Room that is really there: a write to a mapped file on a full disk ends the process."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return
    except AttributeError:  # macOS has no such call
        pass
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    zeros = bytes(min(size, 1 << 20))
    for written in range(0, size, len(zeros)):
        file.write(zeros[: size - written])
