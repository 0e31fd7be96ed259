"""OpenMP's threads: how long they spin at a barrier before they sleep, and how many one of several processes has.

Both where nobody has decided, and the spin only where torch has not been imported yet. On cores that other processes
want, too, a thread at a barrier spins while the one it waits for cannot run. GNU's default is 300,000 turns, a
millisecond or more at every barrier, LLVM's and Intel's 200 ms. The loader's processes inherit the variables.

No module of torch is imported here: its OpenMP reads the variables when it is loaded.
"""

from __future__ import annotations

import os
import sys

from . import notices

# Whichever library torch brings reads its own one: GNU's libgomp turns, LLVM's and Intel's milliseconds.
BOUNDED = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
# What says that the person who runs the program has decided.
DECIDED = (*BOUNDED, "OMP_WAIT_POLICY")


THREADS = "OMP_NUM_THREADS"

_late = False


def bounded_spin() -> dict[str, str]:
    """The variables to set in the environment, of this process and those it starts: none if decided, or too late."""
    global _late
    if any(name in os.environ for name in DECIDED):
        return {}
    _late = "torch" in sys.modules
    return {} if _late else BOUNDED


def report_late() -> None:
    """Says, once, that torch was imported first, so that the spin could not be bounded, and what helps."""
    if _late:
        settings = " ".join(f"{name}={value}" for name, value in BOUNDED.items())
        notices.difference(
            "openmp",
            "OpenMP spins: import poptorch before torch",
            "torch was imported before poptorch: its threads spin at barriers for long, which is slow on a machine "
            f"that is busy with something else. Import poptorch first, or set {settings} in the environment.",
        )


def thread_share() -> int | None:
    """How many threads one of the processes that torchrun has started on a machine gets; None if it is decided.

    An equal share of the processors that they may use. torchrun gives each process one thread, unless OMP_NUM_THREADS
    was set when it was started, and sets that variable itself then: its own environment tells who it was.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if os.environ.get(THREADS) != "1" or "TORCHELASTIC_RUN_ID" not in os.environ or not local.isdigit():
        return None
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            decided = any(entry.startswith(THREADS.encode() + b"=") for entry in file.read().split(b"\0"))
        mine, launchers = os.sched_getaffinity(0), os.sched_getaffinity(os.getppid())
    except (OSError, AttributeError):  # another system than Linux, or another user's launcher
        return None
    if decided or int(local) < 2:
        return None
    return len(mine) if mine < launchers else max(1, len(mine) // int(local))  # bound to some, it has them alone


def shared_threads() -> dict[str, str]:
    """The variable to set for the thread_share(), if there is one. torch is told at once where it is loaded already."""
    share = thread_share()
    if share is None:
        return {}
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(share)
    return {THREADS: str(share)}
