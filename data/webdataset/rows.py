"""Samples from rows of token ids in tar files: --train-path webdataset."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np

from data.batches import NOTHING, SampleDataset
from data.file_patterns import matching_files
from data.open_files import OpenFiles
from data.webdataset.index import row_index
from data.webdataset.tars import bad_row, row_ids


class RowTars:
    """The rows of several tar files in a row, all of one `length`."""

    def __init__(self, paths: Sequence[Path], real_vocab_size: int) -> None:
        """Open the files. Raises ValueError naming file and member for what is damaged or holds no row."""
        self.paths, self.real_vocab_size = list(paths), real_vocab_size
        self._index = row_index(self.paths)
        self._files = OpenFiles(self.paths)
        self.length = 0  # what the first row has
        self.length = len(self.row(0))

    def __len__(self) -> int:
        return int(self._index.ends[-1])

    def row(self, number: int) -> np.ndarray:
        """The ids of a row, int64 (length,).

        Raises BadData naming file and member for one that is damaged, of another length or outside the vocabulary.
        """
        index = self._index
        file = int(np.searchsorted(index.ends, number, side="right"))
        inside = number - (int(index.ends[file - 1]) if file else 0)
        raw = self._files.pread(file, int(index.starts[number]), int(index.sizes[number]))
        try:
            ids = row_ids(raw, int(index.kinds[number]))
        except ValueError as error:
            raise bad_row(self.paths[file], inside, str(error)) from error
        wrong = np.flatnonzero((ids < 0) | (ids >= self.real_vocab_size))
        problem = ""
        if len(ids) < 2 or (self.length and len(ids) != self.length):
            problem = (
                f"{len(ids):,} ids, where " + (f"{self.length:,}" if self.length else "2 or more") + " are expected"
            )
        elif len(wrong):
            problem = (
                f"token id {int(ids[wrong[0]])} at position {int(wrong[0])} is outside the model's vocabulary "
                f"0..{self.real_vocab_size - 1}; prepare the text with the model's tokenizer, or use a --model of that "
                "vocabulary"
            )
        if problem:
            raise bad_row(self.paths[file], inside, problem)
        return ids


class RowDataset(SampleDataset):
    """Some rows, cut into samples: of R ids R / T samples of T ids, the last without a label, or one of T + 1."""

    def __init__(self, tars: RowTars, max_len: int, left_out: np.ndarray, only: np.ndarray | None = None) -> None:
        """All rows but `left_out`, or `only` those (sorted row numbers, int64). Raises ValueError if T does not fit."""
        self.tars, self.max_len, self.only = tars, max_len, only
        if tars.length == max_len + 1:
            self.pieces, self._piece = 1, max_len + 1
        elif tars.length % max_len == 0:
            self.pieces, self._piece = tars.length // max_len, max_len
        else:
            fits = [str(n) for n in range(2, tars.length + 1) if tars.length % n == 0][-4:]
            raise ValueError(
                f"--max-len {max_len}: the rows of {tars.paths[0]} have {tars.length:,} ids, which are samples of "
                f"{', '.join(fits)} or {tars.length - 1}"
            )
        self._before = left_out - np.arange(len(left_out))
        self._rows = len(tars) - len(left_out) if only is None else len(only)

    def __len__(self) -> int:
        return self._rows * self.pieces

    def read(self, indices: np.ndarray, ids: np.ndarray) -> None:
        """Write the samples `indices` (int64 (n,)) to `ids` (int32 (n, T + 1)). BadData for damaged rows."""
        chosen = indices // self.pieces
        if self.only is not None:
            rows = self.only[chosen]
        else:
            rows = chosen + np.searchsorted(self._before, chosen, side="right")
        last, content = -1, np.empty(0, np.int64)
        for at, (row, piece) in enumerate(zip(rows.tolist(), (indices % self.pieces).tolist())):
            if row != last:
                last, content = row, self.tars.row(row)
            ids[at, : self._piece] = content[piece * self._piece : (piece + 1) * self._piece]
            ids[at, self._piece :] = NOTHING

    def summary(self) -> str:
        """One line for the start of a run."""
        files, shape = len(self.tars.paths), f"{self.tars.length:,} ids"
        return (
            f"{len(self):,} samples of {self._piece:,} ids from {self._rows:,} rows of {shape} in {files:,} tar "
            f"file{'s'[: files > 1]}"
        )


def open_rows(
    patterns: Sequence[str], *, max_len: int, real_vocab_size: int, val_num: int, seed: int
) -> tuple[RowDataset, RowDataset | None]:
    """Training samples, and `val_num` or a few more held out in whole rows drawn from the seed (None if it is 0).

    Raises ValueError naming flag or file for data that are missing, damaged or too few.
    """
    tars = RowTars(matching_files(patterns, "--input-files", ".tar"), real_vocab_size)
    tars.row(len(tars) - 1)  # another length or vocabulary is told now and not in the first step
    train = RowDataset(tars, max_len, np.empty(0, np.int64))
    if val_num == 0:
        return train, None
    needed = -(-val_num // train.pieces)
    if needed >= len(tars):
        raise ValueError(f"--val-num {val_num}: the tar files have {len(train):,} samples in all; lower --val-num")
    source, drawn = np.random.PCG64([seed & 0xFFFFFFFFFFFFFFFF, 0]), {}
    while len(drawn) < needed:  # the first ones drawn, whatever the number asked for
        drawn.update(dict.fromkeys((source.random_raw(256) % np.uint64(len(tars))).tolist()))
    held_out = np.array(sorted(list(drawn)[:needed]), np.int64)
    return RowDataset(tars, max_len, held_out), RowDataset(tars, max_len, held_out, held_out)
