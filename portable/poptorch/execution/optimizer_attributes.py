"""Attributes that a program adds to an optimizer too late: they are told, for the device never sees them."""

from __future__ import annotations

import logging

import torch

from .. import notices, optimizer_base


class KnownAttributes:
    """The attributes of an optimizer when the model was compiled; what comes later is told once.

    Args:
        optimizer: the one that the model is compiled with.
        relaxed: tell at the debug level (Options.relaxOptimizerAttributesChecks).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, relaxed: bool):
        self._known = _attributes(optimizer)
        self._level = logging.DEBUG if relaxed else logging.WARNING

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the attributes of `optimizer`, the same or one that takes its place, that are new."""
        added = _attributes(optimizer) - self._known
        if added:
            self._known |= added
            kind = type(optimizer).__name__
            notices.logger.log(
                self._level, f"Ignoring unexpected optimizer attributes in {kind} optimizer: {sorted(added)}"
            )


def _attributes(optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of the object's own. A learning rate scheduler replaces methods, and private names are torch's."""
    own = {name for name in vars(optimizer) if not name.startswith("_") and not hasattr(type(optimizer), name)}
    return own - set(optimizer_base.ATTRIBUTES)
