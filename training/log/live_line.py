"""A line that is drawn again and again at the foot of a terminal; what else is printed stands on lines of its own."""

from __future__ import annotations

import shutil
import sys
from typing import Any, TextIO

_CLEAR = "\r\x1b[K"


class LiveLine:
    """The progress line of a program.

    In `with`, everything that is written to sys.stdout and sys.stderr takes it away first, whoever prints.

    Args:
        stream: where it is drawn. Nothing is, where that is no terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._there = stream, False
        self.live = stream.isatty()
        self._replaced: dict[str, Any] = {}

    def draw(self, text: str) -> None:
        """Shows `text`, cut to the terminal's width, in place of what was there."""
        if self.live:
            self._there = True
            self._stream.write(_CLEAR + text[: shutil.get_terminal_size().columns - 1])
            self._stream.flush()

    def clear(self) -> None:
        """Takes the line away, if it is there."""
        if self._there:
            self._there = False
            self._stream.write(_CLEAR)
            self._stream.flush()

    def __enter__(self) -> LiveLine:
        if self.live:
            for name in ("stdout", "stderr"):
                self._replaced[name] = getattr(sys, name)
                setattr(sys, name, _Clearing(self._replaced[name], self))
        return self

    def __exit__(self, *error: Any) -> None:
        self.clear()
        for name, stream in self._replaced.items():
            setattr(sys, name, stream)
        self._replaced.clear()


class _Clearing:
    """A text stream before whose output the line goes away."""

    def __init__(self, stream: TextIO, line: LiveLine) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        self._line.clear()
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        self._line.clear()
        self._stream.writelines(lines)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
