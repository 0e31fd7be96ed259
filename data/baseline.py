"""What a model that knows only how often each token occurs would reach: the loss to beat."""

from __future__ import annotations

from typing import Iterable, Union

import numpy as np

Ids = Union[np.ndarray, Iterable[np.ndarray]]

_CHUNK = 1 << 24  # np.bincount works on int64: a copy of the ids, bounded


def unigram_cross_entropy(train_tokens: Ids, held_out_tokens: Ids, vocab: int) -> float:
    """Cross-entropy in nats a token of held-out ids under the add-one smoothed frequencies of the training ids.

    Both are one array of ids or several, of any shape; ids below 0 (labels that are padding) do not count.
    p(t) = (count(t) + 1) / (N + vocab). Raises ValueError for ids of `vocab` or more, or if nothing is held out.
    """
    train, held_out = _counts(train_tokens, vocab), _counts(held_out_tokens, vocab)
    if held_out.sum() == 0:
        raise ValueError("no held-out token to compute a cross-entropy of; hold out more with --val-num")
    log_p = np.log(train + 1.0) - np.log(float(train.sum() + vocab))
    return float(-(held_out * log_p).sum() / held_out.sum())


def _counts(ids: Ids, vocab: int) -> np.ndarray:
    counts = np.zeros(vocab, dtype=np.int64)
    for array in [ids] if hasattr(ids, "reshape") else ids:
        flat = np.asarray(array).reshape(-1)
        for start in range(0, len(flat), _CHUNK):
            part = flat[start : start + _CHUNK]
            part = part[part >= 0]
            if len(part) and int(part.max()) >= vocab:
                raise ValueError(f"token id {int(part.max())} is outside the vocabulary 0..{vocab - 1}")
            counts += np.bincount(part, minlength=vocab)
    return counts
