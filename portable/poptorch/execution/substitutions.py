"""Patches that others want in force while a model is traced (spec section 1)."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager


class _OverwriteContextManager:
    """What is in force around forward() while it is traced: an object of every registered class, entered in order.

    A library that needs functions of its own replaced (as torch_scatter's are on an IPU) registers a class of context
    managers once, at import.
    """

    _subsitution_manager_types: list[type[AbstractContextManager]] = []

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    @classmethod
    def registerSubsitutionManager(cls, subsitution_manager_type: type[AbstractContextManager]) -> None:
        """From the next compilation on, enter `subsitution_manager_type()` around forward(); once per class.

        Raises RuntimeError if that is no class of context managers.
        """
        methods = ("__enter__", "__exit__")
        if not isinstance(subsitution_manager_type, type) or not all(
            hasattr(subsitution_manager_type, m) for m in methods
        ):
            raise RuntimeError(
                f"A substitution manager must be a class with __enter__ and __exit__, got {subsitution_manager_type!r}."
            )
        if subsitution_manager_type not in cls._subsitution_manager_types:
            cls._subsitution_manager_types.append(subsitution_manager_type)

    def __enter__(self) -> _OverwriteContextManager:
        with contextlib.ExitStack() as stack:  # the ones entered already are left if one fails
            for kind in self._subsitution_manager_types:
                stack.enter_context(kind())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)
