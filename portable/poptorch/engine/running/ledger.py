"""Time by what it was spent on. Every moment belongs to one phase, so that the phases add up to the wall time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Ledger:
    """Seconds by phase.

    Args:
        phase: the one that the clock starts in.
        settle: called before a phase ends, to wait for a device that works on by itself.
    """

    def __init__(self, phase: str, settle: Callable[[], None] = lambda: None):
        self._settle = settle
        self.restart(phase)

    def restart(self, phase: str) -> None:
        """Forget everything and start the clock again, in `phase`."""
        self.phase = phase
        self.seconds: dict[str, float] = {}
        self.started = self._since = time.perf_counter()

    def switch(self, phase: str) -> str:
        """Time counts for `phase` from now on. Returns the phase that ends."""
        self._settle()
        now = time.perf_counter()
        ended = self.phase
        self.seconds[ended] = self.seconds.get(ended, 0.0) + now - self._since
        self.phase, self._since = phase, now
        return ended

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """`phase` inside `with`, then what it was before."""
        before = self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)
