"""Articles out of the files that WikiExtractor writes, as <doc> elements or as lines of JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator

from corpora.json_lines import text_in
from corpora.plain_text import plain

_FILE = re.compile(r"wiki_\d+")
_BEGIN = re.compile(rb"<doc\s+id\b")
_TITLE = re.compile(rb'title="(.*)">\s*$')
_END = b"</doc>"
_PLACEHOLDER = re.compile(r" ?(?:formula|codice)_\d+")  # of <math> and <code>


def is_wiki_file(path: Path) -> bool:
    """Whether it has the name of a file that WikiExtractor writes."""
    return _FILE.fullmatch(path.name) is not None


def resolve_entities(text: str) -> str:
    """`&amp;`, `&lt;` and `&gt;`, which WikiExtractor puts for & < >, back, once: `&amp;lt;` becomes `&lt;`."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def without_placeholders(lines: list[str]) -> list[str]:
    """Lines without `formula_1` and `codice_1`; those left without a letter or digit are dropped."""
    kept = []
    for line in lines:
        text, count = _PLACEHOLDER.subn("", line)
        if count:  # "the angle, formula_1, and" shall not keep both commas
            text = re.sub(r"([,;:(]) *[,;](?= |$)", r"\1", text)
        if not count or any(map(str.isalnum, text)):
            kept.append(text)
    return kept


def wiki_files(folder: Path) -> list[Path]:
    """The files wiki_NN of an extracted dump: folders AA, AB, ... in order, then files in order.

    Raises ValueError if there are none.
    """
    if not folder.is_dir():
        raise ValueError(f"--input-file-path {folder}: no such folder; give the one that wikipedia_extract.sh made")
    files = [path for path in folder.rglob("wiki_*") if is_wiki_file(path) and path.is_file()]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise ValueError(
            f"--input-file-path {folder}: no files wiki_NN in it or its folders; make them with wikipedia_extract.sh"
        )
    # wiki_100 would follow wiki_99, should a tool ever write more than a hundred to a folder.
    return sorted(files, key=lambda path: (path.relative_to(folder).parts[:-1], len(path.name), path.name))


def holds_json(path: Path) -> bool:
    """Whether a file is one that `WikiExtractor --json` writes: a JSON object a line instead of <doc> elements."""
    with path.open("rb") as file:
        return plain(file.read(1 << 10)).lstrip().startswith(b"{")


class ArticleReader:
    """Iterates over the texts of articles, reading one line at a time.

    The text is the body's lines, right-stripped, blank ones left out, joined with single spaces; the title line is
    not part of it. `bytes_read` tells how far it is, `broken_lines` counts lines that were not UTF-8 (their bad bytes
    become U+FFFD). A `</doc>` ends an article if the next one or the end of the file follows; any other, and a
    `<doc ...>` inside an article, is text. Of a whole document inside it, `<doc ... title="X">` with X on the next line
    and `</doc>`, that is so wherever it stands; one without its `</doc>` looks like the next article after one that is
    cut off.
    """

    def __init__(self, files: list[Path], drop_placeholders: bool = False) -> None:
        """`drop_placeholders`: see `without_placeholders`."""
        self.files, self.drop_placeholders = files, drop_placeholders
        self.bytes_read = 0
        self.broken_lines = 0

    def __iter__(self) -> Iterator[str]:
        """Raises ValueError naming file and line where an article has no `</doc>` of its own, or a line is not JSON."""
        for path in self.files:
            bodies = self._rows(path) if holds_json(path) else self._elements(path)
            for body in bodies:
                lines = [line for line in map(str.rstrip, body) if line]
                if self.drop_placeholders:
                    lines = without_placeholders(lines)
                yield resolve_entities(" ".join(lines))

    def _rows(self, path: Path) -> Iterator[list[str]]:
        for number, raw in self._numbered(path):
            if raw.strip():
                try:
                    yield text_in(self._decoded(raw), "text", "no text under 'text'", "extract the dump again").split(
                        "\n"
                    )
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error

    def _elements(self, path: Path) -> Iterator[list[str]]:
        lines: list[str] | None = None  # of the article under way, its title first
        begun = 0
        ended: int | None = None  # how many lines it has if the </doc> seen last is its end
        inside = 0  # documents in the text of the article under way, begun and not ended
        title: bytes | None = None  # of the <doc> just seen inside an article: one begins if it is the next line
        for number, raw in self._numbered(path):
            begins = _BEGIN.match(raw)
            inside += title is not None and raw.strip() == title
            title = None
            if begins and (lines is None or ended is not None):
                if lines is not None:
                    yield lines[1:ended]
                lines, begun, ended = [], number, None
                continue
            if lines is None:
                continue
            if raw.strip() == _END and inside:
                inside -= 1
            elif raw.strip() == _END:
                ended = len(lines)
            elif raw.strip():
                ended = None
                match = _TITLE.search(raw) if begins else None
                title = match.group(1).strip() if match else None
            lines.append(self._decoded(raw))
        if lines is not None:
            if ended is None:
                raise _unfinished(path, begun)
            yield lines[1:ended]

    def _numbered(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """The lines of a file with their numbers; binary: only \\n ends one."""
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                self.bytes_read += len(raw)
                yield number, plain(raw, path) if number == 1 else raw

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8").rstrip()
        except UnicodeDecodeError:
            self.broken_lines += 1
            return raw.decode("utf-8", "replace").rstrip()


def _unfinished(path: Path, line: int) -> ValueError:
    return ValueError(
        f"{path}, line {line}: the article that begins here has no </doc>; the file is cut off or damaged: run "
        "wikipedia_extract.sh again"
    )
