"""Samples made up on the fly: for benchmarks, and for trying a command line without a corpus."""

from __future__ import annotations

import numpy as np

from data.batches import SampleDataset

_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class GeneratedDataset(SampleDataset):
    """`num_samples` samples of pseudo-random ids 1..real_vocab_size-1. It holds nothing.

    A sample is the function of (seed, index) alone: the same on every host, in every process and in any order.
    """

    def __init__(self, num_samples: int, max_len: int, real_vocab_size: int, seed: int, first: int = 0) -> None:
        """`first` is the index that sample 0 has in the endless sequence, so that a second set can follow the first."""
        if num_samples < 1 or max_len < 1 or real_vocab_size < 2:
            raise ValueError(
                f"generated data need one sample, --max-len 1 and a vocabulary of 2 or more, "
                f"not {num_samples}, {max_len} and {real_vocab_size}"
            )
        self.num_samples, self.max_len, self.real_vocab_size = num_samples, max_len, real_vocab_size
        self.seed, self.first = seed, first

    def __len__(self) -> int:
        return self.num_samples

    def read(self, indices: np.ndarray, ids: np.ndarray) -> None:
        """Write the samples `indices` (int64 (n,)) to `ids` (int32 (n, T + 1))."""
        ids[:] = self._ids(indices + self.first)

    def summary(self) -> str:
        """One line for the start of a run."""
        return f"{self.num_samples:,} generated samples of {self.max_len + 1} ids 1..{self.real_vocab_size - 1}"

    def _ids(self, indices: np.ndarray) -> np.ndarray:
        """Ids (rows, T + 1) from SplitMix64 (Steele, Lea and Flood 2014) used as a hash of a counter."""
        half = (self.max_len + 2) // 2  # 64 bits make two ids
        counter = indices.astype(np.uint64)[:, None] * np.uint64(half) + np.arange(half, dtype=np.uint64)
        counter *= np.uint64(_GAMMA)
        counter += np.uint64(_mixed(self.seed & _MASK))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            counter ^= counter >> np.uint64(shift)
            counter *= np.uint64(factor)
        counter ^= counter >> np.uint64(31)
        ids = np.empty((len(indices), half * 2), dtype=np.int32)
        size = np.uint64(self.real_vocab_size - 1)
        # 32 random bits times the number of ids, shifted back: uniform to 1 in 2^32 / 50,256, no division (Lemire).
        ids[:, 1::2] = ((counter >> np.uint64(32)) * size) >> np.uint64(32)
        ids[:, 0::2] = ((counter & np.uint64(0xFFFFFFFF)) * size) >> np.uint64(32)
        ids += 1
        return ids[:, : self.max_len + 1]


def _mixed(seed: int) -> int:
    """SplitMix64's output for one state: neighbouring seeds must not give shifted copies of one sequence."""
    state = (seed + _GAMMA) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
