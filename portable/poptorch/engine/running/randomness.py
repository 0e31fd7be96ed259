"""An executor's own random numbers: the program's streams go on from call to call, the user's are left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ...poptorch_core import createPoptorchError


class RandomStreams:
    """The states of the CPU's generator and of the device's, if that is another one."""

    def __init__(self, seed: int, device: torch.device):
        self._seed = seed
        self._device = device
        self._states = [torch.Generator().manual_seed(seed).get_state()]
        if device.type == "cuda":
            self._states.append(torch.Generator(device).manual_seed(seed).get_state())

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Inside this context torch's default generators draw from these streams."""
        before = self._current()
        self._set(self._states)
        try:
            yield
        finally:
            self._states = self._current()
            self._set(before)

    def _current(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else states

    def _set(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)

    def as_list(self) -> list[int]:
        """[seed, then for each state its length and its bytes]."""
        values = [self._seed]
        for state in self._states:
            values.extend([state.numel(), *state.tolist()])
        return values

    def load(self, values: list[int]) -> None:
        """Continue from what as_list() gave; a state for a device that is not there is left out.

        Raises poptorch.Error for a list that is none.
        """
        states, rest = [], list(values[1:])
        while rest:
            size, rest = rest[0], rest[1:]
            if not isinstance(size, int) or len(rest) < size:
                break
            states.append(torch.tensor(rest[:size], dtype=torch.uint8))
            rest = rest[size:]
        if rest or not states or states[0].numel() != self._states[0].numel():
            raise createPoptorchError("rng_state needs a list that an executor's rng_state gave: [seed, state …].")
        self._seed = values[0]
        states = states[: len(self._states)]
        self._states = states + self._states[len(states) :]
