"""Samples made up on the fly: for benchmarks, and for trying a command line without a corpus."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import torch

from data.batches import empty_batch

_CHUNK = 256 * 1024  # ids worked on at once, so that the arrays between the steps stay in the cache
_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class GeneratedDataset(torch.utils.data.Dataset):
    """`num_samples` samples of pseudo-random ids 1..real_vocab_size-1. It holds nothing.

    A sample is the function of (seed, index) alone: the same on every host, in every process and in any order.
    A sample is the pair (input ids (T,), labels (T,)), both int32: of T + 1 ids the first T and the last T.
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

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = self.__getitems__([index])
        return inputs[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The stacked batch of these samples: input ids and labels (B, T). Raises IndexError."""
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) and not (0 <= wanted.min() and wanted.max() < self.num_samples):
            raise IndexError(f"sample index outside 0..{self.num_samples - 1}")
        inputs, labels = empty_batch(len(wanted), self.max_len)
        step = max(1, _CHUNK // (self.max_len + 1))
        for start in range(0, len(wanted), step):
            ids = self._ids(wanted[start : start + step] + self.first)  # (rows, T + 1)
            inputs.numpy()[start : start + step] = ids[:, :-1]
            labels.numpy()[start : start + step] = ids[:, 1:]
        return inputs, labels

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
