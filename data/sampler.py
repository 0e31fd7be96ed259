"""The order of training samples, with a position that a checkpoint can keep."""

from __future__ import annotations

from typing import Iterator

import torch

from data.windows import seeded_order

_CHUNK = 1 << 16  # indices turned into Python ints at once


class ResumableSampler(torch.utils.data.Sampler):
    """All samples once an epoch, in a global permutation drawn from (seed, epoch).

    `len` is what is left of the epoch. Dropping the end that fills no combined batch is the DataLoader's.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError(f"a sampler needs one sample or more, not {num_samples}")
        self.num_samples, self.seed = num_samples, seed
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many of its samples have been consumed already. Raises ValueError."""
        if epoch < 0 or not 0 <= start <= self.num_samples:
            raise ValueError(
                f"epoch {epoch} at sample {start} does not exist: {self.num_samples} samples an epoch; "
                "the checkpoint is of another run"
            )
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.num_samples - self.start

    def __iter__(self) -> Iterator[int]:
        order = seeded_order(self.num_samples, self.seed, self.epoch)[self.start :]
        for first in range(0, len(order), _CHUNK):
            yield from order[first : first + _CHUNK].tolist()
