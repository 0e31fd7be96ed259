"""Which process of which machine one is, so that another can name it, see whether it has ended, and end it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket


@dataclasses.dataclass(frozen=True)
class Identity:
    """A process of a program.

    Args:
        host, pid: for a reader. holds: what it has of the model, for a reader.
        place: equal for processes that see each other by their numbers. started: when, by the machine's count.
    """

    host: str
    pid: int
    holds: str
    place: str
    started: str

    @classmethod
    def own(cls, holds: str) -> Identity:
        """This process's."""
        return cls(socket.gethostname(), os.getpid(), holds, _place(), _started(os.getpid()))

    @classmethod
    def from_json(cls, text: str | bytes) -> Identity:
        """What to_json() gave."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(dataclasses.asdict(self))

    def named(self, process: int, processes: int) -> str:
        """For a message, with its number."""
        return f"process {process} of {processes} ({self.holds}; host {self.host}, pid {self.pid})"

    def has_ended(self) -> bool:
        """Whether it is no more. Of processes of other machines that is not known: False."""
        return self.place == _place() and _started(self.pid) != self.started

    def kill(self) -> None:
        """End it, if it is of this machine."""
        if self.place == _place() and not self.has_ended():
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


def _place() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"  # a machine without /proc: every process by itself


def _started(process: int) -> str:
    """When a process was started, as its number may be another's by now. Empty if there is none that runs."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
