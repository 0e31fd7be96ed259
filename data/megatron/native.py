"""megatron_data.so, the inner loops of Megatron's data in C++ (data/megatron/loops.cpp). Without it numpy serves."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np

LIBRARY = Path(__file__).resolve().parents[2] / "megatron_data.so"

_LARGEST_SHUFFLE = (1 << 32) - 1  # beyond it RandomState draws 64 bits
_CODES = {np.dtype(kind): code for code, kind in ((1, "u1"), (2, "i1"), (3, "i2"), (4, "i4"), (5, "i8"), (8, "u2"))}


def shuffle(rng: np.random.RandomState, values: np.ndarray) -> None:
    """`rng.shuffle(values)` for an array (n,) of numbers, several times faster."""
    library = native_library()
    if library is None or len(values) > _LARGEST_SHUFFLE or values.itemsize not in (4, 8) or not _plain(values):
        rng.shuffle(values)
        return
    kind, key, position, *rest = rng.get_state()  # type: ignore[misc]
    key = np.array(key, dtype=np.uint32)
    position = library.megatron_shuffle(_at(key), position, _at(values), len(values), values.itemsize)
    rng.set_state((kind, key, position, *rest))


def sample_index(sizes: np.ndarray, documents: np.ndarray, max_len: int, index: np.ndarray) -> bool:
    """Fill `index` (entries, 2), int32 or int64, with where token i T lies; False if that is left to numpy.

    `sizes` int32 in tokens by document, `documents` int32 (positions,) of them one after the other.
    """
    library = native_library()
    arrays = (sizes, documents, index)
    if library is None or not all(map(_plain, arrays)) or sizes.dtype != np.int32 or documents.dtype != np.int32:
        return False
    width = index.itemsize
    arguments = (_at(sizes), _at(documents), len(documents), max_len, len(index), _at(index), width)
    return library.megatron_sample_index(*arguments) == len(index)


def read_samples(
    tokens: np.ndarray,
    sizes: np.ndarray,
    pointers: np.ndarray,
    documents: np.ndarray,
    begins: np.ndarray,
    vocabulary: int,
    ids: np.ndarray,
) -> bool:
    """Fill `ids` (n, T + 1) int32 with tokens from `begins` (n, 2) int64 on: positions in `documents` and offsets.

    False if that is left to numpy, which says what is wrong: an id may be outside 0 ... vocabulary - 1.
    """
    library, code = native_library(), _CODES.get(tokens.dtype)
    if library is None or code is None or ids.dtype != np.int32 or documents.dtype != np.int32:
        return False
    if not all(map(_plain, (tokens, sizes, pointers, documents, begins, ids))):
        return False
    corpus = (_at(tokens), len(tokens), code, _at(sizes), _at(pointers), len(sizes))
    order = (_at(documents), len(documents), _at(begins), len(begins))
    return library.megatron_read(*corpus, *order, ids.shape[1], vocabulary, _at(ids)) == 0


@functools.lru_cache(maxsize=None)
def native_library() -> Any:
    """The library with its signatures declared; None if it is not built, or not for this machine."""
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.megatron_shuffle.argtypes = [pointer, number, pointer, count, number]
        library.megatron_shuffle.restype = number
        library.megatron_sample_index.argtypes = [pointer, pointer, count, count, count, pointer, number]
        library.megatron_sample_index.restype = count
        corpus, order = [pointer, count, number, pointer, pointer, count], [pointer, count, pointer, count]
        library.megatron_read.argtypes = [*corpus, *order, count, count, pointer]
        library.megatron_read.restype = count
    except (OSError, AttributeError):
        return None
    return library


def _plain(array: np.ndarray) -> bool:
    """Whether C sees it as numpy does: contiguous and in the machine's byte order. The .idx aligns nothing."""
    return bool(array.flags.c_contiguous and array.dtype.isnative)


def _at(array: np.ndarray) -> int:
    return int(array.ctypes.data)
