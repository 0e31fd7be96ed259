"""Commands that start a program several times, poprun and mpirun: how many instances, and whether they are here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

# The programs that start others, and the flags that say how many.
_INSTANCES = {
    "poprun": ("--num-instances",),
    "mpirun": ("--np", "-np", "-n", "--n", "-c"),
    "mpiexec": ("--np", "-np", "-n", "--n", "-c"),
}


def _launcher(words: list[str]) -> str:
    """The launcher that a command begins with; "" if it begins with no launcher."""
    name = os.path.basename(words[0]) if words else ""
    return name if name in _INSTANCES else ""


def instances(words: list[str]) -> int:
    """How many processes of the program a command starts: mpirun --np 4, poprun --num-instances=4; else 1."""
    flags = _INSTANCES.get(_launcher(words), ())
    for index, word in enumerate(words):
        if os.path.basename(word).startswith("python") or word.endswith(".py"):
            break  # what follows are the program's own flags
        flag, equals, value = word.partition("=")
        if flag in flags:
            number = value if equals else words[index + 1] if index + 1 < len(words) else ""
            return int(number) if number.isdecimal() and int(number) > 0 else 1
    return 1


def is_absent(words: list[str], environment: Mapping[str, str], folder: Path) -> bool:
    """Whether a command needs a launcher that this machine does not have, so that it never starts here."""
    if not _launcher(words):
        return False
    program = words[0] if os.sep not in words[0] else str(folder / words[0])
    return shutil.which(program, path=environment.get("PATH", os.defpath)) is None
