"""Native operators of the program. `make` builds them into custom_ops.so at the root of the repository.

Each is a family with one stem: <op>.py says what it means in plain torch (start there), <op>_popart.cpp is the PopART
operator for IPUs, <op>_torch.cpp the torch operator for CPU and CUDA. Training and generation import it, and it imports
no torch: a program calls load() once and then names the operator in poptorch.custom_op.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).resolve().parent.parent / "custom_ops.so"
HINT = "HINT: run `make clean && make`"

_reference: list[Any] = []  # the torch.library.Library objects: an operator lives as long as its library


def build_stamp(library: Path) -> str | None:
    """What `library` says it was built for ("torch 2.13.0 …", "PopART …"); None if it says nothing."""
    found = re.search(rb"custom_ops built for ([^\0]+)\0", library.read_bytes())
    return found.group(1).decode() if found else None


@functools.lru_cache(maxsize=None)
def load() -> str:
    """Registers the operators, once: "native" from custom_ops.so, "reference" in plain torch if it is not built.

    The environment variable CUSTOM_OPS_SO names another file. Loading is a dlopen, which is all that the PopART
    build needs too. ValueError if CUSTOM_OPS_SO names no file, RuntimeError if the library is for another torch.
    """
    override = os.environ.get("CUSTOM_OPS_SO")
    library = Path(override) if override else LIBRARY
    if library.is_file():
        _load_native(library)
        return "native"
    if override:
        raise ValueError(f"CUSTOM_OPS_SO={override}: no such file; unset it, or build one with `make`")
    from custom_ops import remap_ce

    logging.getLogger(__name__).warning("custom_ops.so is not built: plain torch serves the custom ops; run `make`")
    _reference.append(remap_ce.register())
    return "reference"


def _load_native(library: Path) -> None:
    import torch

    stamp = build_stamp(library) or ""
    if stamp.startswith("torch ") and stamp.split()[1] != torch.__version__:
        message = "{} was built for {}, but torch {} is installed"
        raise RuntimeError("\n".join([message.format(library, " ".join(stamp.split()[:2]), torch.__version__), HINT]))
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise RuntimeError(f"{library} cannot be loaded: {error}\n{HINT}") from error
