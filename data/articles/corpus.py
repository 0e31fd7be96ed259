"""A corpus `.pkl` as flat arrays that are mapped, not loaded: built once, then opened in no time and no memory."""

from __future__ import annotations

import array
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from data.articles.pickle_file import read_articles
from data.cache_folder import cache_folder, map_array, remove_others

_KIND = "cache-v2"  # the number is that of the format
_INT32_MAX = 2**31 - 1


class PickleCorpus:
    """Articles end to end. Open one with `open_corpus`.

    `tokens` int32 (ids of the corpus,), `offsets` int64 (articles + 1,); article a is
    tokens[offsets[a]:offsets[a + 1]].
    """

    def __init__(self, path: Path, cache: Path) -> None:
        """Map the arrays of a cache folder. Raises ValueError if they are damaged."""
        self.path, self.cache = path, cache
        try:
            self.meta: dict[str, int] = json.loads((cache / "meta.json").read_text(encoding="utf-8"))
            self.tokens, self.offsets = (map_array(cache / name) for name in ("tokens.npy", "offsets.npy"))
            # The ids themselves would take a minute for 50 GB. All that says where and how many they are is checked.
            checksum = self.meta.pop("crc32")
            whole = checksum == _checksum(self.meta, self.offsets)
            whole = whole and (self.tokens.dtype, self.tokens.shape) == (np.dtype("<i4"), (self.meta["tokens"],))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{cache}: damaged cache ({error}); remove that folder and start again") from error
        if not whole:
            raise ValueError(f"{cache}: damaged cache (the checksum differs); remove that folder and start again")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader process that is spawned maps the files itself; pickling the arrays would copy the corpus.
        return (PickleCorpus, (self.path, self.cache))

    def check_ids(self, real_vocab_size: int) -> None:
        """Raise ValueError naming the first article with an id outside 0..real_vocab_size-1."""
        if self.meta["largest_id"] < real_vocab_size:
            return
        step = 1 << 24
        for start in range(0, len(self.tokens), step):
            outside = np.flatnonzero(self.tokens[start : start + step] >= real_vocab_size)
            if len(outside):
                position = start + int(outside[0])
                article = int(np.searchsorted(self.offsets, position, side="right")) - 1
                raise _outside(self.path, article, int(self.tokens[position]), real_vocab_size)


def _outside(path: Path, article: int, token_id: int, real_vocab_size: int) -> ValueError:
    return ValueError(
        f"{path}, article {article}: token id {token_id} is outside the model's vocabulary "
        f"0..{real_vocab_size - 1}; preprocess the text with the model's tokenizer, or use a --model of that vocabulary"
    )


def open_corpus(path: str | Path, real_vocab_size: int) -> PickleCorpus:
    """Open a corpus `.pkl`, building its cache if there is none for this size, time and format.

    The cache is a folder beside the file, or in the temporary folder where that is read-only. Several processes may
    open the same file at once. Raises ValueError naming file and article for anything but lists of lists of ids
    below `real_vocab_size`, leaving nothing behind, and RuntimeError with a HINT when the cache cannot be written.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"--train-path {path}: {error.strerror}; give the .pkl of a corpus") from error
    if not path.is_file():
        raise ValueError(f"--train-path {path}: not a file; give the .pkl of a corpus")
    identity = f"{stat.st_size}-{stat.st_mtime_ns}"
    cache = cache_folder(path, _KIND, identity, lambda work: _write_arrays(path, work, real_vocab_size))
    remove_others(path, cache, _KIND)
    corpus = PickleCorpus(path, cache)
    corpus.check_ids(real_vocab_size)
    return corpus


def _write_arrays(path: Path, folder: Path, real_vocab_size: int) -> None:
    offsets = array.array("q", [0])
    largest = -1
    with (folder / "tokens.npy").open("wb") as file:
        file.write(_npy_header("<i4", 0))  # the length is known at the end
        for number, ids in enumerate(read_articles(path)):
            if len(ids):
                low, high = int(ids.min()), int(ids.max())
                if low < 0 or high > _INT32_MAX:
                    raise ValueError(
                        f"{path}, article {number}: {low if low < 0 else high} is not a token id; make the file again "
                        "with data/wikipedia_preprocess.py"
                    )
                if high >= real_vocab_size:
                    raise _outside(path, number, int(ids[ids >= real_vocab_size][0]), real_vocab_size)
                largest = max(largest, high)
            file.write(ids.astype("<i4").tobytes())
            offsets.append(offsets[-1] + len(ids))
        if largest < 0:
            raise ValueError(f"{path}: no token in {len(offsets) - 1} articles; give a corpus with text")
        file.seek(0)
        file.write(_npy_header("<i4", offsets[-1]))
    with (folder / "offsets.npy").open("wb") as file:
        file.write(_npy_header("<i8", len(offsets)))
        file.write(np.asarray(offsets, dtype="<i8").tobytes())
    meta = {"articles": len(offsets) - 1, "tokens": offsets[-1], "largest_id": largest}
    checksum = _checksum(meta, np.asarray(offsets, dtype="<i8"))
    (folder / "meta.json").write_text(json.dumps({**meta, "crc32": checksum}), encoding="utf-8")


def _checksum(meta: dict[str, int], offsets: np.ndarray) -> int:
    return zlib.crc32(
        f"{json.dumps(meta, sort_keys=True)} {offsets.dtype} {offsets.shape}".encode(), zlib.crc32(offsets)
    )


def _npy_header(descr: str, length: int) -> bytes:
    """The .npy header (version 1.0) of a vector, always 128 bytes, so that it can be written again in place."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({length},), }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode("ascii") + b"\n"
