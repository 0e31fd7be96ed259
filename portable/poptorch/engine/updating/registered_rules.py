"""Update rules that a program brings along for optimizers PopTorch does not have: the one way to add any.

A class of optimizer has a rule in its own attribute `portable_update_rule`, which a program may set without importing
anything from here, and an IPU never looks at; register_update_rule() sets it, for a class that is somebody else's.
Subclasses do not inherit it: their step() may be another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

ATTRIBUTE = "portable_update_rule"
# Group entries that are no numbers of a rule.
_NO_NUMBERS = frozenset({"params", "param_names", "initial_lr", "lr"})

# A state's shape and type.
StateForm = tuple[torch.Size, torch.dtype]


class UpdateRule(Protocol):
    """How one kind of optimizer updates one parameter.

    Attributes:
        block: how many neighbouring elements of a parameter belong together; the runtime may hand over a parameter
            flattened and in pieces of whole blocks, and share them out among processes. 1: elements are independent;
            None: only whole parameters, in their shape, can be updated, and no state is shared out.
    """

    block: int | None

    def states(self, shape: torch.Size, group: Mapping[str, Any]) -> Mapping[str, StateForm]:
        """Shape and type of each state that a parameter of this shape needs, by name; all begin as zeros.

        With a `block` a state has the parameter's shape or is a vector with an entry for each block. Names are letters,
        digits and single underscores.
        """
        ...

    def update(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        states: Mapping[str, torch.Tensor],
        group: Mapping[str, Any],
        step: int,
        norm: torch.Tensor,
    ) -> None:
        """Change `weight` and `states` in place; no gradient is recorded.

        Args:
            weight, gradient: float32, of one shape; what is stored in half is rounded afterwards. The gradient is
                reduced, without loss scaling, and may be overwritten.
            states: as `states` said, or the entries that belong to the piece.
            group: the entries of the parameter's group, with the optimizer's defaults for what it lacks.
            step: the number of this update, from 1.
            norm: 0-d, the norm of the whole parameter's gradient, whatever the piece.
        """
        ...


def register_update_rule(optimizer_class: type[torch.optim.Optimizer], rule: UpdateRule) -> None:
    """From now on training executors take optimizers of exactly this class and update by `rule`.

    Raises TypeError for what is no class of optimizers, or a rule without the parts of UpdateRule.
    """
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
        raise TypeError(f"an update rule is registered for a class of torch.optim.Optimizer, not {optimizer_class!r}")
    _check(rule, optimizer_class)
    setattr(optimizer_class, ATTRIBUTE, rule)


def registered_rule(optimizer: torch.optim.Optimizer) -> UpdateRule | None:
    """The rule of this optimizer's own class, None if it has none. Raises TypeError for what is no rule."""
    rule = vars(type(optimizer)).get(ATTRIBUTE)
    if rule is not None:
        _check(rule, type(optimizer))
    return rule


def _check(rule: Any, optimizer_class: type) -> None:
    missing = [name for name in ("states", "update") if not callable(getattr(rule, name, None))]
    block = getattr(rule, "block", 0)
    if block is not None and not (isinstance(block, int) and block >= 1):
        missing.append("block (None or a whole number from 1 on)")
    if missing:
        raise TypeError(f"the update rule of {optimizer_class.__name__} lacks {', '.join(missing)}: see UpdateRule")


def group_numbers(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What a rule is told of a group but for lr: its entries and the optimizer's defaults, hashable and in order."""
    found = {key: value for key, value in {**defaults, **group}.items() if key not in _NO_NUMBERS}
    return tuple(sorted((key, tuple(value) if isinstance(value, list) else value) for key, value in found.items()))


def forms(rule: UpdateRule, shape: torch.Size, part: int, group: Mapping[str, Any]) -> dict[str, StateForm]:
    """Shapes and types of the states of a parameter of this shape of which `part` elements are here."""
    whole = {role: (torch.Size(form), dtype) for role, (form, dtype) in rule.states(shape, group).items()}
    if part == math.prod(shape):
        return whole
    each = {role: entry_elements(rule, shape, form) for role, (form, _) in whole.items()}
    return {role: (torch.Size([-(-part // each[role])]), dtype) for role, (_, dtype) in whole.items()}


def entry_elements(rule: UpdateRule, shape: torch.Size, form: torch.Size) -> int:
    """How many elements of a parameter of `shape` an entry of its state of shape `form` stands for."""
    return 1 if form == shape or rule.block is None else rule.block


def pieces(rule: UpdateRule, elements: int, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of a parameter's elements to be updated at a time: whole blocks, about `limit` elements at most."""
    if rule.block is None:
        yield 0, elements
        return
    size = max(1, limit // rule.block) * rule.block
    for start in range(0, elements, size):
        yield start, min(elements, start + size)


def of_piece(
    states: Mapping[str, torch.Tensor], rule: UpdateRule, elements: int, start: int, stop: int
) -> dict[str, torch.Tensor]:
    """Views of the entries of `states`, of a parameter of so many elements, that belong to a range of these."""
    if rule.block is None:
        return dict(states)
    found = {}
    for role, state in states.items():
        each = 1 if state.numel() == elements else rule.block
        found[role] = state.view(-1)[start // each : -(-stop // each)]  # `start` is at the beginning of a block
    return found
