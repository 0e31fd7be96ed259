"""LAMBADA: is the last word, or the last BPE token, of a passage predicted from what stands before it?"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

import numpy as np

from model.scoring import Item, Scorer, Scores, Stop, go_on
from tokenizer import Tokenizer

# Programs, of one input length each, that the rows are spread over: every further one saves less padding.
_LENGTHS = 4


class Row(NamedTuple):
    """One passage."""

    context: list[int]
    target: list[int]
    is_plain: bool  # context + target is what the text as a whole encodes to


def encode_rows(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[list[Row], list[list[int]]]:
    """The rows of `last-word`, and the plain encodings, of which `last-bpe` takes the last token.

    The last word follows the last white space, of which the context ends before. It is encoded alone, with a space
    before it (Megatron-LM's strict variant).
    """
    texts = [text.strip() for text in texts]
    parts = [text.rsplit(None, 1) for text in texts]
    plain = [list(ids) for ids in tokenizer.encode_batch(texts)]
    contexts = tokenizer.encode_batch([context for context, _ in parts])
    words = tokenizer.encode_batch([" " + word for _, word in parts])
    rows = [
        Row(list(context), list(word), [*context, *word] == whole)
        for context, word, whole in zip(contexts, words, plain)
    ]
    return rows, plain


def item_of(context: Sequence[int], target: Sequence[int], window: int) -> Item:
    """Score `target` after `context`. The last `window` inputs are kept, so that a long context loses its beginning."""
    tokens = [*context, *target]
    inputs = np.asarray(tokens[:-1][-window:], np.int32)
    return Item(inputs, np.arange(len(inputs) - len(target), len(inputs)), np.asarray(target, np.int32))


def bucket_lengths(lengths: Sequence[int], buckets: int = _LENGTHS) -> list[int]:
    """Up to `buckets` input lengths such that items, each in the shortest that holds it, have the least padding.

    Dynamic programming over the distinct lengths, least total first.
    """
    values, counts = np.unique(np.asarray(lengths), return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # best[j]: (cost, lengths chosen) for the j shortest distinct lengths, with one bucket more in each round
    best = [(0.0, ())] + [(math.inf, ())] * len(values)
    for _ in range(min(buckets, len(values))):
        best = [best[0]] + [
            min(
                (best[i][0] + float(below[j] - below[i]) * float(values[j - 1]), best[i][1] + (int(values[j - 1]),))
                for i in range(j)
            )
            for j in range(1, len(values) + 1)
        ]
    return list(best[-1][1])


def score_bucketed(scorer: Scorer, items: Sequence[Item], stop: Stop = go_on, buckets: int = _LENGTHS) -> Scores:
    """Score items of different lengths, each in a program of about its own length; in the order of `items`.

    `stop` as for Scorer.score.
    """
    found = Scores.empty(len(items), max(len(item.targets) for item in items))
    lengths = np.asarray([len(item.ids) for item in items])
    before = shorter = 0
    for length in bucket_lengths(lengths, buckets):
        chosen = np.flatnonzero((lengths > shorter) & (lengths <= length))
        width = min(length, found.losses.shape[1])
        part = scorer.score([items[i] for i in chosen], length, width, lambda done, before=before: stop(before + done))
        found.counts[chosen] = part.counts
        found.losses[chosen, :width], found.hits[chosen, :width] = part.losses, part.hits
        before, shorter = before + len(chosen), length
        if stop(before):
            break
    return found
