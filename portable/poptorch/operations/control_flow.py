"""Loops and branches that run on the device (spec section 11).

While a model is traced their bodies run once, between markers, from which the engine makes loops and conditionals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..engine.tracing import export as tracing
from ..engine.tracing import markers, regions
from ..poptorch_core import createPoptorchError


def for_loop(count: int, body: Callable[..., Any], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Run `body` `count` times on the device, each time on what it returned before, and return the last results.

    `body` takes and returns tensors of fixed number, shapes and types; it sees copies of `inputs`. Inference only.
    Outside an executor the body runs once (spec section 11). Raises ValueError if `inputs` is no list of tensors.
    """
    _check_inputs("for_loop", inputs)
    trace = tracing.current()
    if trace is None:
        return _as_list("for_loop", body(*[tensor.clone() for tensor in inputs]))
    if trace.training:
        raise createPoptorchError("poptorch.for_loop() is only supported in inference.")
    number = trace.number()
    arguments = [tensor.clone() for tensor in inputs]
    markers.BEGIN_LOOP(number, int(count), arguments)
    outputs = [tensor.clone() for tensor in _as_list("for_loop", body(*arguments))]
    if len(outputs) != len(inputs):
        raise createPoptorchError(
            f"poptorch.for_loop(): the body returns {len(outputs)} tensors but takes {len(inputs)}."
        )
    for index, (output, argument) in enumerate(zip(outputs, inputs, strict=True)):
        if output.shape != argument.shape or output.dtype != argument.dtype:
            raise createPoptorchError(
                f"poptorch.for_loop(): output {index} of the body is {tuple(output.shape)} {output.dtype}, but the "
                f"input in its place is {tuple(argument.shape)} {argument.dtype}."
            )
    markers.END_LOOP(number, outputs)
    return outputs


def cond(
    condition: torch.Tensor,
    then_body: Callable[..., Any],
    then_inps: list[torch.Tensor],
    else_body: Callable[..., Any],
    else_inps: list[torch.Tensor],
) -> list[torch.Tensor]:
    """Run one of two bodies, by a value that the device knows, and return its results as a list.

    Args:
        condition: one element; true runs `then_body(*then_inps)`, false `else_body(*else_inps)`.
        then_inps, else_inps: passed by value; both bodies return tensors of the same number, shapes and types.
    Raises:
        ValueError: inputs that are no list of tensors, or a condition of more than one element.
        poptorch.Error: in training, or if the bodies' results differ in number, shape or type.
    """
    _check_inputs("cond", then_inps)
    _check_inputs("cond", else_inps)
    if not isinstance(condition, torch.Tensor) or condition.numel() != 1:
        raise ValueError("poptorch.cond() needs a condition that is a tensor of one element.")
    trace = tracing.current()
    if trace is None:
        body, inputs = (then_body, then_inps) if bool(condition) else (else_body, else_inps)
        return _as_list("cond", body(*[tensor.clone() for tensor in inputs]))
    if trace.training:
        raise createPoptorchError("poptorch.cond() is only supported in inference.")
    number = trace.number()
    results = []
    for branch, (body, inputs) in enumerate(((then_body, then_inps), (else_body, else_inps))):
        arguments = [tensor.clone() for tensor in inputs]
        markers.BEGIN_BRANCH(number, branch, arguments)
        outputs = [tensor.clone() for tensor in _as_list("cond", body(*arguments))]
        markers.END_BRANCH(number, branch, outputs)
        results.append(outputs)
    shapes = [[(tuple(tensor.shape), tensor.dtype) for tensor in outputs] for outputs in results]
    if shapes[0] != shapes[1]:
        raise createPoptorchError(
            "poptorch.cond(): both bodies must return tensors of the same number, shapes and types, but they return "
            f"{shapes[0]} and {shapes[1]}."
        )
    return list(regions.SELECT(number, condition, *results))


def _check_inputs(function: str, inputs: Any) -> None:
    if not isinstance(inputs, list):
        raise ValueError(f"poptorch.{function}() object inputs must be of type list. (Object is not list)")
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"poptorch.{function}() object inputs must be of type list of tensors. (Object contained in list at "
                f"index {index} is not torch.Tensor)"
            )


def _as_list(function: str, outputs: Any) -> list[torch.Tensor]:
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    if not all(isinstance(output, torch.Tensor) for output in outputs):
        kinds = ", ".join(type(output).__name__ for output in outputs)
        raise createPoptorchError(
            f"poptorch.{function}(): a body must return a tensor, or a list or tuple of tensors, not {kinds}."
        )
    return outputs
