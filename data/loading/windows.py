"""Training samples cut from the articles of a corpus."""

from __future__ import annotations

from typing import Iterator

import numpy as np

from data.articles.corpus import PickleCorpus
from data.batches import NOTHING, SampleDataset


def windows_per_article(lengths: np.ndarray, max_len: int, stride: int, short: str = "half") -> np.ndarray:
    """Number of samples of articles of these lengths, int64.

    A sample is W = max_len + 1 ids. Articles of W ids or more give the starts 0, stride, 2 stride ... below
    length - W, then length - W. Of shorter ones those of W / 2 ids or more give one padded sample with `short` half,
    those of two ids or more with pad, and none with skip.
    """
    window = max_len + 1
    full = -((window - lengths) // stride) + 1  # ceil((length - W) / stride) + 1
    padded = {"half": 2 * lengths >= window, "pad": lengths >= 2, "skip": lengths < 0}[short]
    return np.where(lengths >= window, full, padded.astype(np.int64))


class WindowDataset(SampleDataset):
    """Windows of max_len + 1 ids over some articles of a corpus (the rule: `windows_per_article`).

    The sample of an article shorter than the window ends in `NOTHING`.

    Attributes: `dropped_articles`, `dropped_tokens` (articles too short and their ids), `padded_samples`,
    `padded_ids` (their `NOTHING`s), `uneven` (some are padded).
    """

    def __init__(
        self,
        corpus: PickleCorpus,
        max_len: int,
        stride: int,
        articles: np.ndarray | None = None,
        short: str = "half",
    ) -> None:
        """Cut the given articles (int64 indices, default all). Raises ValueError if there is not one window."""
        if max_len < 1 or stride < 1:
            raise ValueError(f"--max-len and --stride must be 1 or more, not {max_len} and {stride}")
        self.corpus, self.max_len, self.stride = corpus, max_len, stride
        self.articles = np.arange(len(corpus), dtype=np.int64) if articles is None else articles
        lengths = (corpus.offsets[1:] - corpus.offsets[:-1])[self.articles]
        counts = windows_per_article(lengths, max_len, stride, short)
        self._ends = np.cumsum(counts)  # samples up to and with each article
        self.dropped_articles = int((counts == 0).sum())
        self.dropped_tokens = int(lengths[counts == 0].sum())
        padded = (counts > 0) & (lengths <= max_len)
        self.padded_samples = int(padded.sum())
        self.padded_ids = int((max_len + 1 - lengths[padded]).sum())
        self.uneven = self.padded_samples > 0
        if len(self) == 0:
            least = {"half": f"{max_len // 2 + 1} ids, half of", "pad": "2 ids of", "skip": f"{max_len + 1} ids,"}[
                short
            ]
            raise ValueError(
                f"--train-path {corpus.path}: none of its {len(self.articles):,} articles has {least} --max-len "
                f"{max_len} + 1; lower --max-len, join them with --windows stream, pad them with --short-articles pad, "
                "or prepare them with another --documents"
            )

    def largest_id(self) -> int:
        """The largest id of the corpus."""
        return int(self.corpus.meta["largest_id"])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, indices: np.ndarray, ids: np.ndarray) -> None:
        """Write the samples `indices` (int64 (n,)) to `ids` (int32 (n, T + 1))."""
        starts, lengths = self._locate(indices)
        tokens, window = self.corpus.tokens, self.max_len + 1
        whole = lengths == window
        if whole.all():
            ids[:] = np.lib.stride_tricks.sliding_window_view(tokens, window)[starts]  # (tokens - T, W), no copy
            return
        if whole.any():
            ids[whole] = np.lib.stride_tricks.sliding_window_view(tokens, window)[starts[whole]]
        for row in np.flatnonzero(~whole):
            ids[row, : lengths[row]] = tokens[starts[row] : starts[row] + lengths[row]]
            ids[row, lengths[row] :] = NOTHING

    def _locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position in the corpus and number of ids (at most W) of each sample, int64."""
        slot = np.searchsorted(self._ends, indices, side="right")
        before = np.where(slot > 0, self._ends[slot - 1], 0)
        article = self.articles[slot]
        begin = self.corpus.offsets[article]
        length = self.corpus.offsets[article + 1] - begin
        last = np.maximum(length - (self.max_len + 1), 0)
        return begin + np.minimum((indices - before) * self.stride, last), np.minimum(length, self.max_len + 1)

    def article_ids(self) -> Iterator[np.ndarray]:
        """The ids of each of its articles, dropped ones included, int32 (length,)."""
        for article in self.articles:
            yield self.corpus.tokens[self.corpus.offsets[article] : self.corpus.offsets[article + 1]]

    def summary(self) -> str:
        """One line for the start of a run: samples, and what the corpus lost on the way."""
        used = len(self.articles) - self.dropped_articles
        return (
            f"{len(self):,} samples of {self.max_len + 1} ids (stride {self.stride}) from {used:,} articles; "
            f"{self.padded_samples:,} of them padded by {self.padded_ids:,} ids; "
            f"{self.dropped_articles:,} articles too short, {self.dropped_tokens:,} tokens dropped"
            f"{left_out(self.stride, self.max_len)}"
        )


def left_out(stride: int, max_len: int) -> str:
    """What to say of windows of max_len + 1 ids that have others between them; empty if they have none."""
    between = stride > max_len + 1
    return f"; ids between two windows are in no sample: --stride {max_len} leaves none out" if between else ""


def split_by_article(
    corpus: PickleCorpus,
    max_len: int,
    stride: int,
    val_num: int,
    seed: int,
    short: str = "half",
    val_stride: int | None = None,
) -> tuple[WindowDataset, WindowDataset]:
    """Training and validation samples that share no article.

    Whole articles, in an order drawn from the seed, are held out until they give `val_num` windows or more. Their
    windows are cut with stride `val_stride`, max_len if not given: each id is predicted once (the last window of an
    article reaches back over the one before it), so that the validation loss is a mean over text and not over overlaps.
    Raises ValueError if that leaves nothing to train on.
    """
    lengths = corpus.offsets[1:] - corpus.offsets[:-1]
    val_stride = val_stride or max_len
    counts = windows_per_article(lengths, max_len, val_stride, short)
    candidates = np.flatnonzero(counts)
    order = candidates[seeded_order(len(candidates), seed, 0)]
    totals = np.cumsum(counts[order])
    taken = int(np.searchsorted(totals, val_num)) + 1
    if taken >= len(order):
        samples = int(totals[-1]) if len(totals) else 0
        if len(order) == 1:
            raise ValueError(
                f"--val-num {val_num}: whole articles are held out, and {corpus.path} is a single one of "
                f"{samples:,} samples; prepare the text as several documents (data.prepare --documents passage), or "
                "leave --val-num out"
            )
        raise ValueError(
            f"--val-num {val_num}: whole articles are held out, and the {len(order):,} of {corpus.path} that are long "
            f"enough give only {samples:,} samples, and some must be left to train on; lower --val-num or --max-len"
        )
    held_out = np.zeros(len(corpus), dtype=bool)
    held_out[order[:taken]] = True
    train = WindowDataset(corpus, max_len, stride, np.flatnonzero(~held_out), short)
    return train, WindowDataset(corpus, max_len, val_stride, np.flatnonzero(held_out), short)


def seeded_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..count-1, int64, the same for the same (seed, epoch) on every numpy.

    Sorting the raw output of PCG64 rather than Generator.permutation, whose stream numpy may change: a run resumed
    under another version must go on in the same order.
    """
    keys = np.random.PCG64([seed & 0xFFFFFFFFFFFFFFFF, epoch]).random_raw(count)
    return np.argsort(keys, kind="stable")
