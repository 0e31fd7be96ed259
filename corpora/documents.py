"""The documents in a piece of a corpus, as texts."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Callable, Iterator

from corpora.json_lines import text_in
from corpora.pieces import HEADING, Piece, WholeHeader, naming
from corpora.plain_text import plain
from corpora.wikipedia import ArticleReader, is_wiki_file, resolve_entities, without_placeholders

PASSAGE = 16 << 10  # characters of a passage, at least
MOST_BAD = 0.1  # of a file's characters: Latin-1 in a European language has 2 to 5 %, another alphabet nearly all


class DocumentReader:
    """Iterates over the texts of a piece. `broken` counts documents that were not UTF-8 (bad bytes become U+FFFD)."""

    def __init__(self, piece: Piece, json_key: str = "text", drop_placeholders: bool = False) -> None:
        """`json_key`: the member of a JSON line that holds the text; `drop_placeholders`: those of WikiExtractor."""
        self.piece, self.json_key, self.drop_placeholders = piece, json_key, drop_placeholders
        self.broken = 0

    def __iter__(self) -> Iterator[str]:
        """Raises ValueError naming file and line, or member, for a piece that is damaged."""
        return READERS[self.piece.kind](self)

    def decoded(self, raw: bytes) -> str:
        """Bytes as text, without a byte order mark and with LF for CRLF."""
        raw = plain(raw)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.broken += 1
            return raw.decode("utf-8", "replace")

    def _wikipedia(self) -> Iterator[str]:
        reader = ArticleReader([Path(path) for path in self.piece.paths], self.drop_placeholders)
        yield from reader
        self.broken += reader.broken_lines

    def _content(self) -> bytes:
        """The bytes of a piece of text."""
        return plain(self.piece.read(), self.piece.name)

    def _lines(self) -> Iterator[str]:
        for raw in self._content().split(b"\n"):
            yield self.decoded(raw).rstrip("\r")

    def _json_lines(self) -> Iterator[str]:
        of_wikipedia = is_wiki_file(Path(self.piece.name))
        for number, raw in enumerate(self._content().split(b"\n")):
            if not raw.strip():
                continue
            try:
                missing = f"no text under {self.json_key!r}"
                text = text_in(self.decoded(raw), self.json_key, missing, "name the key with --json-key")
            except ValueError as error:
                raise self._bad_line(number, str(error)) from error
            if of_wikipedia:
                text = resolve_entities(text)
                if self.drop_placeholders:
                    text = "\n".join(without_placeholders(text.split("\n")))
            yield text

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
        raw = b"\n" + self._content()
        begin = 0
        for match in HEADING.pattern.finditer(raw):
            yield self.decoded(raw[begin : match.end()]).strip("\n")
            begin = match.end()
        yield self.decoded(raw[begin:]).strip("\n")

    def _whole(self) -> str:
        """The text of a file that is one document. Raises ValueError for one that is hardly text."""
        text = self.decoded(self._content())
        bad = text.count("\ufffd") if self.broken else 0
        if bad > MOST_BAD * len(text):
            raise ValueError(
                f"{self.piece.name}: {bad / len(text):.0%} of its characters are not UTF-8; is it a text? "
                "Convert one of another encoding, as in iconv -f latin1 -t utf-8"
            )
        return text

    def _file(self) -> Iterator[str]:
        yield self._whole()

    def _passages(self) -> Iterator[str]:
        text = self._whole()
        begin = 0
        while len(text) - begin >= 2 * PASSAGE:
            least = begin + PASSAGE
            end = text.find("\n\n", least, least + PASSAGE)
            end = end + 2 if end >= 0 else text.find("\n", least) + 1
            if end == 0:
                break
            yield text[begin:end]
            begin = end
        yield text[begin:]

    def _texts(self) -> Iterator[str]:
        for raw in self.piece.read().split(b"\0"):
            yield self.decoded(raw)

    def _archive(self) -> Iterator[str]:
        packed = io.BytesIO(self.piece.read())
        with naming(self.piece.name), tarfile.open(fileobj=packed, mode="r|*", tarinfo=WholeHeader) as tar:
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
    "passages": DocumentReader._passages,
    "texts": DocumentReader._texts,
    "archive": DocumentReader._archive,
}
