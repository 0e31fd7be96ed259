"""Ctrl-C in a long run: the first ends the run after the current call, the second (in the first call: it) at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any, Sequence

INTERRUPTED = 130  # exit status of a program that Ctrl-C ended: 128 + SIGINT

_ASKED = (
    "Ctrl-C: the run ends after the current call, with a checkpoint if --save-model-path is given. Press again to "
    "stop at once."
)


class Interruption:
    """Counts SIGINTs inside `with`. `asked` says that the run shall end; the second one raises KeyboardInterrupt.

    While `at_once` is true, because there is nothing yet that waiting would keep, the first one does.
    """

    def __init__(self, notice: str = _ASKED, at_once: bool = False) -> None:
        """`notice` is what the first SIGINT prints on stderr."""
        self._count, self._notice, self.at_once = 0, f"\n{notice}\n".encode(), at_once

    @property
    def asked(self) -> bool:
        return self._count > 0

    def __enter__(self) -> Interruption:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: Any) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: Any) -> None:
        self._count += 1
        if self._count == (1 if self.at_once else 2):
            raise KeyboardInterrupt  # a further one must not disturb what this one sets going
        if self._count == 1:
            os.write(2, self._notice)  # print could meet the print that the signal interrupted


def ignore_in_worker(worker_id: int) -> None:
    """For data loader processes: a Ctrl-C in the terminal reaches them too, but the main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report


def _report(kind: Any, error: Any, trace: Any) -> None:
    """Errors of a loader process's threads. That the program at the other end has just ended is none."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def command_to_resume(argv: Sequence[str], checkpoint: Path) -> str:
    """The command line that continues the run of the flags `argv` from a checkpoint. The last of equal flags counts."""
    resume = ["--pretrained-checkpoint", str(checkpoint), "--resume-training-from-checkpoint", "True"]
    kept = list(argv)
    if kept[-len(resume) :: 2] == resume[::2] and kept[-1] == "True":  # of the command that resumed this run
        kept = kept[: -len(resume)]
    return shlex.join([sys.executable, sys.argv[0], *kept, *resume])
