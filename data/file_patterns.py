"""The data files that the words of a command line name."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Sequence


def matching_files(patterns: Sequence[str], flag: str = "--tfrecord-path", suffix: str = ".tfrecord") -> list[Path]:
    """The files that paths, `*` patterns and folders name, in the order of their names.

    The order does not depend on who expanded a pattern, the shell or this. Raises ValueError, with the `flag`, for what
    names no file, and for a file named twice, whose samples would be seen twice. `suffix` is that of files in a folder.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        if os.path.isdir(pattern):
            names = glob.glob(os.path.join(glob.escape(pattern), f"*{suffix}"))
        else:
            names = [pattern] if os.path.exists(pattern) else glob.glob(pattern)
        names = [name for name in names if os.path.isfile(name)]
        if not names:
            raise ValueError(f"{flag} {pattern}: no such file; give '<path>/*{suffix}'")
        for name in names:
            if name.endswith((".index", ".tfindex")):
                raise ValueError(f"{flag} {name}: an index, which is found by itself; give '*{suffix}'")
            real = os.path.realpath(name)
            if real in found:
                raise ValueError(f"{flag} {name}: named twice ({found[real]}); its samples would count double")
            found[real] = name
    return [Path(name) for name in sorted(found.values())]
