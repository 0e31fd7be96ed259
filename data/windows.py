"""Training samples cut from the articles of a corpus."""

from __future__ import annotations

from typing import Iterator, Sequence

import numpy as np
import torch

from data.batches import empty_batch
from data.pickle_corpus import PickleCorpus

PADDING = -100  # what the loss ignores
_CHUNK = 1 << 20  # ids gathered at once


def windows_per_article(lengths: np.ndarray, max_len: int, stride: int) -> np.ndarray:
    """Number of samples of articles of these lengths, int64.

    A sample is W = max_len + 1 ids. Articles of W ids or more give the starts 0, stride, 2 stride ... below
    length - W, then length - W; articles of W / 2 to W - 1 ids give one padded sample; shorter ones none.
    """
    window = max_len + 1
    full = -((window - lengths) // stride) + 1  # ceil((length - W) / stride) + 1
    return np.where(lengths >= window, full, (2 * lengths >= window).astype(np.int64))


class WindowDataset(torch.utils.data.Dataset):
    """Windows of max_len + 1 ids over some articles of a corpus (the rule: `windows_per_article`).

    A sample is the pair (input ids (T,), labels (T,)), both int32: labels are the next ids. In the sample of an article
    shorter than the window the labels without a next id are -100 and the inputs there are 0.

    Attributes: `dropped_articles`, `dropped_tokens` (articles too short and their ids), `padded_samples`.
    """

    def __init__(self, corpus: PickleCorpus, max_len: int, stride: int, articles: np.ndarray | None = None) -> None:
        """Cut the given articles (int64 indices, default all). Raises ValueError if there is not one window."""
        if max_len < 1 or stride < 1:
            raise ValueError(f"--max-len and --stride must be 1 or more, not {max_len} and {stride}")
        self.corpus, self.max_len, self.stride = corpus, max_len, stride
        self.articles = np.arange(len(corpus), dtype=np.int64) if articles is None else articles
        lengths = (corpus.offsets[1:] - corpus.offsets[:-1])[self.articles]
        counts = windows_per_article(lengths, max_len, stride)
        self._ends = np.cumsum(counts)  # samples up to and with each article
        self.dropped_articles = int((counts == 0).sum())
        self.dropped_tokens = int(lengths[counts == 0].sum())
        self.padded_samples = int(((counts > 0) & (lengths <= max_len)).sum())
        if len(self) == 0:
            raise ValueError(
                f"--train-path {corpus.path}: none of its {len(self.articles):,} articles has "
                f"{max_len // 2 + 1} ids, half of --max-len {max_len} + 1; lower --max-len"
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = self.__getitems__([index])
        return inputs[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The stacked batch of these samples: input ids and labels (B, T). Raises IndexError."""
        starts, lengths = self._locate(np.asarray(indices, dtype=np.int64))
        inputs, labels = empty_batch(len(starts), self.max_len)
        x, y = inputs.numpy(), labels.numpy()
        tokens, window = self.corpus.tokens, self.max_len + 1
        whole = np.flatnonzero(lengths == window)
        if len(whole):
            views = np.lib.stride_tricks.sliding_window_view(tokens, window)  # (tokens - T, W), no copy
            step = max(1, _CHUNK // window)
            for first in range(0, len(whole), step):
                rows = whole[first : first + step]
                ids = views[starts[rows]]  # (rows, W)
                x[rows], y[rows] = ids[:, :-1], ids[:, 1:]
        for row in np.flatnonzero(lengths < window):
            ids = tokens[starts[row] : starts[row] + lengths[row]]
            x[row, : len(ids)], x[row, len(ids) :] = ids[: self.max_len], 0
            y[row, : len(ids) - 1], y[row, len(ids) - 1 :] = ids[1:], PADDING
        return inputs, labels

    def _locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position in the corpus and number of ids (at most W) of each sample, int64."""
        if len(indices) and not (0 <= indices.min() and indices.max() < len(self)):
            raise IndexError(f"sample index outside 0..{len(self) - 1}")
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
            f"{self.padded_samples:,} of them padded; {self.dropped_articles:,} articles too short, "
            f"{self.dropped_tokens:,} tokens dropped"
        )


def split_by_article(
    corpus: PickleCorpus, max_len: int, stride: int, val_num: int, seed: int
) -> tuple[WindowDataset, WindowDataset]:
    """Training and validation samples that share no article.

    Whole articles, in an order drawn from the seed, are held out until they give `val_num` windows or more. Their
    windows are cut with stride max_len: each id is predicted once (the last window of an article reaches back over
    the one before it), so that the validation loss is a mean over text and not over overlaps. Raises ValueError
    if that leaves nothing to train on.
    """
    lengths = corpus.offsets[1:] - corpus.offsets[:-1]
    counts = windows_per_article(lengths, max_len, max_len)
    candidates = np.flatnonzero(counts)
    order = candidates[seeded_order(len(candidates), seed, 0)]
    totals = np.cumsum(counts[order])
    taken = int(np.searchsorted(totals, val_num)) + 1
    if taken >= len(order):
        samples = int(totals[-1]) if len(totals) else 0
        raise ValueError(
            f"--val-num {val_num}: the corpus {corpus.path} gives only {samples:,} such samples, and some must be "
            "left to train on; lower --val-num or --max-len"
        )
    held_out = np.zeros(len(corpus), dtype=bool)
    held_out[order[:taken]] = True
    train = WindowDataset(corpus, max_len, stride, np.flatnonzero(~held_out))
    return train, WindowDataset(corpus, max_len, max_len, np.flatnonzero(held_out))


def seeded_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..count-1, int64, the same for the same (seed, epoch) on every numpy.

    Sorting the raw output of PCG64 rather than Generator.permutation, whose stream numpy may change: a run resumed
    under another version must go on in the same order.
    """
    keys = np.random.PCG64([seed & 0xFFFFFFFFFFFFFFFF, epoch]).random_raw(count)
    return np.argsort(keys, kind="stable")
