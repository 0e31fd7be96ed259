"""POPLAR_ENGINE_OPTIONS: what Poplar reads from the environment, as far as it means something without an IPU.

A JSON object of texts. `autoReport.all` "true" asks for a report, `autoReport.directory` says where to (default: the
current folder). Options.enableProfiling() sets the same two and wins.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import notices
from ..poptorch_core import createPoptorchError

VARIABLE = "POPLAR_ENGINE_OPTIONS"
EXAMPLE = '{"autoReport.all": "true", "autoReport.directory": "./report_profile"}'
# Details of Poplar's report: whether they are in it or not, there is the same report here.
_DETAILS = "autoReport."


def report_folder(options: Any) -> Path | None:
    """The folder that a report is asked for in, whose name ends in `_profile`; None if none is asked for.

    A directory of another name gets a folder `<program>_profile` in it.

    Raises poptorch.Error for a variable that is no JSON object of texts, or a switch that is neither true nor false.
    """
    given = _from_environment()
    given.update(options._Popart.get("engineOptions", {}))
    other = sorted(name for name in given if not name.startswith(_DETAILS))
    if other:
        notices.once((VARIABLE, tuple(other)), f"These engine options have no effect off-IPU: {', '.join(other)}.")
    if not _switch(given, "autoReport.outputExecutionProfile", _switch(given, "autoReport.all", False)):
        return None
    directory = Path(given.get("autoReport.directory") or ".").absolute()
    return directory if directory.name.endswith("_profile") else directory / f"{program_name()}_profile"


def program_name() -> str:
    """The stem of the program's file; `python` where there is none."""
    stem = Path(sys.argv[0]).stem if sys.argv and sys.argv[0] not in ("", "-c") else ""
    return stem or "python"


def _from_environment() -> dict[str, str]:
    text = os.environ.get(VARIABLE, "")
    if not text.strip():
        return {}
    try:
        given = json.loads(text)
    except ValueError as error:
        raise createPoptorchError(f"{VARIABLE} is not valid JSON ({error}): {text!r}. An example: {EXAMPLE}") from error
    if not isinstance(given, dict):
        raise createPoptorchError(f"{VARIABLE} must be a JSON object, not {text!r}. An example: {EXAMPLE}")
    for name, value in given.items():
        if not isinstance(value, str):
            raise createPoptorchError(
                f'{VARIABLE}: the value of "{name}" must be a text in quotes, not {json.dumps(value)}. '
                f"An example: {EXAMPLE}"
            )
    return given


def _switch(given: Mapping[str, str], name: str, default: bool) -> bool:
    text = given.get(name)
    if text is None:
        return default
    if text.lower() not in ("true", "false"):
        raise createPoptorchError(f'Engine option "{name}" must be "true" or "false", not {text!r}')
    return text.lower() == "true"
