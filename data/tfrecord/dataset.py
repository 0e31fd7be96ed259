"""Training and held-out samples of TFRecord files."""

from __future__ import annotations

from typing import Iterator, Sequence

import numpy as np

from data.batches import SampleDataset
from data.file_patterns import matching_files
from data.tfrecord.files import TFRecordFiles

_NEIGHBOURS = 64  # records read at once in search of the ends of an article


class TFRecordDataset(SampleDataset):
    """Some records of TFRecord files, a sample each."""

    def __init__(self, files: TFRecordFiles, left_out: np.ndarray, only: np.ndarray | None = None) -> None:
        """All records but `left_out`, or `only` those (both sorted record numbers, int64)."""
        self.files, self.only, self.max_len = files, only, files.max_len
        # Of the sorted numbers that are left out, the j-th has left_out[j] - j records before it that are not.
        self._before = left_out - np.arange(len(left_out))
        self._count = len(files) - len(left_out) if only is None else len(only)

    def __len__(self) -> int:
        return self._count

    def read(self, indices: np.ndarray, ids: np.ndarray) -> None:
        """Write the samples `indices` (int64 (n,)) to `ids` (int32 (n, T + 1)). BadData for damaged records."""
        if self.only is not None:
            records = self.only[indices]
        else:
            records = indices + np.searchsorted(self._before, indices, side="right")
        self.files.read(records, ids)

    def summary(self) -> str:
        """One line for the start of a run."""
        count = len(self.files.paths)
        return f"{len(self):,} samples of {self.files.max_len + 1} ids from {count:,} TFRecord file{'s'[: count > 1]}"


def open_tfrecords(
    patterns: Sequence[str], *, max_len: int, real_vocab_size: int, val_num: int, seed: int
) -> tuple[TFRecordDataset, TFRecordDataset | None]:
    """Training and held-out samples (None if `val_num` is 0) of the files of --tfrecord-path.

    Raises ValueError naming flag or file for data that are missing, damaged, empty or too few.
    """
    files = TFRecordFiles(matching_files(patterns), max_len, real_vocab_size)
    files.read(np.array([0, len(files) - 1]))  # another length or vocabulary is told now and not in the first step
    if files.scanned:
        print(
            f"no index beside {files.scanned[0]}{' and others' * (len(files.scanned) > 1)}: went through "
            f"{len(files.scanned)} files; with the indexes of tfrecord.tools.tfrecord2idx it is faster"
        )
    if val_num == 0:
        return TFRecordDataset(files, np.empty(0, np.int64)), None
    left_out, held_out = _held_out(files, val_num, seed)
    return TFRecordDataset(files, left_out), TFRecordDataset(files, left_out, held_out)


def _held_out(files: TFRecordFiles, val_num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Records to leave out of training, and those of them to validate on, `val_num` or a few more; both sorted.

    Neighbours in a file that share text are windows over one article, and stay together: drawn from the seed, a
    record is taken with its whole article. Of the article's windows those about max_len apart are validated
    on, so that an id is predicted once and not once for every window over it. Raises ValueError if that leaves nothing
    to train on.
    """
    total = len(files)
    left_out: set[int] = set()
    held_out: list[int] = []
    if val_num < total:
        for record in _draws(total, seed):
            if len(held_out) >= val_num or len(left_out) == total:
                break
            if record not in left_out:
                first, starts = _article(files, record)
                left_out.update(range(first, first + len(starts)))
                held_out += [first + place for place in _spaced(starts, files.max_len)]
    if len(left_out) == total or len(held_out) < val_num:
        raise ValueError(
            f"--val-num {val_num}: the TFRecord files have {total:,} records, windows over one article held out "
            "together, and some must be left to train on; lower --val-num"
        )
    return np.array(sorted(left_out), np.int64), np.array(sorted(held_out), np.int64)


def _draws(total: int, seed: int) -> Iterator[int]:
    """Record numbers without end; not a permutation, which would have all of them in memory for a few."""
    source = np.random.PCG64([seed & 0xFFFFFFFFFFFFFFFF, 0])
    while True:
        yield from (source.random_raw(1024) % np.uint64(total)).tolist()


def _article(files: TFRecordFiles, record: int) -> tuple[int, np.ndarray]:
    """The first record of the article that a record is of, and where each of its windows starts in it, int64 (n,)."""
    file = int(np.searchsorted(files.ends, record, side="right"))
    begin, end = (int(files.ends[file - 1]) if file else 0), int(files.ends[file])
    first, steps = record, []  # steps from window to window
    while first > begin:  # backwards, a block of neighbours at a time
        low = max(begin, first - _NEIGHBOURS)
        rows = files.read(np.arange(low, first + 1))
        shifts = [_shift(a, b) for a, b in zip(rows, rows[1:])]
        related = len(shifts)
        while related and shifts[related - 1]:
            related -= 1
        steps[:0] = shifts[related:]
        first -= len(shifts) - related
        if related:
            break
    last = record
    while last + 1 < end:
        high = min(end, last + 1 + _NEIGHBOURS)
        rows = files.read(np.arange(last, high))
        shifts = [_shift(a, b) for a, b in zip(rows, rows[1:])]
        related = shifts.index(0) if 0 in shifts else len(shifts)
        steps += shifts[:related]
        last += related
        if related < len(shifts):
            break
    return first, np.concatenate([[0], np.cumsum(steps, dtype=np.int64)])


def _shift(one: np.ndarray, other: np.ndarray) -> int:
    """By how many ids the window `other` is further on in the same text than `one`; 0 if they share none.

    A few shared ids are chance, or windows that meet: then 0 too.
    """
    window = len(one)
    least = min(16, max(2, window // 8))
    for shift in np.flatnonzero(one[1 : window - least + 1] == other[0]) + 1:
        if np.array_equal(one[shift:], other[: window - shift]):
            return int(shift)
    return 0


def _spaced(starts: np.ndarray, max_len: int) -> list[int]:
    """Of windows with these starts, as few as leave no gap: each at most max_len after the one before; and the last."""
    chosen = [0]
    while chosen[-1] < len(starts) - 1:
        within = int(np.searchsorted(starts, starts[chosen[-1]] + max_len, side="right")) - 1
        chosen.append(max(within, chosen[-1] + 1))
    return chosen
