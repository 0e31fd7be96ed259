"""Operations that PopTorch adds to torch's (spec section 11).

Inside a trace each becomes nodes of the graph; outside an executor each is what the spec says of a plain call.
"""

from __future__ import annotations

from typing import Any

import torch

from .checks import require
from .device import serialized
from .engine.tracing import export as tracing
from .engine.tracing import markers
from .enums import MatMulSerializationMode, OverlapMode
from .operations.array_ops import ctc_beam_search_decoder, dynamic_slice, dynamic_update, fps, nearest
from .operations.control_flow import cond, for_loop
from .operations.custom_ops import custom_op, register_custom_op
from .operations.host_ops import CPU, ipu_print_tensor
from .operations.scopes import Attribute, MultiConv, NameScope, attributes_lists
from .poptorch_core import createPoptorchError
from .structure import Structure

__all__ = [
    "CPU",
    "Attribute",
    "MultiConv",
    "NameScope",
    "attributes_lists",
    "cond",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "for_loop",
    "fps",
    "identity_loss",
    "ipu_print_tensor",
    "nearest",
    "nop",
    "recomputationCheckpoint",
    "register_custom_op",
    "serializedMatMul",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
]


def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce `x` by "sum", "mean" or "none" and mark the result as the loss to differentiate.

    Outside an executor it is the reduction alone. Raises AssertionError for another reduction.
    """
    require(reduction in ("sum", "mean", "none"), "Unsupported reduction type!")
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
    require(isinstance(tensor, torch.Tensor), "nop expects a torch.Tensor.")
    return tensor.view_as(tensor)


def set_available_memory(tensor: torch.Tensor, available_memory_proportion: float) -> torch.Tensor:
    """`tensor` itself: the proportion of an IPU's memory means nothing elsewhere."""
    require(isinstance(tensor, torch.Tensor), "set_available_memory expects a torch.Tensor.")
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
    require(isinstance(lhs, torch.Tensor) and isinstance(rhs, torch.Tensor), "serializedMatMul expects two tensors.")
    require(isinstance(mode, MatMulSerializationMode), "mode must be a poptorch.MatMulSerializationMode.")
    require(isinstance(factor, int), "factor must be an int.")
    require(rhs.dim() > 1, "serializedMatMul expects a matrix on the right.")
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


def set_overlap_for_input(input_tensors: Any, mode: OverlapMode) -> Any:
    """The inputs themselves, in the structure given: their transfer may overlap with computation on an IPU.

    Raises:
        ValueError: `mode` is no poptorch.OverlapMode, or there is something other than tensors in the structure.
        poptorch.Error: while tracing, no IO tiles, a tensor that is no input of the model, or one set before.
    """
    trace = tracing.current()
    return _overlapped("set_overlap_for_input", input_tensors, mode, trace.input_ids if trace is not None else None)


def set_overlap_for_output(output_tensors: Any, mode: OverlapMode) -> Any:
    """The outputs themselves, in the structure given: their transfer may overlap with computation on an IPU.

    Raises as set_overlap_for_input; that the result is what forward() returns is checked when forward() has ended.
    """
    value = _overlapped("set_overlap_for_output", output_tensors, mode, None)
    if tracing.current() is not None:
        tracing.current().overlapped_outputs.extend(Structure.of(value)[0])
    return value


def _overlapped(name: str, value: Any, mode: OverlapMode, among: set[int] | None) -> Any:
    if not isinstance(mode, OverlapMode):
        raise ValueError(f"{name}: mode must be a poptorch.OverlapMode, got {mode!r}")
    tensors, structure = Structure.of(value)
    if not tensors or structure.constants():
        raise ValueError(f"{name} expects a tensor, or a tuple, list or dict of tensors")
    trace = tracing.current()
    if trace is None:
        return value
    if mode is not OverlapMode.NoOverlap and not trace.io_tiles:
        raise createPoptorchError(
            "No IO tiles allocated. You must allocate at least 32 IO tiles using "
            "poptorch.Options().TensorLocations.numIOTiles."
        )
    for tensor in tensors:
        if among is not None and id(tensor) not in among:
            raise createPoptorchError(f"poptorch.{name} applied on a node which is not a host input.")
        if (name, id(tensor)) in trace.overlapped:
            raise createPoptorchError(f"poptorch.{name} is already set for this tensor.")
        trace.overlapped.add((name, id(tensor)))
        trace.kept.append(tensor)
    return structure.fill([tensor.view_as(tensor) for tensor in tensors])
