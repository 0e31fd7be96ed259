"""Executors in files (spec section 10): model, options, optimizer and device state; the program is traced anew."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import types
import zipfile
from typing import Any

import torch

from .. import notices, optim
from ..checks import require
from ..engine.processes import group
from ..poptorch_core import createPoptorchError

_FORMAT = "poptorch-portable executor"
_FORMAT_VERSION = 1
_AT_ONCE = 1 << 20  # bytes that are compared together


# Modules whose objects are in files, by the names that they had up to commit c624705.
_OLD_MODULES = {
    "poptorch.blocks": "poptorch.operations.blocks",
    "poptorch.hosting": "poptorch.execution.hosting",
    "poptorch.option_groups": "poptorch.options.groups",
    "poptorch.option_placement": "poptorch.options.placement",
    "poptorch.options_dict": "poptorch.options.base",
    "poptorch.strategies": "poptorch.options.strategies",
    "poptorch.tensor_locations": "poptorch.options.tensor_locations",
}


class _Unpickler(pickle.Unpickler):
    """Finds what earlier versions wrote under the names of their modules."""

    def find_class(self, module: str, name: str) -> Any:
        """The object `name` of `module`, wherever that module is now."""
        return super().find_class(_OLD_MODULES.get(module, module), name)


def _load(file: Any, **how: Any) -> Any:
    return _Unpickler(file, **how).load()


# What torch.load asks of a module that unpickles.
_PICKLE = types.SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=_load)


def _path(filename: str | os.PathLike) -> pathlib.Path:
    path = pathlib.Path(filename)
    return path / "model.poptorch" if path.is_dir() else path


def save(executor: Any, filename: str | os.PathLike, export_model: bool, save_rng_state: bool) -> None:
    """Write `executor` to `filename`, all at once: a temporary file is renamed over it.

    Where several processes have parts of the weights or of the optimizer's state all must call it, the first writes,
    and none goes on before it has.
    """
    path = _path(filename)
    if executor._source is not None:
        executor._source.sync()
    if export_model:
        executor._gather()
    contents: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "version": executor._version,
        "training": executor._training,
        "rng_state": executor.rng_state if save_rng_state else None,
        "call": executor._compiled.call.example(),
    }
    session, optimizer = executor._session, executor._optimizer
    ours = isinstance(optimizer, optim.Optimizer)
    state = executor._kept_state
    if export_model and executor._training and session is not None:
        state = session.read_optimizer()
    if export_model:
        contents["model"] = executor._model
        contents["options"] = executor._options
        contents["optimizer"] = optimizer
        # Of torch's own optimizers; those of poptorch.optim carry it with them.
        contents["optimizer_state"] = None if ours else state
    read_already = optimizer._linked_to(state) if ours and session is not None else contextlib.nullcontext()
    with read_already:
        group.in_first(lambda: _write(contents, path), None if session is None else session.together)


def _write(contents: dict[str, Any], path: pathlib.Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")  # other processes may write the same file
    try:
        torch.save(contents, temporary)
        os.replace(temporary, path)
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # what unpicklable objects raise
        raise createPoptorchError(
            f"The model cannot be written to {path} ({error}): define its classes and hooks at the top of a module, or "
            "save with export_model=False."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(filename: str | os.PathLike) -> dict[str, Any]:
    """The contents of an executor file, or AssertionError "Invalid file …"."""
    path = _path(filename)
    try:
        _compare(path)
        contents = torch.load(path, weights_only=False, pickle_module=_PICKLE)
    except FileNotFoundError as error:
        raise AssertionError(f"Invalid file {path}: no such file.") from error
    except Exception as error:  # whatever a file that is none of ours makes of the unpickler
        raise AssertionError(
            f"Invalid file {path}: not written by PoplarExecutor.save, or damaged since ({error})."
        ) from error
    if not isinstance(contents, dict) or contents.get("format") != _FORMAT:
        raise AssertionError(f"Invalid file {path}: not written by PoplarExecutor.save.")
    if contents["format_version"] != _FORMAT_VERSION:
        raise AssertionError(
            f"Invalid file {path}: format version {contents['format_version']}, not {_FORMAT_VERSION}."
        )
    return contents


def _compare(path: pathlib.Path) -> None:
    """Compares the parts of what torch.save wrote with their CRCs; torch.load does not. Raises BadZipFile."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as parts:
        for entry in parts.infolist():
            if entry.CRC:  # none of torch.utils.serialization.config.save.compute_crc32 False
                with parts.open(entry) as part:
                    while part.read(_AT_ONCE):
                        pass


def load_executable(executor: Any, filename: str | os.PathLike) -> None:
    """Compile `executor` for the call in the file. Raises poptorch.Error "Invalid file …"."""
    try:
        contents = read(filename)
        require(
            contents["training"] == executor._training,
            f"Invalid file {filename}: it was made for {'training' if contents['training'] else 'inference'}.",
        )
    except AssertionError as error:
        raise createPoptorchError(str(error)) from error
    if executor._compiled is not None:
        notices.logger.warning("Call to loadExecutable() ignored: the executable is already compiled")
        return
    args, kwargs = contents["call"]
    executor.compile(*args, **kwargs)
    if contents["rng_state"] is not None and not executor._options.exists("random_seed"):
        executor.rng_state = contents["rng_state"]


def importPoptorchMetadataFromFile(filename: str | os.PathLike) -> dict[str, Any]:
    """What is in a file of PoplarExecutor.save or compileAndExport. AssertionError "Invalid file …" for another."""
    return read(filename)
