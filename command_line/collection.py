"""Python's garbage collector rests while a program starts.

Importing torch and tracing a model make some million objects that stay; the collector goes through them again and again
and finds next to nothing, for a seventh of the start's processor time.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import Iterator


@contextmanager
def no_collection() -> Iterator[None]:
    """Nothing is collected inside this context. What came about in it is afterwards, as ever."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
