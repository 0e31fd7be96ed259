"""How many micro-batches run as one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

from ...poptorch_core import createPoptorchError
from ..numerics import Numerics
from .stacking import NotProven, StackedProgram

NAME = "micro-batches as one"  # in the record of numerics
VARIABLE = "POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE"
# What the forward pass of all of them may leave behind. GPT-2 small leaves 0.75 MB a token in float32.
BUDGET = 1 << 30  # bytes
# What a pass takes besides its products, as so many rows of them: on a CPU, of two micro-batches of 16 and of 64 rows
# each took 1.53 and 1.18 times as long alone (GPT-2's block, width 768, one thread).
OVERHEAD = 32


@dataclasses.dataclass(frozen=True)
class AsOne:
    """What was chosen.

    Args:
        number: micro-batches that run as one.
        program: for them; None where it was not proven, and they run one at a time.
        reason: why they do, for people.
        give_up: to be called if it turns out that they must run one at a time nevertheless.
    """

    number: int = 1
    program: StackedProgram | None = None
    reason: str = ""
    give_up: Callable[[], None] = lambda: None


def wanted() -> int | None:
    """The number that the environment asks for, if it does. Raises poptorch.Error for what is none."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise createPoptorchError(
            f"{VARIABLE}={text} is not a number of micro-batches: give a whole number, 1 to run them one at a time, "
            "or unset it"
        )
    return int(text)


def fastest(micro_batches: int, rows: int, processes: int, most: int) -> int:
    """How many as one make a pipeline fastest, up to `most`: larger passes do more at a time, fewer fill it worse.

    Args:
        rows: of the products of one micro-batch. processes: that work at the same time, each a pass behind another.
    """
    divisors = [number for number in range(1, most + 1) if micro_batches % number == 0]
    passes = {number: micro_batches // number + processes - 1 for number in divisors}
    return min(divisors, key=lambda number: passes[number] * (number * rows + OVERHEAD), default=1)


def choose(
    make: Callable[[], StackedProgram],
    micro_batches: int,
    numerics: Numerics,
    most: int | None = None,
    refused: str = "",
    worth: int | None = None,
) -> AsOne:
    """As many micro-batches as one as the budget, or the environment, has room for: a divisor of `micro_batches`.

    Args:
        make: makes the program for several, or raises NotProven. It is called if there can be several.
        micro_batches: of one weight update, or in inference of one call.
        numerics: where the number is settled: a run keeps it.
        most: there may be no more as one than that, whatever the environment says. worth: more are no faster.
        refused: why there may be no more than one, if so.
    """
    asked = wanted()
    most = micro_batches if most is None else min(micro_batches, most)
    try:
        if refused or most < 2:
            raise NotProven(refused or "there are too few of them")
        program = make()
    except NotProven as reason:
        if numerics.kept(NAME) is not None:
            without = f"which is not possible here ({reason})"
            numerics.settle(NAME, lambda: 1, possible=lambda kept: kept == 1, otherwise=without)
        return AsOne(reason=str(reason))
    room = BUDGET // max(1, program.bytes)
    limit = min(room, most if worth is None else worth) if asked is None else asked
    number = numerics.settle(
        NAME,
        lambda: max((n for n in range(1, min(limit, most) + 1) if micro_batches % n == 0), default=1),
        possible=lambda kept: isinstance(kept, int) and 1 <= kept <= most and micro_batches % kept == 0,
        otherwise="which does not fit its micro-batches any more",
        asked=None if asked is None else VARIABLE,
    )
    if number > 1:
        return AsOne(number, program, give_up=lambda: numerics.give_up(NAME, 1))
    reason = "one takes the memory meant for all of them" if room < 2 else "more as one would be no faster"
    if asked is not None:
        reason = f"{VARIABLE}={asked}"
    return AsOne(1, program, "the run began so" if numerics.kept(NAME) == 1 else reason)
