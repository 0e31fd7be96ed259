"""The few micro-batches that torch's profiler looks at."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .. import notices
from ..engine.running.ledger import Ledger
from .phases import REPORTING
from .report_text import Window

# Micro-batches in the trace, at the end of an iteration: enough to see the pattern, and a file that a browser opens.
WINDOW = 8
_MOST_TRACED = 8 * WINDOW  # micro-batches of an iteration with messages between processes


class TraceWindow:
    """Starts and stops the profiler, once a call.

    Args:
        several: whether other processes run the program too.
        ledger: what the profiler takes for itself counts as REPORTING. settle: waits for the device.
    """

    def __init__(self, device: torch.device, several: bool, ledger: Ledger, settle: Callable[[], None]):
        self._device, self._several, self._ledger, self._settle = device, several, ledger, settle
        self._profiler: torch.profiler.profile | None = None
        self._range: Any = None
        self._recorded, self._started = 0, 0.0
        self._windows = 0
        self.found: Window | None = None  # the last one

    @property
    def running(self) -> bool:
        """Whether the profiler is."""
        return self._profiler is not None

    def micro_batch(self, calls: int, index: int, count: int, together: int) -> None:
        """Micro-batch `index` of `count` in an iteration begins, after so many calls, and those that run with it.

        In the second call other processes would wait for this one's profiler: then the first alone has a window.
        """
        if self._profiler is not None:
            self._recorded += together
        elif calls < (1 if self._several else 2) and self._windows <= calls and self._begins(index, count, together):
            self._start(together)

    def _begins(self, index: int, count: int, together: int) -> bool:
        """Whether the trace begins with micro-batch `index` of `count`, and those that run as one with it.

        No message between processes may be under way then: torch's profiler (2.13) did not survive that. So it is the
        first one, and an iteration of very many has no trace.
        """
        return index == 0 and count <= _MOST_TRACED if self._several else index + together > count - WINDOW

    def iteration_done(self, calls: int) -> None:
        """Ends the window if it has enough."""
        if self._recorded >= WINDOW:
            self.stop(calls)

    def _start(self, micro_batches: int) -> None:
        with self._ledger.during(REPORTING):
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            try:
                self._profiler.start()
            except RuntimeError as error:  # the program profiles itself: there is one profiler a process
                notices.once("report without trace", f"No trace for the report: {error}")
                self._profiler = None
                self._windows += 1
                return
            self._recorded = micro_batches
            self._range = torch.profiler.record_function("micro-batches")
        self._started = time.perf_counter()
        self._range.__enter__()

    def stop(self, calls: int) -> None:
        """Ends the window, if there is one, of the call after so many."""
        if self._profiler is None:
            return
        self._settle()
        self._range.__exit__(None, None, None)
        seconds = time.perf_counter() - self._started
        with self._ledger.during(REPORTING):
            self._profiler.stop()
            self.found = Window(self._profiler, seconds, self._recorded, calls == 0, self._device.type)
            self._profiler = self._range = None
            self._windows += 1
