"""How long OpenMP's threads spin at a barrier before they sleep: bounded, where torch has not been imported yet.

On cores that other processes want, too, a thread at a barrier spins while the one it waits for cannot run. GNU's
default is 300,000 turns, a millisecond or more at every barrier, LLVM's and Intel's 200 ms. The loader's processes
inherit the variables.

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
