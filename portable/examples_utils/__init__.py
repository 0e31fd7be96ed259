"""Loading of compiled custom operators, under the name that PopTorch programs import; benchmark/ runs benchmarks.

Programs import it; it imports poptorch and torch only to load. Start below, or with benchmark/.
"""

from __future__ import annotations

import ctypes
import os


def load_lib(source: str | os.PathLike) -> ctypes.CDLL:
    """Loads a compiled library of custom operators and registers the torch operators in it.

    Args:
        source: a shared library, or a C++ file beside which a library of the same stem was built.
    Returns:
        A handle of the library; for PopART source that nobody built, and for a library that needs the Poplar SDK, one
        without its names, and a log line.
    Raises:
        RuntimeError: no such library, or it cannot be loaded.
    """
    import torch  # not needed to import this package

    from poptorch import popart_libraries

    path = os.path.abspath(os.fspath(source))
    stem, extension = os.path.splitext(path)
    if extension in (".cpp", ".cc", ".cxx"):
        if os.path.isfile(path) and not os.path.isfile(stem + ".so") and popart_libraries.is_source(path):
            return popart_libraries.passed_over(path)
        path = stem + ".so"
    if not os.path.isfile(path):
        raise RuntimeError(f"custom operator library {path} does not exist\nHINT: build it first, e.g. with `make`")
    try:
        torch.ops.load_library(path)
        return ctypes.CDLL(path)
    except OSError as error:
        raise RuntimeError(
            f"custom operator library {path} cannot be loaded: {error}\n"
            "HINT: build it again on this machine, with the torch that runs it"
        ) from error
