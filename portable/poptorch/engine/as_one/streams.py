"""The random numbers of micro-batches that run as one: each draws what it would draw alone.

A value of the program like any other: an operation that draws takes the streams as they are and gives those after it,
so that a segment that is computed a second time draws the same again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

NAME = "streams of the micro-batches"  # among the values of a program


@dataclasses.dataclass(frozen=True)
class Streams:
    """States of the device's default generator, one for each micro-batch."""

    states: tuple[torch.Tensor, ...]
    device: torch.device

    @staticmethod
    def of(seeks: Sequence[Callable[[], None]], device: torch.device) -> Streams:
        """The streams after each of `seeks`, which set the default generator."""
        states = []
        for seek in seeks:
            seek()
            states.append(_generator(device).get_state())
        return Streams(tuple(states), device)

    def draw(self, one: Callable[[int], Any]) -> tuple[list[Any], Streams]:
        """`one(k)` for each micro-batch k, which draws from the default generator; and the streams afterwards."""
        generator = _generator(self.device)
        results, states = [], []
        for number, state in enumerate(self.states):
            generator.set_state(state)
            results.append(one(number))
            states.append(generator.get_state())
        return results, Streams(tuple(states), self.device)


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
