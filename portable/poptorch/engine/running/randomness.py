"""An executor's own random numbers (spec section 15: each replica has a stream of its own).

What is drawn is a function of the seed, the weight update, the replica, the micro-batch and the stage. Nothing is
kept but the seed and a count, no order of computation changes a number, and several processes draw what one would.
The user's generators are left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch

from ...poptorch_core import createPoptorchError

UPDATE = -1  # in the place of a replica: the numbers of a weight update, which all replicas share


class RandomStreams:
    """The seed of an executor and the iterations that it has run."""

    def __init__(self, seed: int, device: torch.device):
        self._seed = seed
        self._count = 0
        self._device = device

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Around a call: afterwards torch's default generators are as the user left them."""
        cpu = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        try:
            yield
        finally:
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, self._device)

    def seek(self, replica: int, micro_batch: int = 0, stage: int = 0, ahead: int = 0) -> None:
        """What is drawn next is that of a stage of a micro-batch of this iteration or one `ahead`, or of its UPDATE."""
        text = f"{self._seed} {self._count + ahead} {replica} {micro_batch} {stage}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.default_generators[self._device.index or 0].manual_seed(seed)

    def iteration_done(self) -> None:
        """The next iteration has other numbers."""
        self._count += 1

    def as_list(self) -> list[int]:
        """[seed, iterations]."""
        return [self._seed, self._count]

    def load(self, values: list[int]) -> None:
        """Continue from what as_list() gave. Raises poptorch.Error for a list that is none.

        Up to commit c624705 it was [seed, then for each generator the length of its state and the state]; such a list
        is the start of a stream of its own.
        """
        if len(values) == 2 and all(type(value) is int for value in values) and values[1] >= 0:
            self._seed, self._count = values
        elif _is_generator_states(values):
            digest = hashlib.blake2b(repr(list(values)).encode(), digest_size=7).digest()
            self._seed, self._count = int.from_bytes(digest, "little"), 0
        else:
            raise createPoptorchError("rng_state needs a list that an executor's rng_state gave: [seed, iterations].")


def _is_generator_states(values: list[int]) -> bool:
    rest = list(values[1:])
    lengths = []
    while rest:
        size, rest = rest[0], rest[1:]
        if type(size) is not int or not 0 < size <= len(rest):
            return False
        lengths.append(size)
        rest = rest[size:]
    return bool(lengths) and lengths[0] == torch.default_generator.get_state().numel()
