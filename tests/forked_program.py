"""Becomes the program that its arguments name, in a process that torchrun has forked (warm_process.FORKED).

There torchrun expects a function, which returns: for one that ends by SystemExit(0) it waits for ever. Without this,
what is registered for the end of the interpreter is not called, and Ctrl-C comes when torchrun ends. The process is
named after its rank: of a fork, /proc has the environment of its parent.
"""

import atexit
import ctypes
import os
import runpy
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    Path("/proc/self/comm").write_text(f"rank {os.environ['RANK']}")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
    sys.argv.pop(0)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    finally:
        atexit._run_exitfuncs()
