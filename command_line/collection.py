"""Python's garbage collector rests while a program imports, and passes over what came with torch ever after.

Importing torch makes many objects that stay, and the collector goes through them again and again: of the processor time
that importing torch and torch.export takes it had a seventh (6.2 against 5.3 s), and of a program's first step another
half a second, half of it when the process ends.
"""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager
from typing import Iterator


@contextmanager
def no_collection() -> Iterator[None]:
    """Nothing is collected inside this context, which is for imports.

    What came about in it is looked at afterwards, as ever, unless it imported torch: then it stays until the end.
    """
    collects, torch_before = gc.isenabled(), "torch" in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if "torch" in sys.modules and not torch_before:
            gc.freeze()
        if collects:
            gc.enable()
