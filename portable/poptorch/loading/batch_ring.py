"""Batches in shared memory: taken apart into tensors and the rest, cut and joined, put together again.

A batch may be any picklable structure. Its skeleton is its pickle with a number in the place of each tensor.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, IterableDataset

Piece = tuple[bytes, list[torch.Tensor]]  # skeleton and tensors


class Rebatched:
    """The elements of `loader`, cut and joined along dim 0 into batches of `size`.

    The last one is smaller unless `drop_last`. Iterating gives lists of pieces that make up a batch; they are joined
    where they are going to lie.
    """

    def __init__(self, loader: Iterable, size: int, drop_last: bool) -> None:
        self._loader = loader
        self._size = size
        self._drop_last = drop_last

    def __len__(self) -> int:
        samples = _samples(self._loader)
        return samples // self._size if self._drop_last else -(-samples // self._size)

    def pieces(self) -> Iterator[list[Piece]]:
        """Pieces of one batch after the other."""
        joined: list[Piece] = []
        missing = self._size
        for element in self._loader:
            skeleton, tensors = taken_apart(element)
            rows = _rows(tensors)
            start = 0
            while start < rows:
                taken = min(missing, rows - start)
                joined.append((skeleton, [tensor.narrow(0, start, taken) for tensor in tensors]))
                start, missing = start + taken, missing - taken
                if not missing:
                    yield joined
                    joined, missing = [], self._size
        if joined and not self._drop_last:
            yield joined


def _samples(loader: Any) -> int:
    """Samples in an epoch of a DataLoader; of anything else, whose elements are samples, its length."""
    batches = getattr(loader, "batch_sampler", None)
    if not isinstance(batches, BatchSampler) or isinstance(loader.dataset, IterableDataset):
        return len(loader) * (getattr(loader, "batch_size", None) or 1)
    samples = len(batches.sampler)
    return samples - samples % batches.batch_size if batches.drop_last else samples


def _rows(tensors: list[torch.Tensor]) -> int:
    """The common size of dim 0."""
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            "batches can be cut and joined only if they consist of tensors of the same size along dim 0, got the "
            f"shapes {[tuple(tensor.shape) for tensor in tensors]}"
        )
    return sizes.pop()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not torch.Tensor or obj.layout is not torch.strided or obj.device.type != "cpu":
            return None
        number = self._numbers.setdefault(id(obj), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(obj.detach())
        return number


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self._tensors[pid]


def taken_apart(batch: Any) -> Piece:
    """Skeleton and tensors of a batch."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(batch)
    return file.getvalue(), pickler.tensors


def put_together(skeleton: bytes, tensors: list[torch.Tensor]) -> Any:
    """The batch that taken_apart() was given, with these tensors."""
    return _Unpickler(io.BytesIO(skeleton), tensors).load()


class Slot:
    """One place of the ring: tensors in shared memory, made anew when a batch needs others."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._layout: list[tuple[torch.dtype, tuple[int, ...]]] | None = None

    def fill(self, pieces: list[Piece]) -> tuple[bytes, list[torch.Tensor] | None]:
        """Join the pieces here: the skeleton, and the tensors if they are new ones."""
        skeleton, first = pieces[0]
        if any(other != skeleton for other, _ in pieces):
            raise ValueError("batches can be joined only if they differ in nothing but their tensors")
        columns = [list(column) for column in zip(*(tensors for _, tensors in pieces), strict=True)]
        layout = [_layout(column) for column in columns]
        changed = layout != self._layout
        if changed:
            self._layout = layout
            self._tensors = [torch.empty(shape, dtype=dtype).share_memory_() for dtype, shape in layout]
        for tensor, column in zip(self._tensors, columns, strict=True):
            if len(column) == 1:
                tensor.copy_(column[0])
            else:
                torch.cat(column, out=tensor)
        return skeleton, self._tensors if changed else None


def _layout(column: list[torch.Tensor]) -> tuple[torch.dtype, tuple[int, ...]]:
    shape = tuple(column[0].shape)
    return column[0].dtype, shape if len(column) == 1 else (sum(part.shape[0] for part in column), *shape[1:])
