"""SIGTERM as an exception: a scheduler's SIGTERM is a Ctrl-C in every respect but the exit status."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import Any, Iterator

INTERRUPTED = 128 + signal.SIGINT  # exit status of a program that Ctrl-C ended
TERMINATED = 128 + signal.SIGTERM

# `timeout` and torchrun signal a process and then its group, which may be the same one: seconds within which a further
# SIGTERM is still the first one.
SAME_TERMINATION = 1.0


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what ends at a KeyboardInterrupt ends at it too."""


def exit_status(error: KeyboardInterrupt) -> int:
    """Of a program that this ended."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated: a plain Python program would just be gone. Behind it, it does nothing more.

    In a thread other than the main one, where signals cannot be caught, and where they are ignored they stay as they
    are.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, _on_the_way_out):
        yield
        return
    program, before = os.getpid(), -math.inf

    def terminate(number: int, frame: Any) -> None:
        nonlocal before
        before, since = time.monotonic(), time.monotonic() - before
        # A process that was forked a moment ago still has this function.
        if os.getpid() == program and since > SAME_TERMINATION:
            raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, _on_the_way_out if before > -math.inf else signal.SIG_DFL)


@contextmanager
def undivided() -> Iterator[None]:
    """Ctrl-C and SIGTERM that come inside act when it is over: of a few renames all are done or none."""
    came: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):  # what is ignored, or ends a process at once, stays so
                before[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _on_the_way_out(number: int, frame: Any) -> None:
    """What a further SIGTERM does to a program that has ended and whose interpreter is tidying up."""
