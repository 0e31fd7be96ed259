"""MinHash signatures of documents: how similar two are, from 128 numbers each."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

PERMUTATIONS = 128
_SHINGLE = 5  # neighbouring token ids
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def minhash_signatures(ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """MinHash (Broder 1997) over the sets of 5 neighbouring ids of each document, uint32 (documents, 128).

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
