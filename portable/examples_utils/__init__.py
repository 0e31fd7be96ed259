"""Loading of compiled custom operators, under the name that PopTorch programs import; benchmark/ runs benchmarks.

Programs import it; it imports no other package here, and torch only to load. Start below, or with benchmark/.
"""

from __future__ import annotations

import ctypes
import os


def load_lib(source: str | os.PathLike) -> ctypes.CDLL:
    """Loads a compiled library of custom operators and registers the torch operators in it.

    Args:
        source: a shared library, or a C++ file beside which a library of the same stem was built.
    Returns:
        A handle of the library.
    Raises:
        RuntimeError: no such library, or it cannot be loaded, e.g. because it was built for the Poplar SDK.
    """
    import torch  # not needed to import this package

    path = os.path.abspath(os.fspath(source))
    stem, extension = os.path.splitext(path)
    if extension in (".cpp", ".cc", ".cxx"):
        path = stem + ".so"
    if not os.path.isfile(path):
        raise RuntimeError(f"custom operator library {path} does not exist\nHINT: build it first, e.g. with `make`")
    try:
        torch.ops.load_library(path)
        return ctypes.CDLL(path)
    except OSError as error:
        raise RuntimeError(
            f"custom operator library {path} cannot be loaded: {error}\n"
            "HINT: build it again on this machine, with the torch that runs it; one built for the Poplar SDK needs it"
        ) from error
