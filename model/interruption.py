"""Ctrl-C while training: the first ends the run after the current call, the second at once."""

from __future__ import annotations

import signal
import sys
from typing import Any


class Interruption:
    """Counts SIGINTs. `asked` says that the run shall end; a second one raises KeyboardInterrupt where the program is."""

    def __init__(self) -> None:
        self.asked = False
        self._previous = signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(
            "Ctrl-C: the run ends after the current call, with a checkpoint if --save-model-path is given. Press again to "
            "stop at once.",
            file=sys.stderr,
            flush=True,
        )

    def restore(self) -> None:
        """Give Ctrl-C its previous meaning back."""
        signal.signal(signal.SIGINT, self._previous)


def ignore_in_worker(worker_id: int) -> None:
    """For data loader processes: a Ctrl-C in the terminal reaches them too, but the main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
