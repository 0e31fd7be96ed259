"""Ctrl-C and SIGTERM: a long run ends after the current call, the second signal ends it at once."""

from __future__ import annotations

import functools
import mmap
import os
import select
import signal
import sys
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, TypeVar

from corpora.termination import INTERRUPTED, TERMINATED, Terminated, exit_status, terminable
from corpora.termination import SAME_TERMINATION as _SAME_TERMINATION

_ASKED = "the run ends after the current call, with a checkpoint if --save-model-path is given."

# Whether a program's main function is running; processes that it forked see it too.
_runs = mmap.mmap(-1, 1)

PIPE_CLOSED = 128 + signal.SIGPIPE  # the exit status that shells give it

Main = TypeVar("Main", bound=Callable[..., int])


def interruptible(main: Main) -> Main:
    """A program's main function, in which SIGTERM raises Terminated.

    Where it does not catch that, or Ctrl-C, it ends with the exit status and without a traceback. So it does, with that
    of a SIGPIPE, where who reads its standard output has closed it, as `head` does.
    """

    @functools.wraps(main)
    def run(*arguments: Any, **named: Any) -> int:
        with terminable():
            _runs[0] = 1
            try:
                return main(*arguments, **named)
            except KeyboardInterrupt as stop:
                return exit_status(stop)
            except BrokenPipeError:
                if not _nobody_reads():
                    raise
                return PIPE_CLOSED
            finally:
                _runs[0] = 0

    return run  # type: ignore[return-value]


def _nobody_reads() -> bool:
    """Whether standard output is closed at its other end. Then nothing is written there any more."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)  # what is wrong with it is told without being asked for
    except OSError:  # it is no file
        return False
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


class Interruption:
    """Counts SIGINTs and SIGTERMs inside `with`: the first one asks the run to end, the second one ends it at once.

    `asked` says that the run shall end. The second signal raises KeyboardInterrupt, or Terminated if it is a SIGTERM;
    within `deferred` it does so afterwards. Further ones do nothing. While `at_once` is true, because there is nothing
    yet that waiting would keep, the first one does what the second one does.
    """

    def __init__(self, notice: str = _ASKED, at_once: bool = False, quiet: bool = False) -> None:
        """`notice` is what the first signal prints on stderr, behind its name, unless it shall be `quiet`."""
        self._quiet = quiet
        self._count, self._notice, self._program, self.at_once = 0, notice, os.getpid(), at_once
        self._first = self._second = signal.SIGINT
        self._first_at = 0.0
        self._deferring, self._due = 0, False

    @property
    def asked(self) -> bool:
        return self._count > 0

    @property
    def status(self) -> int:
        """The exit status of a program that ends because it was asked to."""
        return TERMINATED if self._first == signal.SIGTERM else INTERRUPTED

    def __enter__(self) -> Interruption:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What happens inside is done to its end: a second signal that comes meanwhile acts when it is over."""
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1
            if self._due and not self._deferring:
                self._due = False
                self._raise()

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._program:  # a process that was forked a moment ago still has this function
            return
        now = time.monotonic()
        if self._count and number == signal.SIGTERM == self._first and now - self._first_at < _SAME_TERMINATION:
            return
        self._count += 1
        if self._count == 1:
            self._first, self._first_at = signal.Signals(number), now
        if self._count == (1 if self.at_once else 2):
            self._second = signal.Signals(number)
            if not self._deferring:
                self._raise()
            self._due = True
            os.write(2, b"\nA checkpoint is being written; the run ends behind it.\n")
        elif self._count == 1 and not self._quiet:
            name, again = ("Ctrl-C", "Press") if number == signal.SIGINT else ("SIGTERM", "Send it")
            text = f"\n{name}: {self._notice} {again} again to stop at once.\n"
            os.write(2, text.encode())  # print could meet the print that the signal interrupted

    def _raise(self) -> None:
        raise Terminated if self._second == signal.SIGTERM else KeyboardInterrupt


def ignore_in_worker(worker_id: int) -> None:
    """For data loader processes: a signal to all processes of a program reaches them too, but the main one decides.

    Which ends them by a message, or, if it is on its way out, by SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_with_the_program)
    sys.excepthook = _report


def _end_with_the_program(number: int, frame: Any) -> None:
    if not _runs[0]:  # nor is it seen by a process that was not forked (Windows, macOS)
        os._exit(0)


def _report(kind: Any, error: Any, trace: Any) -> None:
    """Errors of a loader process's threads. That the program at the other end has just ended is none."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
