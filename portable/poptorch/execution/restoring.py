"""An executor from a file of PoplarExecutor.save (spec section 10)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..enums import ConnectionType
from .executor import PoplarExecutor
from .saving import read


def load(filename: str | os.PathLike, edit_opts_fn: Callable[[Any], None] | None = None) -> PoplarExecutor:
    """Restore an executor written with export_model=True: weights, optimizer and its state, random numbers.

    It is ready to run: the program is compiled for inputs of the saved shapes. An offline target among the options is
    dropped, and ConnectionType.Never becomes Always; then `edit_opts_fn` may change the options.
    Raises AssertionError for another file, or one without a model.
    """
    contents = read(filename)
    if "model" not in contents:
        raise AssertionError(
            f"{filename} was created with 'export_model=False': it holds no model to load. Save it with "
            "export_model=True."
        )
    options = contents["options"].clone()
    options.deleteIfExists("ipu_version")
    if options.connection_type is ConnectionType.Never:
        options.connectionType(ConnectionType.Always)
    if edit_opts_fn is not None:
        edit_opts_fn(options)
    executor = PoplarExecutor(
        contents["model"], options, contents["training"], contents["version"], contents["optimizer"]
    )
    executor._kept_state = contents["optimizer_state"]
    args, kwargs = contents["call"]
    executor.compile(*args, **kwargs)
    if contents["rng_state"] is not None:
        executor.rng_state = contents["rng_state"]
    return executor
