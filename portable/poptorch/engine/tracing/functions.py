"""Calls that tracing must not look into: torch.autograd.Function and the CTC loss.

Export records the operations of a Function's forward and silently forgets its backward. While a model is traced
`Function.apply` therefore leaves markers around these operations, and afterwards one node that calls the Function
itself takes their place. The CTC loss reads the values of its length arguments, which tracing does not have: an
operator with the right output shape stands in for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import _SingleLevelFunction
from torch.utils.checkpoint import CheckpointFunction

from ...poptorch_core import createPoptorchError
from . import markers


@dataclasses.dataclass
class FunctionCall:
    """One call of a torch.autograd.Function: the class and the arguments, tensors replaced by their numbers."""

    function: type[torch.autograd.Function]
    arguments: tuple[Any, ...]
    single: bool  # it returns one tensor, not a tuple
    positions: tuple[int, ...] = (0,)  # of the tensors in what it returns; the rest is constants

    def target(self, number: int) -> Callable[..., Any]:
        """A function of the tensors alone, to be called by a graph."""

        def apply(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            arguments = [tensors[item.index] if isinstance(item, _Tensor) else item for item in self.arguments]
            result = self.function.apply(*arguments)
            return (result,) if self.single else tuple(result)

        apply.__name__ = apply.__qualname__ = f"{self.function.__name__}_{number}"
        return apply


@dataclasses.dataclass(frozen=True)
class _Tensor:
    index: int


@contextlib.contextmanager
def recorded(calls: list[FunctionCall]) -> Iterator[None]:
    """Inside this context every call of a torch.autograd.Function is marked in the graph and added to `calls`.

    Function.apply itself cannot be exchanged: programs keep it (`relu = MyReLU.apply`). What it calls can.
    """

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if cls is CheckpointFunction:  # torch.utils.checkpoint: what it wraps is a part of the program
            return args[0](*args[2:])
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        numbers = iter(range(len(tensors)))
        template = tuple(_Tensor(next(numbers)) if isinstance(value, torch.Tensor) else value for value in args)
        number = len(calls)
        calls.append(FunctionCall(cls, template, single=True))
        markers.BEGIN_FUNCTION(number, tensors)
        result = super(_SingleLevelFunction, cls).apply(*args, **kwargs)
        calls[number].single = isinstance(result, torch.Tensor)
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        positions = tuple(i for i, output in enumerate(outputs) if isinstance(output, torch.Tensor))
        for position in positions:  # nodes of their own even where forward() returns what it was given
            outputs[position] = outputs[position].clone()
        calls[number].positions = positions
        markers.END_FUNCTION(number, [outputs[position] for position in positions])
        return outputs[0] if calls[number].single else tuple(outputs)

    _SingleLevelFunction.apply = classmethod(apply)
    try:
        yield
    finally:
        del _SingleLevelFunction.apply


def replace_functions(graph: torch.fx.Graph, constants: dict[str, torch.Tensor], calls: list[FunctionCall]) -> None:
    """Put the calls in the places of the operations that were recorded for them, and the real CTC loss in its own.

    `constants` names the placeholders of constants: a Function's forward makes its own anew.
    Raises poptorch.Error if a Function reads a tensor that it was not given.
    """
    for node in list(graph.nodes):
        if node.target is _CTC:
            node.target = _ctc_loss
    while True:
        nodes = list(graph.nodes)
        ends = [index for index, node in enumerate(nodes) if node.target is markers.END_FUNCTION]
        if not ends:
            return
        # The last end closes an outermost call; what it calls inside disappears with it.
        end = nodes[ends[-1]]
        number = end.args[0]
        begin = next(i for i, n in enumerate(nodes) if n.target is markers.BEGIN_FUNCTION and n.args[0] == number)
        _replace(graph, nodes[begin], nodes[begin + 1 : ends[-1]], end, constants, calls[number])


def _replace(
    graph: torch.fx.Graph,
    begin: torch.fx.Node,
    region: list[torch.fx.Node],
    end: torch.fx.Node,
    constants: dict[str, torch.Tensor],
    call: FunctionCall,
) -> None:
    number, inputs = begin.args
    known = {*region, *inputs}
    for source in (source for node in region for source in node.all_input_nodes):
        if source not in known and source.name not in constants:
            raise createPoptorchError(
                f"{call.function.__name__}.forward() reads a tensor that is none of its arguments: pass it to apply()."
            )
    if getattr(call.function, "DROPPED_UNUSED", False) and not _used(end):
        for erased in [end, *reversed(region), begin]:
            graph.erase_node(erased)
        return
    with graph.inserting_after(end):
        last = node = graph.call_function(call.target(number), tuple(inputs))
    for position, output in enumerate(end.args[1]):
        with graph.inserting_after(last):
            last = graph.call_function(operator.getitem, (node, call.positions[position]))
        last.meta.update(output.meta)
        output.replace_all_uses_with(last, delete_user_cb=lambda user: user is not end)
    for erased in [end, *reversed(region), begin]:
        graph.erase_node(erased)


def _used(end: torch.fx.Node) -> bool:
    return any(user is not end for output in end.args[1] for user in output.users)


_LIBRARY = torch.library.Library("poptorch_engine", "FRAGMENT")
_LIBRARY.define(
    "ctc_loss(Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths, int blank, "
    "str reduction, bool zero_infinity) -> Tensor"
)
_CTC = torch.ops.poptorch_engine.ctc_loss.default


def _ctc_shape(log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity):
    return log_probs.new_empty(log_probs.shape[1:-1] if reduction == "none" else ())


torch.library.register_fake("poptorch_engine::ctc_loss", _ctc_shape, lib=_LIBRARY)


def _ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity):
    return F.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)


def ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> torch.Tensor:
    """torch's ctc_loss as tracing can record it; lengths may be tensors or sequences of ints."""
    lengths = [
        value if isinstance(value, torch.Tensor) else torch.tensor(value) for value in (input_lengths, target_lengths)
    ]
    return torch.ops.poptorch_engine.ctc_loss(log_probs, targets, *lengths, blank, reduction, zero_infinity)
