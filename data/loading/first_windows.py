"""The beginning of each article as a sample: fast, and not what perplexities are computed on."""

from __future__ import annotations

from typing import Iterator

import numpy as np

from data.articles.corpus import PickleCorpus
from data.batches import SampleDataset

PADDING = 0  # an id like any other: it counts in the loss


class FirstWindowDataset(SampleDataset):
    """Of each article the first max_len + 1 ids, shorter ones filled up with the id 0.

    This is how lines come out of a batch tokenizer that truncates and pads (the --fast loader of lm-finetuning). The
    rest of long articles is never seen, and predicting the padding is easy: losses are too low, and nobody else's.
    """

    approximate = "--windows first: the rest of long articles is left out, and padding counts in the loss"

    def __init__(self, corpus: PickleCorpus, max_len: int, articles: np.ndarray | None = None) -> None:
        """The given articles (int64 indices, default all) that have an id. Raises ValueError if none has."""
        self.corpus, self.max_len = corpus, max_len
        lengths = np.diff(corpus.offsets)
        self.articles = np.arange(len(corpus), dtype=np.int64) if articles is None else articles
        self.articles = self.articles[lengths[self.articles] > 0]
        if len(self.articles) == 0:
            raise ValueError(f"--train-path {corpus.path}: has no article with an id in it")
        lengths = lengths[self.articles]
        self.dropped_ids = int(np.maximum(lengths - (max_len + 1), 0).sum())
        self.padded_ids = int(np.maximum(max_len + 1 - lengths, 0).sum())

    def __len__(self) -> int:
        return len(self.articles)

    def read(self, indices: np.ndarray, ids: np.ndarray) -> None:
        """Write the samples `indices` (int64 (n,)) to `ids` (int32 (n, T + 1))."""
        ids[:] = PADDING
        for row, article in enumerate(self.articles[indices].tolist()):
            begin, end = int(self.corpus.offsets[article]), int(self.corpus.offsets[article + 1])
            first = self.corpus.tokens[begin : min(end, begin + self.max_len + 1)]
            ids[row, : len(first)] = first

    def largest_id(self) -> int:
        """The largest id of the corpus."""
        return int(self.corpus.meta["largest_id"])

    def article_ids(self) -> Iterator[np.ndarray]:
        """The ids of each article, int32 (length,)."""
        for article in self.articles:
            yield self.corpus.tokens[self.corpus.offsets[article] : self.corpus.offsets[article + 1]]

    def summary(self) -> str:
        """One line for the start of a run."""
        return (
            f"{len(self):,} samples of {self.max_len + 1} ids, the beginnings of as many articles: "
            f"{self.dropped_ids:,} ids left out, {self.padded_ids:,} of padding"
        )
