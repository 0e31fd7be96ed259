"""--gc-monitor: what gc-monitor says of the IPUs while a benchmark runs, in a log beside the others."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger("examples_utils")

EVERY = 5.0  # seconds from one look to the next


class Monitor:
    """Looks at the IPUs now and then, if this machine has the program that can."""

    def __init__(self) -> None:
        self._program = shutil.which("gc-monitor")
        self._under_way: subprocess.Popen | None = None
        self._next, self._log = 0.0, Path()
        if self._program is None:
            logger.warning("--gc-monitor: gc-monitor, of the Poplar SDK, is not on this machine; nothing is monitored")

    @contextlib.contextmanager
    def into(self, log: Path) -> Iterator[None]:
        """What it says goes there; nothing of it is left afterwards."""
        self._next, self._log = 0.0, log
        try:
            yield
        finally:
            if self._under_way is not None:
                self._under_way.kill()
                self._under_way.wait()
                self._under_way = None

    def look(self, seconds: float) -> None:
        """Starts the next look if it is time; `seconds` is how long the benchmark has run."""
        if self._program is None or seconds < self._next:
            return
        if self._under_way is not None and self._under_way.poll() is None:
            return  # the last one takes longer
        self._next = seconds + EVERY
        with self._log.open("ab") as file:
            file.write(f"--- after {seconds:.0f} s\n".encode())
            file.flush()
            self._under_way = subprocess.Popen([self._program], stdin=subprocess.DEVNULL, stdout=file, stderr=file)
