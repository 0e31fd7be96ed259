"""Calls that tracing cannot look into but whose results' shapes are known: callbacks, kernels without a shape rule.

A stub with the right output shapes is recorded; afterwards the real function takes its place in the graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("poptorch_opaque", "FRAGMENT")
_LIBRARY.define("call(int number, Tensor[] inputs) -> Tensor[]")
_CALL = torch.ops.poptorch_opaque.call.default

_numbers = itertools.count()
# Calls of the trace in progress: number -> (function of the inputs, [(shape, dtype) of each output]).
_pending: dict[int, tuple[Callable[..., list[torch.Tensor]], list[tuple[torch.Size, torch.dtype]]]] = {}


def _shapes(number: int, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.empty(shape, dtype=dtype) for shape, dtype in _pending[number][1]]


torch.library.register_fake("poptorch_opaque::call", _shapes, lib=_LIBRARY)


def record(
    function: Callable[..., list[torch.Tensor]],
    inputs: list[torch.Tensor],
    outputs: list[tuple[torch.Size, torch.dtype]],
) -> list[torch.Tensor]:
    """Record a call of `function(*inputs)`, which gives a list of tensors of these shapes and types, in the trace."""
    number = next(_numbers)
    _pending[number] = (function, outputs)
    return list(_CALL(number, inputs))


def replace_calls(graph: torch.fx.Graph) -> None:
    """Put the real functions in the stubs' places."""
    for node in graph.nodes:
        if node.target is _CALL:
            node.target = _applied(_pending.pop(node.args[0])[0], node.args[0])
            node.args = (node.args[1],)


def forget() -> None:
    """The trace is over: what it recorded and did not keep is dropped."""
    _pending.clear()


def _applied(function: Callable[..., list[torch.Tensor]], number: int) -> Callable[..., list[torch.Tensor]]:
    def call(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return function(*inputs)

    call.__name__ = call.__qualname__ = f"opaque_{number}"
    return call
