"""Whether this process gets anything done: processor time and bytes, its own and those of processes it has started."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

_PROC = Path("/proc")
# Processor seconds below which nothing was done: a loader that waits looks at its queue every few seconds.
_NOTHING = 0.05
# Threads that serve other processes: they are busy while this one hangs.
_SERVERS = "pt_tcpstore"


class Activity:
    """Measures from when on there was none. Where there is no /proc it finds activity always.

    A thread that calls `idle` does not count: it is the one that looks.
    """

    def __init__(self) -> None:
        self._known = (_PROC / "self/schedstat").is_file()
        self._since, self._seconds, self._bytes = time.monotonic(), 0.0, 0

    def idle(self) -> float:
        """Seconds for which neither this process nor any below it has used a processor, read or written."""
        if not self._known:
            return 0.0
        seconds, moved = self._used()
        now = time.monotonic()
        if abs(seconds - self._seconds) > _NOTHING or moved != self._bytes:  # what a process that ended used goes
            self._since, self._seconds, self._bytes = now, seconds, moved
        return now - self._since

    def begin(self) -> None:
        """Count from now on: until now this process could do nothing."""
        self._since = time.monotonic()

    def _used(self) -> tuple[float, int]:
        """Processor seconds and bytes up to now."""
        watching = threading.get_native_id()
        seconds, moved = 0.0, 0
        for process in [os.getpid(), *_below(os.getpid())]:
            for task in _entries(_PROC / str(process) / "task"):
                if int(task.name) != watching and not _read(task / "comm").startswith(_SERVERS):
                    seconds += int((_read(task / "schedstat").split() or ["0"])[0]) / 1e9
                    moved += _moved(_read(task / "io"))
        return seconds, moved


def wait_for_rest(name: str, patience: float) -> None:
    """Until the threads of this process that are called `name` sleep, or for about `patience` seconds.

    For the native ones among them, whose end cannot be waited for. One that was waiting for the interpreter's lock has
    had it by then: the lock is asked for anew every switch interval, so that a thread that has not run for two of them
    wants something else. Where there is no /proc nothing is waited for.
    """
    tasks = [task for task in _entries(_PROC / "self/task") if _read(task / "comm").strip() == name]
    moment, before = 2 * sys.getswitchinterval(), None
    for _ in range(int(patience / moment) if tasks else 0):  # not by the clock: this process may be stopped for a while
        states = [_read(task / "stat").rpartition(")")[2].split()[:1] for task in tasks]
        turns = [_read(task / "schedstat").split()[2:] for task in tasks]
        if turns == before and all(state in (["S"], []) for state in states):
            break
        before = turns
        time.sleep(moment)


def _moved(text: str) -> int:
    """Bytes read and written, of a file `io` of /proc."""
    counts = dict(line.split(": ") for line in text.splitlines())
    return int(counts.get("rchar", 0)) + int(counts.get("wchar", 0))


def _below(process: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found: list[int] = []
    for task in _entries(_PROC / str(process) / "task"):
        for child in map(int, _read(task / "children").split()):
            found += [child, *_below(child)]
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # it has ended
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
