"""MinHash signatures of documents: how similar two are, from 256 numbers each, and an index of those seen."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

PERMUTATIONS = 256
_SHINGLE = 5  # neighbouring token ids
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
# Chances to miss a pair just at the threshold, together less than 5 %: it shares no band, or its estimate is too low.
_NO_BAND, _LOW_ESTIMATE = 0.015, 0.03


def minhash_signatures(ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """MinHash (Broder 1997) over the sets of 5 neighbouring ids of each document, uint32 (documents, 256).

    A document shorter than that is one set of all its ids.
    """
    rows = []
    ends = np.cumsum(counts)
    for begin, end in zip((ends - counts).tolist(), ends.tolist()):
        document = ids[begin:end].astype(np.uint64)
        windows = np.lib.stride_tricks.sliding_window_view(document, min(_SHINGLE, len(document)))
        hashes = np.zeros(len(windows), dtype=np.uint64)
        for column in windows.T:
            hashes = (hashes ^ (column + np.uint64(1))) * _FACTOR
            hashes ^= hashes >> np.uint64(32)
        sketch = empty_sketch().copy()
        sketch.update_batch(np.unique(hashes & np.uint64(0xFFFFFFFF)).tolist())
        rows.append(sketch.hashvalues.astype(np.uint32))
    return np.array(rows, dtype=np.uint32).reshape(len(rows), PERMUTATIONS)


@functools.lru_cache(maxsize=None)
def empty_sketch() -> Any:
    """The MinHash of no elements, to copy: its permutations take time to draw. Elements are integers below 2^32."""
    import datasketch

    return datasketch.MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)


def bands(threshold: float) -> tuple[int, int]:
    """Number of bands and rows in each: the longest that a pair of this similarity misses in 1.5 % of cases at most.

    Two signatures agree in a row with the probability s of their documents' similarity, in a band of r rows with s^r,
    and in none of b bands with (1 - s^r)^b (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4).
    """
    fitting = [1]
    for rows in range(2, PERMUTATIONS + 1):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= _NO_BAND:
            fitting.append(rows)
    return PERMUTATIONS // fitting[-1], fitting[-1]


def least_agreement(threshold: float) -> int:
    """Agreeing rows from which two documents count as similar: a pair at the threshold has fewer in 3 % of cases.

    The rows that agree are binomial (256, similarity).
    """
    below, agreeing = 0.0, 0
    while True:
        below += math.exp(
            math.lgamma(PERMUTATIONS + 1)
            - math.lgamma(agreeing + 1)
            - math.lgamma(PERMUTATIONS - agreeing + 1)
            + agreeing * math.log(threshold)
            + (PERMUTATIONS - agreeing) * math.log1p(-threshold)
        )
        if below > _LOW_ESTIMATE:
            return agreeing
        agreeing += 1


class SimilarityIndex:
    """Signatures of documents by their bands; those that share one are compared whole.

    Memory: 1 KB a document for its signature and some hundred bytes for each band.
    """

    def __init__(self, threshold: float) -> None:
        import datasketch

        self._least = least_agreement(threshold)
        self._bands = datasketch.MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
        self._signatures = np.empty((1024, PERMUTATIONS), np.uint32)
        self._count = 0

    def add(self, signature: np.ndarray) -> bool:
        """Keep a signature, uint32 (256,), unless one like it is there. Whether it was kept."""
        sketch = empty_sketch().copy()
        sketch.hashvalues = signature.astype(sketch.hashvalues.dtype)
        candidates = self._bands.query(sketch)
        if candidates:
            agreeing = (self._signatures[candidates] == signature).sum(axis=1)
            if agreeing.max() >= self._least:
                return False
        if self._count == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._signatures[self._count] = signature
        self._bands.insert(self._count, sketch, check_duplication=False)
        self._count += 1
        return True
