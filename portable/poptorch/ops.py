"""Operations that PopTorch adds to torch's (spec section 11).

Inside a trace each becomes nodes of the graph; outside an executor each is what the spec says of a plain call.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from .engine import markers, serialized, tracing
from .enums import MatMulSerializationMode
from .poptorch_core import createPoptorchError

_FLOAT32_MAX = torch.finfo(torch.float32).max


def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce `x` by "sum", "mean" or "none" and mark the result as the loss to differentiate.

    Outside an executor it is the reduction alone. Raises AssertionError for another reduction.
    """
    assert reduction in ("sum", "mean", "none"), "Unsupported reduction type!"
    loss = {"sum": torch.sum, "mean": torch.mean, "none": torch.clone}[reduction](x)
    if tracing.current() is not None:
        markers.MARK_LOSS(loss, reduction)
    return loss


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Keep these tensors for the backward pass; what led to them since the last checkpoint is computed again.

    One tensor gives a tensor, several give a tuple, one list or tuple gives the same type.
    Raises ValueError "All inputs must be tensors".
    """
    items = tensors
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        items = tuple(tensors[0])
    if not items or not all(isinstance(item, torch.Tensor) for item in items):
        raise ValueError("All inputs must be tensors")
    if tracing.current() is not None:
        for item in items:
            markers.CHECKPOINT(item)
    if items is tensors:
        return items[0] if len(items) == 1 else items
    # A quirk of the API: a tuple of one tensor is split along that tensor's first dimension.
    if isinstance(tensors[0], tuple) and len(items) == 1:
        return tuple(items[0])
    return type(tensors[0])(items)


def nop(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself, as an operation of its own. Raises AssertionError if it is no tensor."""
    assert isinstance(tensor, torch.Tensor), "nop expects a torch.Tensor."
    return tensor.view_as(tensor)


def set_available_memory(tensor: torch.Tensor, available_memory_proportion: float) -> torch.Tensor:
    """`tensor` itself: the proportion of an IPU's memory means nothing elsewhere."""
    assert isinstance(tensor, torch.Tensor), "set_available_memory expects a torch.Tensor."
    if not 0 < float(available_memory_proportion) <= 1:
        raise ValueError(f"available_memory_proportion must be in (0, 1], not {available_memory_proportion}.")
    return tensor


def serializedMatMul(
    lhs: torch.Tensor,
    rhs: torch.Tensor,
    mode: MatMulSerializationMode,
    factor: int = 0,
    keep_precision: bool = False,
) -> torch.Tensor:
    """torch.matmul(lhs, rhs) in `factor` steps over one dimension, so that less memory is live at a time.

    Args:
        lhs: (..., M, K); rhs: (..., K, N).
        mode: which dimension is cut: InputChannels M, ReducingDim K, OutputChannels N; Disabled none.
        factor: number of steps; it must divide that dimension.
        keep_precision: float32 partial sums for half operands in ReducingDim mode.
    Raises:
        AssertionError for wrong types, poptorch.Error if `factor` does not divide the dimension.
    """
    assert isinstance(lhs, torch.Tensor) and isinstance(rhs, torch.Tensor), "serializedMatMul expects two tensors."
    assert isinstance(mode, MatMulSerializationMode), "mode must be a poptorch.MatMulSerializationMode."
    assert isinstance(factor, int), "factor must be an int."
    assert rhs.dim() > 1, "serializedMatMul expects a matrix on the right."
    if mode is MatMulSerializationMode.Disabled or factor <= 1:
        return torch.matmul(lhs, rhs)
    size = {
        MatMulSerializationMode.InputChannels: lhs.shape[-2] if lhs.dim() > 1 else 1,
        MatMulSerializationMode.ReducingDim: lhs.shape[-1],
        MatMulSerializationMode.OutputChannels: rhs.shape[-1],
    }[mode]
    if size % factor:
        raise createPoptorchError(
            f"serializedMatMul: the {mode.value} dimension ({size}) is not divisible by the factor ({factor})."
        )
    return serialized.matmul(lhs, rhs, mode.value, factor, bool(keep_precision))


def custom_op(
    inputs: list[torch.Tensor] | tuple[torch.Tensor, ...],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: list[torch.Tensor] | tuple[torch.Tensor, ...],
    attributes: dict[str, Any] | None = None,
) -> list[torch.Tensor]:
    """Call the native operator `name` of `domain` and return its outputs as a list.

    The portable kernel is the torch operator `<domain with _ for .>::<name>` (`<name>_v<N>` from version 2 on), which a
    compiled library registers when it is loaded; attributes are its keyword arguments. In a plain call outside
    an executor the result is zeros shaped like `example_outputs`.
    """
    attributes = _checked_attributes(attributes)
    if tracing.current() is None:
        return [torch.zeros_like(example) for example in example_outputs]
    operator_name = name if domain_version == 1 else f"{name}_v{domain_version}"
    namespace = re.sub(r"\W", "_", domain)
    try:
        operator = getattr(getattr(torch.ops, namespace), operator_name)
    except AttributeError as error:
        raise createPoptorchError(
            f"No kernel for the custom op {domain}.{name} version {domain_version}: no torch operator "
            f"{namespace}::{operator_name} is registered. Load the library that defines it first "
            "(torch.ops.load_library)."
        ) from error
    try:
        outputs = operator(*inputs, **attributes)
    except (RuntimeError, TypeError) as error:
        raise createPoptorchError(f"The custom op {domain}.{name} could not be traced: {error}") from error
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    if len(outputs) != len(example_outputs):
        raise createPoptorchError(
            f"The custom op {domain}.{name} has {len(outputs)} outputs, but {len(example_outputs)} example outputs "
            "were given."
        )
    for output, example in zip(outputs, example_outputs, strict=True):
        if output.shape != example.shape or output.dtype != example.dtype:
            raise createPoptorchError(
                f"The custom op {domain}.{name} returned {tuple(output.shape)} {output.dtype}, but its example "
                f"output is {tuple(example.shape)} {example.dtype}."
            )
    return outputs


def _checked_attributes(attributes: dict[str, Any] | None) -> dict[str, Any]:
    for key, value in (attributes or {}).items():
        if not isinstance(key, str) or not key.isascii():
            raise ValueError(f"The keys of custom_op's attributes must be ASCII strings, not {key!r}.")
        items = value if isinstance(value, (list, tuple)) else [value]
        if not items or any(type(item) not in (float, int, str) or type(item) is not type(items[0]) for item in items):
            raise ValueError(f"Attribute {key} must be a float, an int, a str or a list of one of these.")
        if any(isinstance(item, str) and not item.isascii() for item in items):
            raise ValueError(f"Attribute {key} contains characters that are not ASCII.")
        if any(isinstance(item, float) and _FLOAT32_MAX < abs(item) < float("inf") for item in items):
            raise createPoptorchError(f"Attribute {key} does not fit into float32.")
    return dict(attributes or {})


def for_loop(count: int, body: Callable[..., Any], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Run `body` `count` times on the device, each time on what it returned before, and return the last results.

    `body` takes and returns tensors of fixed number, shapes and types; it sees copies of `inputs`. Inference only.
    Outside an executor the body runs once (spec section 11). Raises ValueError if `inputs` is no list of tensors.
    """
    if not isinstance(inputs, list):
        raise ValueError("poptorch.for_loop() object inputs must be of type list. (Object is not a list)")
    if not all(isinstance(tensor, torch.Tensor) for tensor in inputs):
        raise ValueError("poptorch.for_loop() object inputs must be of type list of tensors.")
    trace = tracing.current()
    if trace is None:
        return _as_list(body(*[tensor.clone() for tensor in inputs]))
    if trace.training:
        raise createPoptorchError("poptorch.for_loop() is only supported in inference.")
    trace.loops += 1
    loop = trace.loops
    arguments = [tensor.clone() for tensor in inputs]
    markers.BEGIN_LOOP(loop, int(count), arguments)
    outputs = [tensor.clone() for tensor in _as_list(body(*arguments))]
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
    markers.END_LOOP(loop, outputs)
    return outputs


def _as_list(outputs: Any) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


class Attribute:
    """`with poptorch.Attribute(__outline={…}):` — compiler hints, without effect on the numbers."""

    def __init__(self, **kwargs: Any):
        self._attributes = kwargs

    def __enter__(self) -> None:
        return None

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        return None


class NameScope:
    """`with poptorch.NameScope("name"):` — names for profiles, without effect on the numbers."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        return None
