"""Time spent training, and how it is written."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Iterator


class Clock:
    """Time spent training. Waiting for data counts; compiling, validating and saving are paused."""

    def __init__(self) -> None:
        self.calls, self.seconds = 0, 0.0  # in all
        self._lap_calls, self._lap_seconds = 0, 0.0
        self._last_rate: float | None = None  # of the last lap that ended
        self._since = time.perf_counter()

    def start(self) -> None:
        """Time counts from now on."""
        self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside takes no time."""
        self._stop()
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def lap(self) -> float:
        """Calls a second since the last lap."""
        self._stop()
        self._last_rate = rate = self._lap_calls / self._lap_seconds
        self._lap_calls, self._lap_seconds = 0, 0.0
        return rate

    def count(self) -> None:
        """One more call is done."""
        self.calls += 1
        self._lap_calls += 1

    def rate(self) -> float:
        """Calls a second as the last lap had them, so that a reader sees one rate; before the first ends, so far."""
        if self._last_rate is not None:
            return self._last_rate
        return self.calls / (self.seconds + time.perf_counter() - self._since)

    def _stop(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._since
        self._lap_seconds += now - self._since
        self._since = now


def time_text(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 1:02:03."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
