"""Checks of what a program passes, raising AssertionError as the contract says."""

from __future__ import annotations

from typing import Any


def require(condition: bool, message: str) -> None:
    """Raises AssertionError(message) unless `condition`: a contract check that `python -O` must not remove."""
    if not condition:
        raise AssertionError(message)


def require_positive_int(name: str, value: Any) -> None:
    """Raises AssertionError unless `value` is an int (not a bool) greater than 0."""
    require(
        isinstance(value, int) and not isinstance(value, bool) and value > 0,
        f"{name} must be an integer greater than 0, got {value!r}",
    )
