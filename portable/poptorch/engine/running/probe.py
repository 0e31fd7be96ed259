"""Where a report may look on while a call runs. Without one these calls do nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

_NOTHING = contextlib.nullcontext()


class Probe:
    """Told what the executor is doing. This one does not listen; auto_report.AutoReport does."""

    def call(self) -> AbstractContextManager:
        """Around one call of the executor."""
        return _NOTHING

    def micro_batch(self, iteration: int, index: int, count: int, together: int = 1) -> None:
        """Micro-batch `index` of the `count` in this iteration is about to start, and those that run as one with it."""

    def forward(self, stage: Any, values: dict[str, Any]) -> AbstractContextManager:
        """Around a stage's forward pass; `values` has its outputs afterwards."""
        return _NOTHING

    def backward(self, stages: Sequence[Any] = (), micro_batch: int | None = None) -> AbstractContextManager:
        """Around the backward pass of one micro-batch, the current one if not said, through all stages or these."""
        return _NOTHING

    def waiting(self) -> AbstractContextManager:
        """Around what this process needs another one for, and has to wait."""
        return _NOTHING

    def communication(self) -> AbstractContextManager:
        """Around what this process sends to others, or adds up with them."""
        return _NOTHING

    def holds(self, state: Any, gradients: Mapping[str, Any], states: Mapping[str, Mapping[str, Any]]) -> None:
        """What is in the device's memory: a DeviceState, accumulated gradients, an optimizer's states by parameter."""

    def offline(self) -> None:
        """The program was compiled for a device that is not here: there will be no call."""

    def events(self) -> list[dict[str, Any]] | None:
        """What happened when in the last call, by clock.now(), if all processes are to tell that; otherwise None."""
        return None

    def facts(self) -> dict[str, Any]:
        """What this process tells of itself together with events()."""
        return {}

    def telling(self) -> AbstractContextManager:
        """Around telling it, for which the processes wait for each other."""
        return _NOTHING

    def told(self, events: list[dict[str, Any]], facts: list[dict[str, Any]]) -> None:
        """To the probe of the first process: the events of all, and the facts of each."""

    def update(self) -> AbstractContextManager:
        """Around the optimizer's step."""
        return _NOTHING

    def iteration_done(self) -> None:
        """An iteration is over, its update included."""
