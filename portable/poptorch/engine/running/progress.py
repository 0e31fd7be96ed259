"""How long a call will take, and how far it is: on stderr, and only for calls long enough to wonder about."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

# No rate: the program has one of its own beside it, in its own unit, and a time left of all its calls.
_BAR = "{percentage:3.0f} %|{bar}| {n_fmt} of {total_fmt} micro-batches, {remaining} left in this call"
_WORTH_SAYING = 20.0  # seconds; shorter calls are left alone


class CallProgress:
    """Counts the micro-batches of one call.

    After the first ones it says what the whole call will take on this device, unless that was `announced` with an
    earlier call; on a terminal it then draws a bar with the time left, in every call that takes long.
    """

    def __init__(self, total: int, device: str, announced: bool):
        self._total = total
        self._device = device
        self._announced = announced
        self._judged = total < 8  # over before anything can be said
        self._done = 0
        self._start = time.monotonic()
        self._first: float | None = None  # seconds of the first micro-batch, which warms up
        self._warming = 1  # or of so many that ran as one
        self._bar: tqdm | None = None

    def step(self, micro_batches: int = 1) -> None:
        """So many are done: one, or several that ran as one."""
        self._done += micro_batches
        if self._bar is not None:
            self._bar.update(micro_batches)
            return
        if self._judged:
            return
        elapsed = time.monotonic() - self._start
        if self._first is None:
            self._first, self._warming = elapsed, micro_batches
            return
        measured = self._done - self._warming  # without the first, which warms up
        if measured < 4 and elapsed - self._first < 10.0:
            return
        seconds = self._first + (elapsed - self._first) / measured * (self._total - self._warming)
        self._judged = True
        if seconds < _WORTH_SAYING:
            return
        if not self._announced:
            self._announce(seconds, measured / (elapsed - self._first))
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=self._done, leave=False, file=sys.stderr, bar_format=_BAR)

    def _announce(self, seconds: float, rate: float) -> None:
        print(
            f"poptorch: {self._total:,} micro-batches in this call, about {duration(seconds)} on {self._device} "
            f"({rate:.2f} a second measured on the first {self._done})",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """The call is over, or was interrupted."""
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 20 s, 5 h 12 min, 3 days 4 h."""
    whole = round(seconds)
    for unit, size, small, small_size in (("days", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small_size} {small}"
    return f"{whole} s"
