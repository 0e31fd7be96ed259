"""Calls that tracing cannot look into but whose results' shapes are known: callbacks, kernels without a shape rule.

A stub with the right output shapes is recorded; afterwards the real function takes its place in the graph.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, UnsupportedOperatorException
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

_LIBRARY = torch.library.Library("poptorch_opaque", "FRAGMENT")
_LIBRARY.define("call(int number, Tensor[] inputs) -> Tensor[]")
_CALL = torch.ops.poptorch_opaque.call.default

_numbers = itertools.count()
# Calls of the trace in progress: number -> (function of the inputs, [(shape, dtype) of each output]).
_pending: dict[int, tuple[Callable[..., list[torch.Tensor]], list[tuple[torch.Size, torch.dtype]]]] = {}

_known_shapes: list[tuple[torch.Size, torch.dtype]] | None = None


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


def lacks_shapes(error: Exception) -> bool:
    """Whether tracing failed because the library of an operator registers no shape function for it."""
    return isinstance(error, UnsupportedOperatorException) or "no fake impl" in str(error)


@contextlib.contextmanager
def shapes_known(shapes: list[tuple[torch.Size, torch.dtype]]) -> Iterator[None]:
    """Inside this context a native operator without a shape function has outputs of these shapes and types."""
    global _known_shapes
    _known_shapes = shapes
    try:
        yield
    finally:
        _known_shapes = None


def on_ones(function: Callable[..., Any], tensors: list[torch.Tensor]) -> Any:
    """`function` of ones like `tensors`, computed outside the trace: its results' shapes and types are those wanted."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        return function(*[torch.ones(tensor.shape, dtype=tensor.dtype) for tensor in tensors])


def call_native(native: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """`native(*args, **kwargs)`, an operator of some library; where it has no shape function, ones tell the shapes.

    Inside shapes_known() those are taken. Raises what the operator raises if it gives anything but tensors, or changes
    its arguments.
    """
    try:
        return native(*args, **kwargs)
    except RuntimeError as error:
        known = _known_shapes is not None and (lacks_shapes(error) or isinstance(error, DynamicOutputShapeException))
        if not known and not (lacks_shapes(error) and _is_foreign_function(native)):
            raise
        refusal = error
    leaves, structure = tree_flatten((args, kwargs))
    tensors = {position: leaf for position, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
    constants = [None if position in tensors else leaf for position, leaf in enumerate(leaves)]

    def run(*values: torch.Tensor) -> Any:
        filled = constants.copy()
        for position, value in zip(tensors_at, values, strict=True):
            filled[position] = value
        filled_args, filled_kwargs = tree_unflatten(filled, structure)
        return native(*filled_args, **filled_kwargs)

    tensors_at, inputs = list(tensors), list(tensors.values())
    if known:
        return record(lambda *values: _as_list(run(*values)), inputs, _known_shapes)
    examples, result = tree_flatten(on_ones(run, inputs))
    if not all(isinstance(example, torch.Tensor) for example in examples):
        raise refusal
    shapes = [(example.shape, example.dtype) for example in examples]
    return tree_unflatten(record(lambda *values: tree_flatten(run(*values))[0], inputs, shapes), result)


def _as_list(outputs: Any) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def _is_foreign_function(native: Any) -> bool:
    """Whether an operator is none of torch's, where shapes may depend on values, and leaves its arguments as they are.

    One call tells nothing of others otherwise.
    """
    packet = isinstance(native, torch._ops.OpOverloadPacket)
    overloads = [getattr(native, name) for name in native.overloads()] if packet else [native]
    return not any(each.namespace in ("aten", "prim", "prims") or each._schema.is_mutable for each in overloads)


def replace_calls(graph: torch.fx.Graph) -> None:
    """Put the real functions in the stubs' places; a call whose results nobody uses is dropped."""
    for node in reversed(list(graph.nodes)):
        if node.target is _CALL:
            number, inputs = node.args
            function, _ = _pending.pop(number)
            if not _dropped_unused(graph, node):
                node.target = _applied(function, number)
                node.args = (inputs,)


def _dropped_unused(graph: torch.fx.Graph, node: torch.fx.Node) -> bool:
    """Take `node`, whose results are a list, out of the graph if none of them is used; whether it was."""
    if any(user.target is not operator.getitem or user.users for user in node.users):
        return False
    for user in list(node.users):
        graph.erase_node(user)
    graph.erase_node(node)
    return True


def forget() -> None:
    """The trace is over: what it recorded and did not keep is dropped."""
    _pending.clear()


def _applied(function: Callable[..., list[torch.Tensor]], number: int) -> Callable[..., list[torch.Tensor]]:
    def call(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return function(*inputs)

    call.__name__ = call.__qualname__ = f"opaque_{number}"
    return call
