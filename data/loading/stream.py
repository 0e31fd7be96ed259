"""Training samples cut from a corpus as one text, whose articles run into each other."""

from __future__ import annotations

from typing import Iterator

import numpy as np

from data.articles.corpus import PickleCorpus
from data.batches import NOTHING, SampleDataset
from data.loading.windows import left_out


class StreamDataset(SampleDataset):
    """Windows of max_len + 1 ids, `stride` ids from one to the next, over the ids of all articles in order.

    What is left behind the last whole window is dropped, or padded with `NOTHING`.

    Attributes: `dropped_ids`, `padded_ids` of that last window, `uneven` (it is padded).
    """

    def __init__(
        self,
        corpus: PickleCorpus,
        max_len: int,
        stride: int,
        last: str = "drop",
        begin: int = 0,
        end: int | None = None,
        least: int = 2,
    ) -> None:
        """Cut the ids begin..end; `last` is drop or pad, of no fewer ids than `least`: one has nothing to predict.

        Raises ValueError if there is not one window.
        """
        if max_len < 1 or stride < 1:
            raise ValueError(f"--max-len and --stride must be 1 or more, not {max_len} and {stride}")
        self.corpus, self.max_len, self.stride = corpus, max_len, stride
        self.begin, self.end = begin, len(corpus.tokens) if end is None else end
        length, window = self.end - begin, max_len + 1
        self._whole = (length - window) // stride + 1 if length >= window else 0
        start = self._whole * stride
        covered = start - stride + window if self._whole else 0
        left = max(0, length - covered)
        self.padded = last == "pad" and left > 0 and length - start >= least
        self.padded_ids = window - (length - start) if self.padded else 0
        self.dropped_ids = 0 if self.padded else left
        self.uneven = self.padded
        if len(self) == 0:
            raise ValueError(
                f"--train-path {corpus.path}: its {length:,} ids are fewer than a window of --max-len {max_len} + 1; "
                "lower --max-len, or keep the rest with --last-window pad"
            )

    def __len__(self) -> int:
        return self._whole + self.padded

    def read(self, indices: np.ndarray, ids: np.ndarray) -> None:
        """Write the samples `indices` (int64 (n,)) to `ids` (int32 (n, T + 1))."""
        window, whole = self.max_len + 1, indices < self._whole
        starts = self.begin + indices * self.stride
        if whole.any():
            ids[whole] = np.lib.stride_tricks.sliding_window_view(self.corpus.tokens, window)[starts[whole]]
        for row in np.flatnonzero(~whole):  # the last one
            rest = self.corpus.tokens[starts[row] : self.end]
            ids[row, : len(rest)], ids[row, len(rest) :] = rest, NOTHING

    def largest_id(self) -> int:
        """The largest id of the corpus."""
        return int(self.corpus.meta["largest_id"])

    def article_ids(self) -> Iterator[np.ndarray]:
        """All its ids, as one article, int32 (length,)."""
        yield self.corpus.tokens[self.begin : self.end]

    def check_document_ends(self, end_id: int) -> None:
        """Raise ValueError if articles do not end in `end_id`: they could not be told apart."""
        ends = self.corpus.offsets[1:][np.diff(self.corpus.offsets) > 0]
        wrong = np.flatnonzero(self.corpus.tokens[ends - 1] != end_id)
        if len(wrong):
            raise ValueError(
                f"--document-boundaries isolated: articles of {self.corpus.path} do not end in {end_id}, "
                "<|endoftext|>, so that --windows stream cannot tell them apart; prepare them with --document-ends end"
            )

    def summary(self) -> str:
        """One line for the start of a run: samples, and what the corpus lost on the way."""
        rest = f"the last one padded by {self.padded_ids:,} ids" if self.padded else f"{self.dropped_ids:,} ids dropped"
        return (
            f"{len(self):,} samples of {self.max_len + 1} ids (stride {self.stride}) from a stream of "
            f"{self.end - self.begin:,} ids; {rest}{left_out(self.stride, self.max_len)}"
        )
