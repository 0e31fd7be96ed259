"""How far an evaluation is and how long it will take: one line redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Callable, TextIO

from training.log.clock import time_text
from training.log.live_line import LiveLine

_REDRAW = 0.5  # seconds


class Progress:
    """Shows items done of `total`, tokens a second and the time left, on stderr.

    Args:
        name: what is being evaluated.
        total: items; tokens: the targets they hold together.
        interval: calls from one plain line to the next (--log-interval).
        quiet: nothing is shown.
    """

    def __init__(
        self, name: str, total: int, tokens: int, interval: int, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self._name, self._total, self._tokens, self._interval = name, max(1, total), tokens, interval
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._live = LiveLine(self._stream)
        self._terminal = self._live.live and not quiet
        self._start = self._drawn = time.perf_counter()
        self._calls = 0

    def __call__(self, done: int) -> None:
        """`done` items are dealt with: called once after each call of the model."""
        self._calls += 1
        now = time.perf_counter()
        last = done >= self._total
        if self._terminal:
            due = last or now - self._drawn >= _REDRAW
        else:
            due = self._calls % self._interval == 0
        if self._quiet or not due:
            return
        self._drawn = now
        share, seconds = done / self._total, now - self._start
        line = (
            f"{self._name}: {done:,} of {self._total:,}, {share * self._tokens / max(seconds, 1e-9):,.0f} scored "
            f"tokens/s, {time_text(seconds / share * (1 - share))} left"
        )
        if self._terminal:
            self._live.draw(line)
        else:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def until(self, asked: Callable[[], bool]) -> Callable[[int], bool]:
        """A `stop` for a Scorer: shows how far it is, and ends it when `asked` returns True."""

        def stop(done: int) -> bool:
            self(done)
            return asked()

        return stop

    def __enter__(self) -> Progress:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Clears the line of a terminal."""
        self._live.__exit__()
