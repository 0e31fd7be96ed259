"""One command in a process group of its own: its output in files, looked at now and then, nothing left over of it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

GRACE = 5.0  # seconds between asking a group to end and ending it
_LOOK = 0.2  # seconds between two looks


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `problem` is "" if it succeeded; `cpu_seconds` is what it computed on all cores."""

    exit_code: int | None
    seconds: float
    problem: str = ""
    cpu_seconds: float = 0.0


def run(
    words: list[str],
    folder: Path,
    environment: Mapping[str, str],
    stdout: Path,
    stderr: Path,
    timeout: float | None = None,
    watch: Callable[[float, Path, Path], None] = lambda seconds, stdout, stderr: None,
) -> Outcome:
    """Runs a command, without a shell. What it prints is appended to the files `stdout` and `stderr`.

    Args:
        timeout: seconds after which it and everything it started are ended.
        watch: called a few times a second with the seconds so far and the two files.

    However this function is left, KeyboardInterrupt included, the process group is gone.
    """
    start, cpu_before = time.monotonic(), _cpu_seconds()
    timed_out, process = False, None
    try:
        with stdout.open("ab") as out, stderr.open("ab") as err:
            try:
                with _signals_held_back():
                    process = subprocess.Popen(
                        words, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                        start_new_session=True,
                    )  # fmt: skip
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                return Outcome(None, 0.0, f"{words[0]} cannot be started ({reason})")
        while process.poll() is None:
            seconds = time.monotonic() - start
            watch(seconds, stdout, stderr)
            if timeout is not None and seconds >= timeout:
                timed_out = True
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK if timeout is None else min(_LOOK, max(timeout - seconds, 0.01)))
    finally:
        if process is not None:
            _end_group(process)
    seconds = time.monotonic() - start
    problem = f"timed out after {timeout:g} s" if timed_out else _describe(process.returncode)
    return Outcome(process.returncode, seconds, problem, _cpu_seconds() - cpu_before)


def _cpu_seconds() -> float:
    """What the children that have ended computed, with the ones that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Python handles no signal in here, but after it: a process that Popen has just started would be nobody's."""
    if threading.current_thread() is not threading.main_thread():  # signals do not come here
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            before[came[0]](came[0], None)


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit status {code}" if code else ""
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _end_group(process: subprocess.Popen) -> None:
    """Ends the process, if it still runs, and whatever of its group does."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
