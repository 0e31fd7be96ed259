"""The order of training samples, with a position that a checkpoint can keep."""

from __future__ import annotations

from typing import Iterator, NamedTuple, Sequence

import numpy as np
import torch

from data.loading.windows import seeded_order

_CHUNK = 1 << 16  # indices turned into Python ints at once


class Shard(NamedTuple):
    """What one of several processes takes: of every `ranks` x `block` samples in order the `rank`-th `block`.

    A call takes `blocks` of them on each rank: together the samples, and in the order, that one process would take.
    Every sample goes to one rank. What is left of an epoch and fills no such call is left out on all ranks.
    """

    rank: int = 0
    ranks: int = 1
    block: int = 1
    blocks: int = 1

    @property
    def group(self) -> int:
        """Samples that all ranks together take in a call."""
        return self.ranks * self.own

    @property
    def own(self) -> int:
        """Samples that each rank takes in a call."""
        return self.block * self.blocks

    def of(self, order: np.ndarray) -> np.ndarray:
        """This rank's part of an order (n,)."""
        if self.ranks == 1:
            return order
        whole = len(order) // self.group * self.group
        return order[:whole].reshape(-1, self.ranks, self.block)[:, self.rank].reshape(-1)

    def others(self) -> list[Shard]:
        """Those of the other ranks."""
        return [self._replace(rank=rank) for rank in range(self.ranks) if rank != self.rank]


ALONE = Shard()


class ResumableSampler(torch.utils.data.Sampler):
    """All samples once an epoch, in a global permutation drawn from (seed, epoch).

    `len` is what is left of the epoch for this rank. Dropping the end that fills no combined batch is the DataLoader's.
    The permutation takes 24 bytes a sample while it is drawn, and 8 afterwards.
    After `share`, forked processes see what `set_epoch` chooses.
    """

    def __init__(self, num_samples: int, seed: int, shard: Shard = ALONE) -> None:
        if num_samples < 1:
            raise ValueError(f"a sampler needs one sample or more, not {num_samples}")
        self.num_samples, self.seed, self.shard = num_samples, seed, shard
        self._position = torch.zeros(2, dtype=torch.int64)  # epoch, start

    @property
    def epoch(self) -> int:
        return int(self._position[0])

    @property
    def start(self) -> int:
        return int(self._position[1])

    def share(self) -> None:
        """Keep the position in shared memory, for a data loader that iterates the sampler in another process."""
        self._position.share_memory_()

    @property
    def samples_an_epoch(self) -> int:
        """Of all ranks together."""
        return self.num_samples

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many of its samples all ranks have consumed already. Raises ValueError."""
        if epoch < 0 or not 0 <= start <= self.samples_an_epoch:
            raise ValueError(
                f"epoch {epoch} at sample {start} does not exist: {self.samples_an_epoch} samples an epoch; "
                "the checkpoint is of another run"
            )
        self._position.copy_(torch.tensor([epoch, start]))

    def __len__(self) -> int:
        left = self.samples_an_epoch - self.start
        return left if self.shard.ranks == 1 else left // self.shard.group * self.shard.own

    def __iter__(self) -> Iterator[int]:
        order = self.shard.of(self.left())
        for first in range(0, len(order), _CHUNK):
            yield from order[first : first + _CHUNK].tolist()

    def left(self) -> Sequence[int]:
        """What is left of the epoch, of all ranks together: an array int64, or a range."""
        return seeded_order(self.num_samples, self.seed, self.epoch)[self.start :]


class OrderedSampler(ResumableSampler):
    """The samples of a data set that has its order, over all passes: 0, 1, 2, ...

    An epoch is as many groups of the shard as one pass has whole ones, and the next epoch goes on with the very next
    sample. Any position is found at once.
    """

    def __init__(self, num_samples: int, samples_a_pass: int, shard: Shard = ALONE) -> None:
        super().__init__(num_samples, 0, shard)
        self._samples_an_epoch = max(1, samples_a_pass // shard.group) * shard.group

    @property
    def samples_an_epoch(self) -> int:
        """Of all ranks together."""
        return self._samples_an_epoch

    def left(self) -> range:
        """What is left of the epoch, of all ranks together."""
        begin = self.epoch * self.samples_an_epoch
        return range(begin + self.start, min(begin + self.samples_an_epoch, self.num_samples))

    def __len__(self) -> int:
        left = len(self.left())
        return left if self.shard.ranks == 1 else left // self.shard.group * self.shard.own

    def __iter__(self) -> Iterator[int]:
        order, step = self.left(), self.shard.group * max(1, _CHUNK // self.shard.group)
        for first in range(0, len(order), step):
            part = order[first : first + step]
            yield from self.shard.of(np.arange(part.start, part.stop)).tolist()
