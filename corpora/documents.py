"""The documents in a piece of a corpus, as texts."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Callable, Iterator

from corpora.pieces import Piece, naming
from corpora.wikipedia import ArticleReader


class DocumentReader:
    """Iterates over the texts of a piece. `broken` counts documents that were not UTF-8 (bad bytes become U+FFFD)."""

    def __init__(self, piece: Piece, json_key: str = "text") -> None:
        """`json_key` is the member of a JSON line that holds the text."""
        self.piece, self.json_key = piece, json_key
        self.broken = 0

    def __iter__(self) -> Iterator[str]:
        """Raises ValueError naming file and line, or member, for a piece that is damaged."""
        return READERS[self.piece.kind](self)

    def decoded(self, raw: bytes) -> str:
        """Bytes as text."""
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.broken += 1
            return raw.decode("utf-8", "replace")

    def _wikipedia(self) -> Iterator[str]:
        reader = ArticleReader([Path(path) for path in self.piece.paths])
        yield from reader
        self.broken += reader.broken_lines

    def _lines(self) -> Iterator[str]:
        for raw in self.piece.read().split(b"\n"):
            yield self.decoded(raw).rstrip("\r")

    def _json_lines(self) -> Iterator[str]:
        for number, raw in enumerate(self.piece.read().split(b"\n")):
            if not raw.strip():
                continue
            try:
                row = json.loads(self.decoded(raw))
            except ValueError as error:
                raise self._bad_line(number, f"not JSON: {error}") from error
            if not isinstance(row, dict) or not isinstance(row.get(self.json_key), str):
                keys = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
                raise self._bad_line(
                    number, f"no text under {self.json_key!r} (found {keys or 'nothing'}); name the key with --json-key"
                )
            yield row[self.json_key]

    def _bad_line(self, number: int, problem: str) -> ValueError:
        if self.piece.content is not None:
            return ValueError(f"{self.piece.name}, near line {number + 1} of a block: {problem}")
        before = 0
        with open(self.piece.paths[0], "rb") as file:  # lines before the piece, counted now that somebody asks
            left = self.piece.begin
            while left > 0:
                block = file.read(min(left, 1 << 20))
                before += block.count(b"\n")
                left -= len(block)
        return ValueError(f"{self.piece.name}, line {before + number + 1}: {problem}")

    def _wikitext(self) -> Iterator[str]:
        # A document begins at its heading; what stands before the first heading of a file is one too.
        from corpora.pieces import HEADING

        raw = b"\n" + self.piece.read()
        begin = 0
        for match in HEADING.pattern.finditer(raw):
            yield self.decoded(raw[begin : match.end()]).strip("\n")
            begin = match.end()
        yield self.decoded(raw[begin:]).strip("\n")

    def _file(self) -> Iterator[str]:
        yield self.decoded(self.piece.read())

    def _texts(self) -> Iterator[str]:
        for raw in self.piece.read().split(b"\0"):
            yield self.decoded(raw)

    def _archive(self) -> Iterator[str]:
        with naming(self.piece.name), tarfile.open(fileobj=io.BytesIO(self.piece.read()), mode="r|*") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield self.decoded(file.read())


READERS: dict[str, Callable[[DocumentReader], Iterator[str]]] = {
    "wikipedia": DocumentReader._wikipedia,
    "lines": DocumentReader._lines,
    "jsonl": DocumentReader._json_lines,
    "wikitext": DocumentReader._wikitext,
    "file": DocumentReader._file,
    "texts": DocumentReader._texts,
    "archive": DocumentReader._archive,
}
