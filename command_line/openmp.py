"""How long OpenMP's threads spin at a barrier, set before torch loads the library that reads it.

A thread that has done its part of an operation spins until the others have done theirs; only after a while does it
sleep. On cores that other processes want, too, it spins while the one it waits for cannot run. GNU's default is 300,000
turns, a millisecond or more at every barrier, LLVM's and Intel's 200 ms. `python -m benchmarks.busy_machine` compares.
"""

from __future__ import annotations

import os
import sys

# Whichever library torch brings reads its own one: GNU's libgomp turns, LLVM's and Intel's milliseconds.
BOUNDED = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
# What says that the person who runs the program has decided.
DECIDED = (*BOUNDED, "OMP_WAIT_POLICY")


def bound_spinning() -> None:
    """Sets BOUNDED in the environment, for this process and those it starts, unless it is decided or too late.

    Once torch is imported the library has read its variables.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in DECIDED):
        os.environ.update(BOUNDED)
