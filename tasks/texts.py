"""Evaluation files: read whole, checked, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from pathlib import Path
from typing import Iterator

from corpora.json_lines import text_in
from corpora.plain_text import plain

_REMEDY = "correct the path in --text or --valid-data, or without these fetch the published files: bash "
# data/evaluation_download.sh fetches others by default.
_SETS = {"enwik8": "enwik8", "text8": "text8", "ptb.test.txt": "ptb"}
_MEGABYTE = 1_000_000
_PACKED = (".zip", ".gz")


def read_text(path: Path, last_bytes: int | None = None) -> str:
    """The text of a file, CRLF as LF; of a long one its last bytes, from a whole character on.

    Raises ValueError naming file and line if it is missing, empty or not UTF-8.
    """
    content = _read(path)
    skipped = max(0, len(content) - last_bytes) if last_bytes else 0
    line = 1 + content.count(b"\n", 0, skipped)
    content = content[skipped:]
    if skipped:
        while content and content[0] & 0xC0 == 0x80:  # the rest of a character that was cut
            content = content[1:]
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}: not UTF-8 text (byte 0x{content[error.start]:02x}); convert it, for instance with "
            f"iconv -f latin1 -t utf-8"
        ) from error
    if not text.strip():
        raise ValueError(f"{path}: there is no text in it")
    return text


def read_json_lines(path: Path) -> list[str]:
    """The "text" of every line of a JSON Lines file. Raises ValueError naming file and line."""
    return [text for _, text in numbered_texts(path)]


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The number of every line that is not blank, from 1 on, and the line. Raises ValueError as read_text."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def numbered_texts(path: Path) -> Iterator[tuple[int, str]]:
    """The number of every line that is not blank, from 1 on, and its "text". Raises ValueError as read_json_lines."""
    for number, line in numbered_lines(path):
        try:
            text = text_in(line, "text", 'has no "text"', 'write lines such as {"text": "…"}')
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if len(text.split()) < 2:
            raise ValueError(f"{path}, line {number}: a single word, which leaves no context to predict it from")
        yield number, text


def as_stored(path: Path) -> Path:
    """A file, or if there is none the same one compressed: with .zip or .gz behind its name."""
    if not path.exists() and path.name:
        for suffix in _PACKED:
            packed = path.with_name(path.name + suffix)
            if packed.is_file():
                return packed
    return path


def unpacked_name(path: Path) -> str:
    """The name of a file, without the .zip or .gz of a compressed one."""
    return path.stem if path.suffix in _PACKED else path.name


def count_words(text: str) -> int:
    """Words as Megatron-LM counts them: what single spaces separate."""
    return len(text.strip().split(" "))


def joined_lines(text: str) -> str:
    """The text as transformers' guide to perplexity has it: a blank line between lines, and of blank ones nothing."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return "\n\n".join(line + "\n" if line.strip() else "" for line in lines)


def pages(text: str) -> list[str]:
    """WikiText's articles: each begins with a heading of the first level, `= Title =`."""
    found: list[str] = []
    lines: list[str] = []
    for line in text.split("\n"):
        bare = line.replace("= = =", "===").replace("= =", "==").strip()
        if bare.startswith("= ") and bare.endswith(" ="):
            found.append("\n".join(lines))
            lines = []
        lines.append(line)
    found.append("\n".join(lines))
    return [page for page in found if page.strip()]


def _unpacked(content: bytes, path: Path) -> bytes:
    """What is in a .zip or .gz file, by its first bytes; anything else as it is."""
    try:
        if content.startswith(b"\x1f\x8b"):
            return gzip.decompress(content)
        if not content.startswith(b"PK\3\4"):
            return content
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            names = [name for name in packed.namelist() if not name.endswith("/")]
            named = [name for name in names if name.rpartition("/")[2] == unpacked_name(path)]
            if len(named or names) != 1:
                shown, name = ", ".join(names[:5]) + (", …" if len(names) > 5 else ""), unpacked_name(path)
                raise ValueError(f"{path}: has {len(names)} files ({shown}), not one named {name}; unpack it, name one")
            return packed.read((named or names)[0])
    except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be unpacked ({error}); fetch it again, or unpack it") from error


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        published = _SETS.get(path.name)
        fetch = "data/evaluation_download.sh" + (f" {published}" if published else "")
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}{fetch}") from error
    content = plain(_unpacked(content, path), path)
    if b"\0" in content[:_MEGABYTE]:
        raise ValueError(f"{path}: is not text (it has zero bytes)")
    return content
