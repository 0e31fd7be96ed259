"""Libraries of operators and patterns for PopART, which programs load by path and which need the Poplar SDK.

Such a program goes on without: an operator is refused where it is used, unless a portable one is registered.
"""

from __future__ import annotations

import ctypes
import os
import re
from typing import Any

from . import notices

_SDK = "popart|poplar|poptorch|popops|poplin|popnn|poputil|poprand|popsparse|popfloat|gcl"
# What the dynamic loader says of a library whose dependencies, or whose symbols, the SDK has.
_MISSING = re.compile(rf"\blib({_SDK})\w*\.so|undefined symbol: \w*(popart|poplar)")
_HEADER = re.compile(rf'^\s*#\s*include\s*[<"]({_SDK})/', re.MULTILINE)

absent: list[str] = []  # what was not loaded


def is_source(path: str | os.PathLike) -> bool:
    """Whether a file of C++ is written for PopART, i.e. includes headers of the Poplar SDK."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return _HEADER.search(file.read()) is not None


def is_missing(error: OSError) -> bool:
    """Whether a library cannot be loaded because the Poplar SDK is not there."""
    return _MISSING.search(str(error)) is not None


def passed_over(path: str | os.PathLike) -> ctypes.CDLL:
    """Say once that the library, or what is built of the source, is not loaded; a handle that has none of its names."""
    path = os.fspath(path)
    if path not in absent:
        absent.append(path)
    notices.once(
        ("needs the SDK", path),
        f"{path} needs the Poplar SDK; its operators are refused where they are used, its patterns have no effect.",
    )
    return ctypes.CDLL(None)


def install() -> None:
    """From now on ctypes, and torch.ops.load_library with it, passes over libraries that need the SDK."""
    load = ctypes.CDLL.__init__

    def __init__(self: ctypes.CDLL, name: Any, *args: Any, **kwargs: Any) -> None:
        try:
            load(self, name, *args, **kwargs)
        except OSError as error:
            if not is_missing(error):
                raise
            passed_over(name)
            load(self, None)

    ctypes.CDLL.__init__ = __init__


def advice() -> str:
    """For the refusal of an operator that is not registered."""
    if not absent:
        return ""
    libraries = ", ".join(absent)
    return f" {libraries} would, with the Poplar SDK: register a portable one with poptorch.ops.register_custom_op."
