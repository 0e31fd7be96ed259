"""Articles out of the files that WikiExtractor writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator

_FILE = re.compile(r"wiki_\d+")
_BEGIN = re.compile(rb"<doc\s+id\b")
_END = b"</doc>"


def wiki_files(folder: Path) -> list[Path]:
    """The files wiki_NN of an extracted dump: folders AA, AB, ... in order, then files in order.

    Raises ValueError if there are none.
    """
    if not folder.is_dir():
        raise ValueError(f"--input-file-path {folder}: no such folder; give the one that wikipedia_extract.sh made")
    files = [path for path in folder.rglob("wiki_*") if _FILE.fullmatch(path.name) and path.is_file()]
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise ValueError(
            f"--input-file-path {folder}: no files wiki_NN in it or its folders; make them with wikipedia_extract.sh"
        )
    # wiki_100 would follow wiki_99, should a tool ever write more than a hundred to a folder.
    return sorted(files, key=lambda path: (path.relative_to(folder).parts[:-1], len(path.name), path.name))


class ArticleReader:
    """Iterates over the texts of articles, reading one line at a time.

    The text is the body's lines, right-stripped, blank ones left out, joined with single spaces; the title line is
    not part of it. `bytes_read` tells how far it is, `broken_lines` counts lines that were not UTF-8 (their bad bytes
    become U+FFFD).
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.bytes_read = 0
        self.broken_lines = 0

    def __iter__(self) -> Iterator[str]:
        """Raises ValueError naming file and line where a `<doc id=...>` has no `</doc>`."""
        for path in self.files:
            lines: list[str] | None = None  # of the article under way
            begun = 0
            with path.open("rb") as file:  # binary: only \n ends a line
                for number, raw in enumerate(file, start=1):
                    self.bytes_read += len(raw)
                    if _BEGIN.match(raw):
                        if lines is not None:
                            raise _unfinished(path, begun)
                        lines, begun = [], number
                    elif lines is None:
                        continue
                    elif raw.startswith(_END):
                        # The title, the line after <doc>, is the first.
                        yield " ".join(line for line in lines[1:] if line)
                        lines = None
                    else:
                        lines.append(self._decoded(raw))
            if lines is not None:
                raise _unfinished(path, begun)

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
