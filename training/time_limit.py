"""--time-limit: a run ends while there is time for its last checkpoint. And whether torchrun leaves it that time."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import Iterator

# Until a checkpoint has been written: its bytes a parameter (half weight, half and float32 moments, float32 weight) and
# the bytes a second that a slow file system of a cluster can be trusted to take.
_BYTES_A_PARAMETER, _BYTES_A_SECOND = 12, 50e6
_ENDING = 3.0  # seconds: the log is closed, its picture drawn, the processes end
# torchrun's own: how long it waits for its processes after a signal before it kills them.
_PATIENCE, _SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"
_MARGIN = 1.25  # a call, a validation or a save may take longer than the longest one so far


class TimeLimit:
    """Says when a run that has so many seconds must end.

    Args:
        seconds: the limit; None: there is none.
        started: time.monotonic() at the start of the program.
        parameters: of the model, for a guess how long its first checkpoint takes.
    """

    def __init__(self, seconds: float | None, started: float, parameters: int) -> None:
        self.seconds, self._started = seconds, started
        self._longest = {"save": parameters * _BYTES_A_PARAMETER / _BYTES_A_SECOND, "validation": 0.0, "call": 0.0}
        self._saved = self._told = False
        self._since = time.monotonic()

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """What happens inside is a "save", a "validation", or something that does not come again."""
        begun = time.monotonic()
        yield
        self._since = time.monotonic()
        taken = self._since - begun
        if what == "save" and not self._saved:
            self._saved, self._longest[what] = True, taken
        elif what in self._longest:
            self._longest[what] = max(self._longest[what], taken)

    def calls_grow(self, factor: float) -> None:
        """The calls that follow take about so many times as long as those before."""
        self._longest["call"] *= factor

    def call_done(self) -> None:
        """A call has ended, which began, with its wait for data, where the last call or timing ended."""
        now = time.monotonic()
        self._longest["call"], self._since = max(self._longest["call"], now - self._since), now

    def reached(self) -> bool:
        """Whether what is left is too little for a validation, a call and a save."""
        if self.seconds is None:
            return False
        left = self.seconds - (time.monotonic() - self._started)
        return left < _MARGIN * sum(self._longest.values()) + _ENDING

    def launcher_note(self) -> str | None:
        """What to say, once, of a run that takes longer to end with a checkpoint than torchrun waits for it."""
        taken = self._longest["call"] + (self._longest["save"] if self._saved else 0.0)
        patience = os.environ.get(_PATIENCE, _SECONDS)
        if self._told or "TORCHELASTIC_RUN_ID" not in os.environ or not patience.isdigit() or taken <= int(patience):
            return None
        self._told = True
        return (
            f"a call{' and a save' if self._saved else ''} took {taken:,.0f} s, and torchrun kills a run {patience} s "
            f"after Ctrl-C or SIGTERM, before its checkpoint: start torchrun with a larger {_PATIENCE}, or make calls "
            "smaller"
        )
