"""How long OpenMP's threads spin at a barrier before they sleep: bounded, where torch has not been imported yet.

On cores that other processes want, too, a thread at a barrier spins while the one it waits for cannot run. GNU's default
is 300,000 turns, a millisecond or more at every barrier, LLVM's and Intel's 200 ms. A process that runs by itself loses
next to nothing by a shorter spin. The loader's processes inherit the variables.

No module of torch is imported here: its OpenMP reads the variables when it is loaded.
"""

from __future__ import annotations

import os
import sys

from . import notices

# Whichever library torch brings reads its own one: GNU's libgomp turns, LLVM's and Intel's milliseconds.
BOUNDED = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
# What says that the person who runs the program has decided.
DECIDED = (*BOUNDED, "OMP_WAIT_POLICY")


_late = False


def bound_spinning() -> None:
    """Sets BOUNDED in the environment, for this process and those it starts, unless it is decided or too late."""
    global _late
    if not any(name in os.environ for name in DECIDED):
        _late = "torch" in sys.modules
        if not _late:
            os.environ.update(BOUNDED)


def report_late() -> None:
    """Says, once, that torch was imported first, so that the spin could not be bounded, and what helps."""
    if _late:
        settings = " ".join(f"{name}={value}" for name, value in BOUNDED.items())
        notices.difference(
            "openmp",
            "OpenMP spins: import poptorch before torch",
            "torch was imported before poptorch: its threads spin at barriers for long, which is slow on a machine that "
            f"is busy with something else. Import poptorch first, or set {settings} in the environment.",
        )
