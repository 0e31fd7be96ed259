"""Megatron-LM's memory-mapped corpus: `<prefix>.bin` holds token ids, `<prefix>.idx` says where each document is.

The layout of the .idx, little-endian: 9 bytes MMIDIDX\\0\\0, uint64 version (1), uint8 code of the integer type,
uint64 number of sequences S, uint64 length of the document index, int32 sizes (S,) in tokens, int64 pointers (S,) in
bytes, int64 document index. A sequence is a document here, as GPT-2's preprocessing and Megatron's GPTDataset have it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Iterator

import numpy as np

from corpora.atomic import atomic_files
from data.bad_data import BadData

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")  # packed: 34 bytes

# 6 and 7 are floats, in one order or the other depending on the writer's age: never token ids.
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}

_BLOCK = 1 << 22  # entries of the .idx checked at once: some 50 MB
_INT32_MAX = 2**31 - 1


def smallest_dtype(vocab_size: int) -> np.dtype:
    """The type this project writes ids of a vocabulary in: uint16 where every id fits (65,536 entries), else int32.

    Megatron-LM's own rule (megatron-core 0.16: DType.optimal_dtype) takes int32 from 65,500 entries on, so that its
    files of such a vocabulary are larger; the .idx names the type, and either side reads the other's.
    """
    return np.dtype(np.uint16) if vocab_size <= 1 << 16 else np.dtype(np.int32)


class MmapCorpus:
    """Documents of a `.bin` and its `.idx`, mapped, not read.

    `tokens` (ids of the corpus,) in the file's own type, `sizes` int32 (D,) in tokens and `pointers` int64 (D,) in
    bytes: document d is tokens[p : p + sizes[d]] for p = pointers[d] / bytes of an id.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Map the two files. Raises ValueError naming file and position if they are damaged or of two corpora."""
        self.prefix = str(prefix)
        self.bin_path, self.idx_path = Path(self.prefix + ".bin"), Path(self.prefix + ".idx")
        bin_size, idx_size = (_file_size(path, self.prefix) for path in (self.bin_path, self.idx_path))
        with self.idx_path.open("rb") as file:
            dtype, sequences, documents = _read_header(file, self.idx_path, idx_size)
        # As plain arrays: slices of numpy.memmap cost several times more.
        self._idx = np.memmap(self.idx_path, dtype=np.uint8, mode="r").view(np.ndarray)
        at = HEADER.size
        self.sizes = self._idx[at : at + 4 * sequences].view("<i4")
        self.pointers = self._idx[at + 4 * sequences : at + 12 * sequences].view("<i8")
        self._documents = self._idx[at + 12 * sequences :].view("<i8")
        assert len(self._documents) == documents
        self.dtype = dtype
        total = self._check_pointers(bin_size)
        if total == 0:
            raise ValueError(f"{self.idx_path}: no token in {sequences:,} documents; give a corpus with text")
        self.tokens = np.memmap(self.bin_path, dtype=dtype.newbyteorder("<"), mode="r").view(np.ndarray)
        # Of the mapped files, whatever has their names by then.
        self._open = [(os.open(str(path), os.O_RDONLY), path) for path in (self.bin_path, self.idx_path)]
        self._whole = [os.fstat(descriptor).st_size for descriptor, _ in self._open]

    def __del__(self) -> None:
        for descriptor, _ in self.__dict__.get("_open", []):
            os.close(descriptor)

    def check_size(self) -> None:
        """Raise BadData if a file has become shorter since: reading what is mapped and gone ends the process."""
        for (descriptor, path), whole in zip(self._open, self._whole):
            size = os.fstat(descriptor).st_size
            if size < whole:
                raise BadData(
                    f"{path}: {size:,} bytes, where there were {whole:,} when it was opened; it is being overwritten: "
                    f"make {self.prefix} again with data/preprocess_megatron.py"
                )

    def __len__(self) -> int:
        return len(self.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader process that is spawned maps the files itself; pickling the arrays would copy the corpus.
        return (MmapCorpus, (self.prefix,))

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """Positions in `tokens` where these documents begin, int64."""
        return self.pointers[documents] // self.dtype.itemsize

    def document(self, number: int) -> np.ndarray:
        """The ids of one document, in the file's own type. Raises IndexError."""
        start = int(self.pointers[number]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.sizes[number])]

    def count_tokens(self, documents: int) -> int:
        """Tokens in the first `documents` documents."""
        if documents == 0:
            return 0
        return int(self.pointers[documents - 1]) // self.dtype.itemsize + int(self.sizes[documents - 1])

    def _check_pointers(self, bin_size: int) -> int:
        """Sizes and pointers tile the .bin from its first byte to its last. Returns the number of tokens."""
        width, expected = self.dtype.itemsize, 0
        for first in range(0, len(self.sizes), _BLOCK):
            sizes = self.sizes[first : first + _BLOCK].astype(np.int64)
            pointers = self.pointers[first : first + _BLOCK]
            ends = np.cumsum(sizes)
            ends *= width
            ends += expected
            begins = ends - sizes * width
            wrong = np.flatnonzero((sizes < 0) | (pointers != begins))
            if len(wrong):
                number = first + int(wrong[0])
                raise ValueError(
                    f"{self.idx_path}: document {number} is said to have {int(self.sizes[number])} tokens from byte "
                    f"{int(self.pointers[number])} on, where byte {int(begins[wrong[0]])} is next; the file is "
                    f"damaged: make {self.prefix} again with data/preprocess_megatron.py"
                )
            expected = int(ends[-1])
        if expected != bin_size:
            raise ValueError(
                f"{self.bin_path}: {bin_size:,} bytes, where {self.idx_path.name} describes {expected:,} ({width} a "
                f"token); {'it is cut off, or the' if bin_size < expected else 'the'} two files are not of one corpus"
            )
        return expected // width


def _file_size(path: Path, prefix: str) -> int:
    try:
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ValueError(
            f"--data-prefix {prefix}: {path}: {error.strerror}; give the path of <prefix>.bin and <prefix>.idx without "
            "its ending"
        ) from error


def _read_header(file: BinaryIO, path: Path, size: int) -> tuple[np.dtype, int, int]:
    """Type of the ids, number of sequences and length of the document index. Raises ValueError."""
    header = file.read(HEADER.size)
    if header[: len(MAGIC)] != MAGIC:
        raise ValueError(
            f"{path}, byte 0: {header[: len(MAGIC)]!r} instead of {MAGIC!r}: not an index of Megatron's mmap format; "
            "files of its older cached or lazy formats have to be preprocessed again"
        )
    if len(header) < HEADER.size:
        raise ValueError(f"{path}: ends after {len(header)} bytes, in the header; copy or make the file again")
    _, version, code, sequences, documents = HEADER.unpack(header)
    if version != VERSION:
        raise ValueError(f"{path}, byte 9: version {version}, where {VERSION} is the only one known")
    if code not in DTYPES:
        known = ", ".join(f"{number} {np.dtype(dtype).name}" for number, dtype in DTYPES.items())
        kind = "a float type, which holds no token ids" if code in (6, 7) else "unknown"
        raise ValueError(f"{path}, byte 17: type code {code} is {kind}; token ids have one of {known}")
    expected = HEADER.size + 12 * sequences + 8 * documents
    if size != expected:
        raise ValueError(
            f"{path}: {size:,} bytes, where {sequences:,} sequences and {documents:,} documents take {expected:,}; the "
            "file is cut off or damaged: copy or make it again"
        )
    return np.dtype(DTYPES[code]), sequences, documents


class MmapWriter:
    """Appends documents to a corpus. Get one from `mmap_writer`. Memory does not grow with the corpus.

    Attributes: `documents` and `tokens` written so far.
    """

    def __init__(
        self, prefix: str, vocab_size: int, dtype: np.dtype, files: tuple[BinaryIO, BinaryIO, BinaryIO]
    ) -> None:
        self.prefix, self.vocab_size, self.dtype = prefix, vocab_size, dtype
        self.documents = self.tokens = 0
        self._bin, self._idx, self._sizes = files

    def write(self, ids: Any) -> None:
        """Append a document, integers (length,). Raises ValueError for an id outside the vocabulary."""
        ids = np.asarray(ids)
        if len(ids):
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= self.vocab_size:
                raise ValueError(
                    f"{self.prefix}.bin, document {self.documents}: token id {low if low < 0 else high} is outside the "
                    f"vocabulary 0..{self.vocab_size - 1}"
                )
        if len(ids) > _INT32_MAX:
            raise ValueError(
                f"{self.prefix}.bin, document {self.documents}: {len(ids):,} tokens, and the format's limit is "
                f"{_INT32_MAX:,}"
            )
        self._bin.write(ids.astype(self.dtype.newbyteorder("<"), copy=False).tobytes())
        self._sizes.write(struct.pack("<i", len(ids)))
        self.documents += 1
        self.tokens += len(ids)

    def finish(self) -> None:
        """Write the .idx. Raises ValueError if there was no token."""
        if not self.tokens:
            raise ValueError(f"{self.prefix}: no token in {self.documents} documents; nothing written")
        width = self.dtype.itemsize
        self._idx.write(HEADER.pack(MAGIC, VERSION, _CODES[self.dtype], self.documents, self.documents + 1))
        for sizes in self._read_sizes():
            self._idx.write(sizes.tobytes())
        pointer = 0
        for sizes in self._read_sizes():
            lengths = sizes.astype(np.int64) * width
            ends = np.cumsum(lengths) + pointer
            self._idx.write((ends - lengths).astype("<i8").tobytes())
            pointer = int(ends[-1])
        for first in range(0, self.documents + 1, _BLOCK):
            self._idx.write(np.arange(first, min(first + _BLOCK, self.documents + 1), dtype="<i8").tobytes())

    def _read_sizes(self) -> Iterator[np.ndarray]:
        self._sizes.seek(0)
        while True:
            block = self._sizes.read(4 * _BLOCK)
            if not block:
                return
            yield np.frombuffer(block, dtype="<i4")


@contextlib.contextmanager
def mmap_writer(prefix: str | Path, vocab_size: int, dtype: Any = None) -> Iterator[MmapWriter]:
    """A writer of `<prefix>.bin` and `<prefix>.idx`, which appear at the end of the block, or not at all if it fails.

    `dtype` of the ids: one of `DTYPES`, default `smallest_dtype(vocab_size)`. Raises ValueError for any other, for an
    id outside the vocabulary, and for a corpus without a token.
    """
    dtype = smallest_dtype(vocab_size) if dtype is None else np.dtype(dtype)
    if dtype not in _CODES:
        raise ValueError(f"{dtype} is no type of Megatron's format for token ids")
    folder = Path(prefix).resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    # The .idx gets its name first: a .bin under its name is never without one.
    with atomic_files(f"{prefix}.bin", f"{prefix}.idx") as (tokens, index):
        with tempfile.TemporaryFile(dir=str(folder)) as sizes:  # 4 bytes a document that the .idx needs at the end
            writer = MmapWriter(str(prefix), vocab_size, dtype, (tokens, index, sizes))
            yield writer
            writer.finish()
