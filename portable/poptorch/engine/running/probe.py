"""Where a report may look on while a call runs. Without one these calls do nothing."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

_NOTHING = contextlib.nullcontext()


class Probe:
    """Told what the executor is doing. This one does not listen; auto_report.AutoReport does."""

    def call(self) -> AbstractContextManager:
        """Around one call of the executor."""
        return _NOTHING

    def micro_batch(self, iteration: int, index: int, count: int) -> None:
        """Micro-batch `index` of the `count` in this iteration is about to start."""

    def forward(self, stage: Any, values: dict[str, Any]) -> AbstractContextManager:
        """Around a stage's forward pass; `values` has its outputs afterwards."""
        return _NOTHING

    def backward(self) -> AbstractContextManager:
        """Around the backward pass of one micro-batch."""
        return _NOTHING

    def update(self) -> AbstractContextManager:
        """Around the optimizer's step."""
        return _NOTHING

    def iteration_done(self) -> None:
        """An iteration is over, its update included."""
