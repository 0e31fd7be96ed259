"""One side of a comparison in a process of its own: asked a line at a time, it answers in JSON.

Sides take turns, so that a machine that drifts drifts for all of them; memory and threads are each side's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import Any, Callable, Mapping


class SideProcess:
    """A side as the benchmark sees it.

    Args:
        program: the file that calls `serve`. name: the side's, for a message.
        settings: what it gets as JSON. "threads" are the CPU threads of its libraries.
        device: "cpu" or "cuda", for the runtime.
        variables: of its environment, beside those that this process has.
        bounded: OpenMP spins in it for as long as in our programs, whatever it imports first, unless the environment
            says something else. What is compared is then what the sides compute.
    """

    def __init__(
        self,
        program: str,
        name: str,
        settings: Mapping[str, Any],
        device: str,
        variables: Mapping[str, str] = {},
        bounded: bool = True,
    ) -> None:
        from command_line.openmp import BOUNDED, DECIDED  # here: in the side this import would decide

        self.name = name
        decided = not bounded or any(variable in os.environ for variable in DECIDED)
        self._process = subprocess.Popen(
            [sys.executable, program, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **({} if decided else BOUNDED),
                **os.environ,
                "OMP_NUM_THREADS": str(settings["threads"]),
                "POPTORCH_PORTABLE_DEVICE": device,
                "TRANSFORMERS_VERBOSITY": "error",
                **variables,
            },
            text=True,
        )

    def ask(self, request: str) -> dict[str, Any]:
        """One answer. RuntimeError if the process has died."""
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"the process that measures '{self.name}' ended early.\n"
                "HINT: its own message is above; --model tiny needs little memory and shows whether it works at all."
            )
        return json.loads(answer)

    def close(self) -> None:
        """The process ends."""
        with contextlib.suppress(BrokenPipeError):  # it may have died, which ask() has told then
            self._process.stdin.close()
        self._process.wait()


def serve(make: Callable[[dict[str, Any]], Mapping[str, Callable[[], Mapping[str, Any]]]]) -> None:
    """The process itself: `make` turns the settings into what answers each request, until the input ends."""
    settings = json.loads(sys.argv[1])
    # Whatever the libraries print goes to the errors' stream: the answers stand alone.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import torch

    torch.set_num_threads(settings["threads"])
    requests = make(settings)
    for line in sys.stdin:
        print(json.dumps(requests[line.strip()]()), file=answers, flush=True)
