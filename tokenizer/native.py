"""The native encoder, bpe_encoder.so: what it needs of a tokenizer, and the calls. Without it `tokenizers` serves."""

from __future__ import annotations

import ctypes
import functools
import threading
from pathlib import Path
from typing import Any, Sequence

import numpy as np

LIBRARY = Path(__file__).resolve().parent.parent / "bpe_encoder.so"

# What a model or pre-tokenizer of the `tokenizers` library must say for the native encoder to do the same.
_MODEL = {
    "type": "BPE",
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "byte_fallback": False,
    "ignore_merges": False,
}
GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


class NativeEncoder:
    """Encodes UTF-8 documents with a byte-level BPE that splits text as GPT-2 does. Safe to share between threads."""

    def __init__(self, byte_ids: np.ndarray, merges: np.ndarray) -> None:
        """`byte_ids` int32 (256,); `merges` int32 (n, 3): left id, right id, merged id, the first merge first."""
        self._library = _library()
        self._tables = [np.ascontiguousarray(array, dtype=np.int32) for array in (byte_ids, merges)]
        self._handle = self._library.bpe_new(*map(_at, self._tables), len(merges))
        self._lock = threading.Lock()  # the cache of words is written while encoding

    def encode(self, documents: Sequence[bytes], last: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of documents end to end, uint32, the id `last` after each (none if negative), and their counts, int64."""
        lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
        ends, counts = np.cumsum(lengths), np.empty(len(documents), dtype=np.int64)
        text = b"".join(documents)
        ids = np.empty(len(text) + len(documents), dtype=np.uint32)  # memory that is not written to is not taken
        with self._lock:
            size = self._library.bpe_encode(self._handle, text, _at(ends), len(documents), last, _at(ids), _at(counts))
        return ids[:size], counts

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process builds it from the tables in milliseconds; reading a vocabulary takes a third of a second.
        return (NativeEncoder, tuple(self._tables))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.bpe_delete(self._handle)


def native_encoder(content: dict[str, Any], byte_characters: dict[int, str]) -> NativeEncoder | None:
    """The native encoder of a tokenizer.json; None if it is not built or this tokenizer asks for something else.

    `byte_characters` is the character that stands for each byte in the vocabulary.
    """
    model = content["model"]
    if _library() is None or content.get("normalizer") or content.get("added_tokens"):
        return None
    if any(model.get(key, value) != value for key, value in _MODEL.items()):
        return None
    split = content.get("pre_tokenizer") or {}
    if any(split.get(key, value) != value for key, value in GPT2_SPLIT.items()):
        return None
    vocab = model["vocab"]
    if any(character not in vocab for character in byte_characters.values()):
        return None
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    merges = [(vocab[left], vocab[right], vocab[left + right]) for left, right in pairs]
    byte_ids = [vocab[byte_characters[byte]] for byte in range(256)]
    return NativeEncoder(np.array(byte_ids), np.array(merges, dtype=np.int32).reshape(-1, 3))


@functools.lru_cache(maxsize=None)
def _library() -> Any:
    """The library with its signatures declared; None if it is not built, or not for this machine."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.bpe_new.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        library.bpe_new.restype = ctypes.c_void_p
        library.bpe_delete.argtypes = [ctypes.c_void_p]
        library.bpe_delete.restype = None
        library.bpe_encode.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64]
        library.bpe_encode.argtypes += [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
        library.bpe_encode.restype = ctypes.c_int64
    except (OSError, AttributeError):
        return None
    return library


def _at(array: np.ndarray) -> int:
    return int(array.ctypes.data)
