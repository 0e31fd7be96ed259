"""Tensors of any floating type, worked on piece by piece as lists of float32 tensors.

Half weights and states would need full-size float32 copies for an update in float32; pieces keep the copies small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from ...device.rounding import stochastic_round

# Elements converted at a time. CPU: 2 MiB of float32 a piece, five of them at once at most (LAMB).
# CUDA: 4 Mi elements (16 MiB) keep the number of kernel launches low.
_CHUNK_ELEMENTS = {"cpu": 1 << 19}
_DEFAULT_CHUNK_ELEMENTS = 1 << 22

# A piece of a tensor: its name and the range of its elements, flattened.
Piece = tuple[str, int, int]


def chunk_elements(device: torch.device) -> int:
    """How many elements to convert at a time on `device`."""
    return _CHUNK_ELEMENTS.get(device.type, _DEFAULT_CHUNK_ELEMENTS)


def buckets(sizes: Mapping[str, int], limit: int) -> Iterator[list[Piece]]:
    """Cut tensors of `sizes` elements into lists of pieces; a list has at most `limit` elements together."""
    bucket: list[Piece] = []
    room = limit
    for name, end in sizes.items():
        start = 0
        while start < end:
            stop = min(end, start + room)
            bucket.append((name, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield bucket
                bucket, room = [], limit
    if bucket:
        yield bucket


def cut(tensors: Mapping[str, torch.Tensor], pieces: Sequence[Piece]) -> list[torch.Tensor]:
    """Views of the pieces of contiguous tensors, 1-D each."""
    return [tensors[name].view(-1)[start:stop] for name, start, stop in pieces]


class Float32Views:
    """Float32 tensors to compute with in place of `stored` ones: the same tensors where they are float32, else copies.

    Args:
        stored: 1-D tensors of one type and device.
        device: where to compute, if `stored` are kept apart from it: then these are copies in any case.
    """

    def __init__(self, stored: list[torch.Tensor], device: torch.device | None = None):
        self._stored = stored
        self._flat: torch.Tensor | None = None
        self.tensors = stored
        if stored[0].dtype != torch.float32 or device is not None:
            place = stored[0].device if device is None else device
            self._flat = torch.empty(sum(map(len, stored)), dtype=torch.float32, device=place)
            self.tensors = list(self._flat.split([len(piece) for piece in stored]))
            torch._foreach_copy_(self.tensors, stored)

    def write_back(self, stochastically: bool = False, generator: torch.Generator | None = None) -> None:
        """Round the results into the stored tensors: to nearest, or (float16 only) stochastically."""
        if self._flat is None:
            return
        rounded = self._flat
        if stochastically and self._stored[0].dtype == torch.float16:
            rounded = stochastic_round(rounded, generator)
        torch._foreach_copy_(self._stored, list(rounded.split([len(piece) for piece in self._stored])))
