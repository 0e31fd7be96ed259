"""A corpus cut into pieces that are tokenized one by one: the same pieces for any number of workers.

A piece is some megabytes of text in whole documents. Of plain files it says where the bytes are, so that the process
that tokenizes it reads them; out of compressed files and archives the bytes come along.
"""

from __future__ import annotations

import bz2
import dataclasses
import fnmatch
import gzip
import hashlib
import lzma
import re
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, Callable, Iterator, Pattern

from corpora.wikipedia import wiki_files

PIECE_BYTES = 4 << 20
_READ = 1 << 16
_FORMAT = 2  # of what is kept under a corpus's key
_OPENERS: dict[str, Callable[..., BinaryIO]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore


@dataclasses.dataclass(frozen=True)
class Boundary:
    """Where documents begin in a file of one after the other: at the end of a match, which starts with `literal`."""

    literal: bytes
    pattern: Pattern[bytes]

    def first(self, block: bytes) -> int:
        """Where the first document in a block begins; -1 if none does."""
        match = self.pattern.search(block)
        return match.end() if match else -1

    def last(self, block: bytes) -> int:
        """Where the last document in a block begins; -1 if none does."""
        at = block.rfind(self.literal)
        while at >= 0:
            match = self.pattern.match(block, at)
            if match:
                return match.end()
            at = block.rfind(self.literal, 0, at)
        return -1


LINE = Boundary(b"\n", re.compile(rb"\n"))
HEADING = Boundary(b"\n = ", re.compile(rb"\n(?= = [^=\n]+ = ?\r?\n)"))  # " = Title = ", not " = = Section = = "


@dataclasses.dataclass(frozen=True)
class Piece:
    """`kind` is a key of corpora.documents.READERS; bytes begin..end of a file (end -1: all of it), or `content`."""

    kind: str
    name: str  # for errors: the file, and the member of an archive
    paths: tuple[str, ...]
    begin: int = 0
    end: int = -1
    content: bytes | None = None
    size: int = 0  # bytes of the input that are done with it, for the progress

    def read(self) -> bytes:
        """The bytes of a piece of one file. Raises ValueError naming the file."""
        if self.content is not None:
            return self.content
        try:
            with open(self.paths[0], "rb") as file:
                file.seek(self.begin)
                return file.read(self.end - self.begin if self.end >= 0 else -1)
        except OSError as error:
            raise ValueError(f"{self.name}: cannot be read: {error.strerror}") from error


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Input files, and how they are cut into pieces, the same ones at every call."""

    files: list[Path]
    pieces: Callable[[], Iterator[Piece]]

    def size(self) -> int:
        """Bytes of the input."""
        return sum(path.stat().st_size for path in self.files)

    def key(self, *how: object) -> str:
        """Changes with the input files and with the representation of `how` they are used."""
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return hashlib.sha256(repr((_FORMAT, stats, *how)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def wikipedia(inputs: list[Path]) -> Iterator[Piece]:
    """Files wiki_NN of extracted dumps, several to a piece."""
    group: list[Path] = []
    size = 0
    for folder in inputs:
        for path in wiki_files(folder):
            group.append(path)
            size += path.stat().st_size
            if size >= PIECE_BYTES:
                yield Piece("wikipedia", str(group[0]), tuple(map(str, group)), size=size)
                group, size = [], 0
    if group:
        yield Piece("wikipedia", str(group[0]), tuple(map(str, group)), size=size)


def running(kind: str, boundary: Boundary, paths: list[Path], members: str = "*") -> Iterator[Piece]:
    """Files of documents one after the other, plain or .gz, .bz2, .xz or .zip; a document begins at `boundary`.

    `members`: a pattern for the names in a .zip.
    """
    for path in paths:
        if path.suffix == ".zip":
            yield from _zipped(kind, boundary, path, members)
        elif path.suffix in _OPENERS:
            with naming(path), path.open("rb") as packed, _OPENERS[path.suffix](packed) as file:
                yield from _stream(kind, boundary, str(path), file, packed.tell)
        else:
            yield from _ranges(kind, boundary, path)


def whole_files(kind: str, paths: list[Path]) -> Iterator[Piece]:
    """Each file a piece of its own."""
    for path in paths:
        yield Piece(kind, str(path), (str(path),), size=path.stat().st_size)


class WholeHeader(tarfile.TarInfo):
    """A header that is damaged or cut off is an error; tarfile takes all but the first for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(f"a header is damaged: {error}") from error


def archives(paths: list[Path]) -> Iterator[Piece]:
    """OpenWebText: tars of texts, or of xz files that are tars of texts. Streamed: nothing is unpacked to the disk."""
    for path in paths:
        if ".tar" not in path.suffixes:  # one of the inner files: the process that tokenizes it unpacks it
            yield Piece("archive", str(path), (str(path),), size=path.stat().st_size)
            continue
        with naming(path), path.open("rb") as packed:
            yield from _members(path, packed)


def _members(path: Path, packed: BinaryIO) -> Iterator[Piece]:
    texts: list[bytes] = []
    held = done = 0
    with tarfile.open(fileobj=packed, mode="r|*", tarinfo=WholeHeader) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            name, content = f"{path}, member {member.name}", file.read()
            if member.name.endswith(".xz"):
                yield Piece("archive", name, (), content=content, size=packed.tell() - done)
                done = packed.tell()
                continue
            texts.append(content)
            held += len(content)
            if held >= PIECE_BYTES:
                yield Piece("texts", name, (), content=_joined(texts), size=packed.tell() - done)
                texts, held, done = [], 0, packed.tell()
    if texts:
        yield Piece("texts", str(path), (), content=_joined(texts), size=packed.tell() - done)


def _joined(texts: list[bytes]) -> bytes:
    return b"\0".join(text.replace(b"\0", b"") for text in texts)


def _zipped(kind: str, boundary: Boundary, path: Path, members: str) -> Iterator[Piece]:
    with naming(path), zipfile.ZipFile(str(path)) as archive:
        for member in archive.infolist():
            if not member.is_dir() and fnmatch.fnmatch(Path(member.filename).name, members):
                with archive.open(member) as file:
                    yield from _stream(kind, boundary, f"{path}, member {member.filename}", file, None)


def _stream(
    kind: str, boundary: Boundary, name: str, file: BinaryIO, position: Callable[[], int] | None
) -> Iterator[Piece]:
    """Pieces of what a decompressor gives: cut where the last document in every PIECE_BYTES or more begins."""
    held, done = b"", 0
    while True:
        more = file.read(PIECE_BYTES)
        held += more
        cut = boundary.last(held) if more else len(held)
        if cut > 0:
            now = position() if position else done + cut
            yield Piece(kind, name, (), content=held[:cut], size=now - done)
            held, done = held[cut:], now
        if not more:
            return


def _ranges(kind: str, boundary: Boundary, path: Path) -> Iterator[Piece]:
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = 0
        while begin < size:
            end = _next_boundary(file, boundary, begin + PIECE_BYTES, size)
            yield Piece(kind, str(path), (str(path),), begin, end, size=end - begin)
            begin = end


def _next_boundary(file: BinaryIO, boundary: Boundary, at: int, size: int) -> int:
    """The first beginning of a document at byte `at` or later; `size` if there is none."""
    while at < size:
        file.seek(at - 1)
        block = file.read(1 + _READ)
        block += file.readline()  # whole lines
        found = boundary.first(block)
        if found >= 0:
            return min(at - 1 + found, size)
        at += len(block) - 1
    return size


class naming:
    """Errors of damaged compressed files and archives become ValueErrors that name the file."""

    def __init__(self, path: Path | str) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        damaged = (EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
        if isinstance(error, damaged) or (isinstance(error, OSError) and error.errno is None):
            raise ValueError(f"{self.path}: damaged, or not what its name says ({error}); copy it again") from error
