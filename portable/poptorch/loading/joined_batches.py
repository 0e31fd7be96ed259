"""The batches of a batch_sampler, each collated by itself, joined into one for a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ..poptorch_core import createPoptorchError
from ..structure import Structure


class JoinedBatches:
    """The elements of `loader`, `count` of them concatenated along dim 0 into one.

    What is left at the end makes a smaller one unless `drop_last`.
    """

    def __init__(self, loader: Iterable, count: int, drop_last: bool) -> None:
        self._loader, self._count, self._drop_last = loader, count, drop_last

    def __len__(self) -> int:
        return joined_length(len(self._loader), self._count, self._drop_last)

    def __iter__(self) -> Iterator[Any]:
        return join(iter(self._loader), self._count, self._drop_last)


def joined_length(batches: int, count: int, drop_last: bool) -> int:
    """How many joined batches so many make."""
    return batches // count if drop_last else -(-batches // count)


def join(batches: Iterator[Any], count: int, drop_last: bool) -> Iterator[Any]:
    """`count` batches at a time as one. Raises poptorch.Error for batches that do not fit together."""
    parts: list[Any] = []
    for batch in batches:
        parts.append(batch)
        if len(parts) == count:
            yield _concatenated(parts)
            parts = []
    if parts and not drop_last:
        yield _concatenated(parts)


def _concatenated(parts: list[Any]) -> Any:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, torch.Tensor):
        try:
            return torch.cat(parts) if first.dim() else torch.stack(parts)
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise createPoptorchError(
                f"The batches of the batch_sampler cannot be joined for one call: their shapes are {shapes}, and only "
                "the first dimension may differ. Let collate_fn pad them alike."
            ) from error
    if isinstance(first, Mapping):
        items = {key: _concatenated([part[key] for part in parts]) for key in first}
        return items if type(first) is dict else type(first)(items)
    if isinstance(first, (list, tuple)):
        if any(isinstance(item, (torch.Tensor, Mapping, list, tuple)) for item in first):
            items = [_concatenated(list(column)) for column in zip(*parts, strict=True)]
        else:  # texts and the like: one for each sample
            items = [item for part in parts for item in part]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    structures = [Structure.of(part) for part in parts]
    columns = zip(*(leaves for leaves, _ in structures), strict=True)
    return structures[0][1].fill([_concatenated(list(column)) for column in columns])
