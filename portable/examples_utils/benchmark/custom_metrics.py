"""--custom-metrics-files: Python files that read figures from a run which no regular expression finds."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .yaml_lines import SpecError

Reader = Callable[[str, str, int], Any]

_registered: dict[str, Reader] = {}


def register_custom_metric(name: str, function: Reader) -> None:
    """Adds a metric to every benchmark of the session.

    Args:
        function: is called after a run with its standard output, its standard error and its exit status; what it gives
            is the figure, a number or a text. None: there is none here.
    """
    if not callable(function):
        raise TypeError(f"the metric {name} needs a function, not {function!r}")
    _registered[name] = function


def load(files: list[Path]) -> None:
    """Runs the files, which register their metrics. Raises SpecError for one that cannot or registers nothing."""
    _registered.clear()
    problems = []
    for file in files:
        before = dict(_registered)
        try:
            runpy.run_path(str(file))
        except Exception as error:  # whatever a user's file raises
            problems.append(f"--custom-metrics-files {file}: {type(error).__name__}: {error}")
            continue
        if _registered == before:
            problems.append(f"--custom-metrics-files {file}: it calls no register_custom_metric(name, function)")
    if problems:
        raise SpecError(*problems)


def names() -> set[str]:
    """The metrics registered."""
    return set(_registered)


def measure(stdout: str, stderr: str, exit_code: int) -> tuple[dict[str, float | str], list[str]]:
    """The figures of a run, and why others could not be had."""
    figures: dict[str, float | str] = {}
    problems = []
    for name, function in _registered.items():
        try:
            value = function(stdout, stderr, exit_code)
            if value is None:
                continue
            figures[name] = value if isinstance(value, str) else float(value)
            if isinstance(figures[name], float) and not math.isfinite(figures[name]):
                del figures[name]
                raise ValueError(f"{value} is not finite")
        except Exception as error:  # whatever a user's function raises
            problems.append(f"custom metric {name}: {type(error).__name__}: {error}")
    return figures, problems
