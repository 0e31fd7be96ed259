"""What the numbers of a program depend on besides the program: choices of the machine, which a run keeps.

The type that products of half are computed in, how many micro-batches run as one, the version of a generator: each is
chosen where a program is compiled, and each changes its numbers in the last bits. The choices are therefore the run's.
They travel with the optimizer's state, under RECORD, as one mapping of names and plain values, and a resumed run goes
on with them whatever machine it is on. In several processes those of the first hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import notices
from ..poptorch_core import createPoptorchError
from .processes import group

RECORD = "ipu_numerics"  # beside ipu_state and ipu_param in an optimizer's state
Value = int | str


class Numerics:
    """The choices of one compiled program.

    Args:
        kept: the state that the program continues from, as read_optimizer() gave it, or None.
    """

    def __init__(self, kept: Mapping[str, Any] | None = None):
        self._resumes = kept is not None
        self._kept: dict[str, Value] = dict((kept or {}).get(RECORD) or {})
        self._choices: dict[str, Value] = {}
        self._shares = False  # whether other processes settle the same
        self._new: list[str] = []  # names that the state does not know

    def settle(
        self,
        name: str,
        choose: Callable[[], Value],
        *,
        possible: Callable[[Value], bool] = lambda value: True,
        otherwise: str = "which this device lacks",
        asked: str | None = None,
    ) -> Value:
        """The value that holds for `name`: the run's, or else what `choose()` returns; asked again, the same.

        After share() every process must ask for the same names in the same order.
        Raises poptorch.Error if the first process has a value that is not possible here.

        Args:
            choose: what this machine would choose; called in any case, so that a difference can be told.
            possible: whether a value that another machine chose can be had here. otherwise: why not, for people.
            asked: who asked for what `choose()` returns, if it was no choice of the machine: that holds then.
        """
        if name in self._choices:
            return self._can(name, self._choices[name], possible, otherwise)
        chosen, kept = choose(), self._kept.get(name)
        value = chosen
        if kept is None:
            if self._resumes:
                self._new.append(name)
        elif kept != chosen and asked is not None:
            _say(f"{name}: {chosen}, as {asked} asks. The run began with {kept}, and goes on, but not to the bit.")
        elif kept != chosen and not possible(kept):
            _say(f"{name}: {chosen}. The run began with {kept}, {otherwise}, and goes on without it.")
        elif kept != chosen:
            value = kept
            _say(f"{name}: {kept}, with which the run began. This machine would choose {chosen}.")
        if self._shares:
            value = self._can(name, group.from_first(value), possible, otherwise)
        self._choices[name] = value
        return value

    @staticmethod
    def _can(name: str, value: Value, possible: Callable[[Value], bool], otherwise: str) -> Value:
        """`value`, which may be the first process's."""
        if not possible(value):
            raise createPoptorchError(
                f"{name}: the first process has {value}, {otherwise}: start all processes with the same environment, "
                "on machines that are alike"
            )
        return value

    def kept(self, name: str) -> Value | None:
        """What the state that the program continues from says of `name`, or None."""
        return self._kept.get(name)

    def give_up(self, name: str, value: Value) -> None:
        """What was settled turned out not to do: `value` holds from now on, and is recorded."""
        self._choices[name] = value

    def share(self) -> bool:
        """The choices of the first process hold from now on; whether one of them is another than here.

        To be called in all processes once they have met.
        """
        if self._shares:
            return False
        self._shares = True
        first = group.from_first(self._choices)
        differs = first != self._choices
        self._choices = first
        return differs

    def settled(self, name: str) -> Value | None:
        """What was settled for `name`, or None."""
        return self._choices.get(name)

    def record(self) -> dict[str, dict[str, Value]]:
        """The entry of the optimizer's state, {RECORD: {name: value}}; nothing where nothing was chosen."""
        values = dict(sorted(self._choices.items()))
        return {RECORD: values} if values else {}

    def report(self) -> None:
        """One line for everything that a state of an earlier version says nothing about."""
        if self._new:
            chosen = ", ".join(f"{name}: {self.settled(name)}" for name in self._new)
            _say(f"The optimizer state has no record of {chosen}: its steps may have been computed otherwise.")
        self._new.clear()

    def compare(self, state: Mapping[str, Any] | None) -> None:
        """One line if `state`, which is loaded into the compiled program, was reached with other choices."""
        for name, value in ((state or {}).get(RECORD) or {}).items():
            held = self.settled(name)
            if held is not None and value not in (held, self._kept.get(name)):  # settle() told of the latter
                _say(
                    f"{name}: the loaded optimizer state was reached with {value}, this program was compiled with "
                    f"{held} and stays so: load a state before the program is compiled to continue it to the bit."
                )


def _say(line: str) -> None:
    notices.once(("numerics", line), line)
