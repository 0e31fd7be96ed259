"""One run at a time writes to a folder of checkpoints."""

from __future__ import annotations

import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # no POSIX system: runs there do not see each other
    fcntl = None  # type: ignore[assignment]

_PATIENCE = 10.0  # seconds: processes of a run that was killed, which hold its lock, notice that within 5
_held: dict[tuple[int, int], int] = {}  # (device, number) of a folder -> descriptor, until the run is over


def claim(folder: Path) -> None:
    """No other process on this machine may claim the folder until release(), or until this one has ended.

    A folder that is not there, or a file system without locks, is no error: then nothing is claimed.

    Raises:
        ValueError: another process has claimed it, and keeps it.
    """
    if fcntl is None or not folder.is_dir():
        return
    facts = folder.stat()
    if (facts.st_dev, facts.st_ino) in _held:
        return
    descriptor = os.open(str(folder), os.O_RDONLY)
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(descriptor)
                raise ValueError(
                    f"--save-model-path {folder}: another run is writing there now; wait for its end, stop it, or name "
                    "another folder"
                ) from None
            time.sleep(0.2)
        except OSError:
            os.close(descriptor)
            return
    _held[facts.st_dev, facts.st_ino] = descriptor


def release() -> None:
    """This process's run is over: others may claim its folders."""
    while _held:
        _, descriptor = _held.popitem()
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it to processes that were forked meanwhile
        os.close(descriptor)
