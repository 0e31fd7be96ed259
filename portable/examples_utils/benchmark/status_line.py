"""What a session says while it runs: a line a benchmark, live on a terminal, plain everywhere else."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TextIO

_TAIL = 4096  # bytes of a log in which its last line is looked for


class StatusLine:
    """The line of one variant: `[2/5] name  1:23  what it printed last`, and how it ended."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._label, self._stream = label, stream or sys.stdout
        self._live = self._stream.isatty()
        if not self._live:
            print(f"{label}: started", file=self._stream, flush=True)

    def watch(self, seconds: float, stdout: Path, stderr: Path) -> None:
        """Redraws the line, on a terminal."""
        if not self._live:
            return
        width = shutil.get_terminal_size().columns - 1
        text = f"{self._label}  {clock(seconds)}  {last_line(stdout, stderr)}"
        self._stream.write("\r" + text[:width].ljust(width))
        self._stream.flush()

    def finish(self, text: str) -> None:
        """Ends the line with what came out."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + " " * width + "\r")
        print(f"{self._label}: {text}", file=self._stream, flush=True)


def clock(seconds: float) -> str:
    """Seconds as 1:23 or 1:02:03."""
    whole = int(seconds)
    hours = f"{whole // 3600}:{whole // 60 % 60:02d}" if whole >= 3600 else str(whole // 60)
    return f"{hours}:{whole % 60:02d}"


def last_line(*logs: Path) -> str:
    """The last line in the log that was written to last; "" if there is none."""
    newest = max(logs, key=lambda path: path.stat().st_mtime_ns if path.stat().st_size else 0)
    with newest.open("rb") as file:
        file.seek(max(newest.stat().st_size - _TAIL, 0))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    lines = [line for line in lines if line]
    return "".join(c for c in lines[-1] if c.isprintable()) if lines else ""
