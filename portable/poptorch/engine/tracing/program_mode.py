"""What the contract asks of tracing, done where `forward` calls torch: losses, devices, types, refusals.

Spec sections 1 (devices, values), 4 (losses) and 14 (mixed types).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode

from ...poptorch_core import Error, createPoptorchError
from . import devices, functions, host_tensors, lenient, markers, opaque

# torch functions that are a loss by themselves (spec section 4).
LOSS_FUNCTIONS = frozenset(
    {
        F.nll_loss,
        F.cross_entropy,
        F.mse_loss,
        F.l1_loss,
        F.smooth_l1_loss,
        F.kl_div,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.poisson_nll_loss,
        F.hinge_embedding_loss,
        F.margin_ranking_loss,
        F.soft_margin_loss,
        F.multilabel_soft_margin_loss,
        F.cosine_embedding_loss,
        F.triplet_margin_loss,
        F.ctc_loss,
    }
)
# torch wants int64 indices here, while on the device every integer has at most 32 bits.
_LONG_INDEX = {F.cross_entropy: 1, F.nll_loss: 1, F.one_hot: 0, torch.take_along_dim: 1}
# Parameters take the type of the activation (spec section 14).
_ACTIVATION_TYPED = {  # function: position of the activation
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d), 0),
    **dict.fromkeys((F.conv_transpose3d, F.layer_norm, F.group_norm), 0),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.bmm), 0),
    **dict.fromkeys((F.bilinear, F.prelu, torch.prelu, torch.mv, F.scaled_dot_product_attention), 0),
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), 0),
    **dict.fromkeys((torch.addmm, torch.baddbmm, torch.einsum), 1),
}
# A value that only the device knows cannot steer Python.
_HOST_VALUES = {
    torch.Tensor.item: "item()",
    torch.Tensor.tolist: "tolist()",
    torch.Tensor.numpy: "numpy()",
    torch.Tensor.__bool__: "bool()",
    torch.Tensor.__int__: "int()",
    torch.Tensor.__float__: "float()",
    torch.Tensor.__index__: "an index",
}
# What may be asked of a tensor anywhere: nothing is computed.
_METADATA = frozenset({torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.stride})
_METADATA |= {torch.Tensor.is_floating_point, torch.is_floating_point, torch.Tensor.__len__, torch.Tensor.__hash__}
_METADATA |= {torch.Tensor.storage_offset, torch.Tensor.is_contiguous, torch.Tensor.element_size, torch.is_tensor}
_CONVOLUTIONS = frozenset(
    {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, torch.convolution}
)
_DROPOUT = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}
)


def value_unknown(what: str) -> Error:
    """The error for a program whose Python asks for `what` of a tensor."""
    return createPoptorchError(
        f"{what} of a tensor was asked for in forward(), but the value is only known when the compiled program runs. "
        "Use tensor operations (such as torch.where) instead."
    )


class ProgramMode(TorchFunctionMode):
    """Sees every torch function that `forward` calls, before torch does.

    Args:
        context: of the trace (tracing.TraceContext); its block tracker raises where no operation may come.
    """

    def __init__(self, context: Any):
        super().__init__()
        self._context = context
        self._check_active = context.blocks.check_active
        self._training = context.training
        self._host_writes = context.host_writes

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(func, torch._ops.OpOverload):  # a step of tracing itself, or a native operator
            if func.namespace.startswith("poptorch"):
                devices.check_on_device(func, args, kwargs)
            return opaque.call_native(func, args, kwargs)
        if host_tensors.are_alone(args, kwargs) and devices.stays_on_host(func, args, kwargs):
            return self._host_writes.run(func, args, kwargs)
        if func in _HOST_VALUES:
            raise value_unknown(_HOST_VALUES[func])
        if func is torch._C._set_grad_enabled:
            # torch.no_grad() in forward(): recorded it would become a submodule, out of reach of blocks and losses.
            with torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        if func == torch.Tensor.data.__get__:  # export cannot follow it, and this is what it means
            return args[0].detach()
        if func == torch.Tensor.data.__set__:
            return args[0].detach().copy_(args[1])
        if getattr(func, "__name__", "") == "__get__" or func in _METADATA:
            return func(*args, **kwargs)
        result = self._call(func, args, kwargs)
        passes_on = kwargs.get("create_graph", False) if func is torch.autograd.grad else torch.is_grad_enabled()
        return result if passes_on else _detached(result, args)

    def _call(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        self._check_active()
        made = devices.on_host(func, args, kwargs)
        if made is not None:
            return made
        args, kwargs = devices.operands(func, args, kwargs)
        if func in _LONG_INDEX:
            args, kwargs = _with_long_index(_LONG_INDEX[func], args, kwargs)
        elif func in _ACTIVATION_TYPED and len(args) > _ACTIVATION_TYPED[func]:
            args, kwargs = _with_activation_type(args[_ACTIVATION_TYPED[func]], args, kwargs)
        if func in _CONVOLUTIONS:
            self._context.convolutions += 1
        if func in _DROPOUT and not self._training:
            return args[0].clone()  # the identity in every inference program, whatever mode the module is in
        if func in LOSS_FUNCTIONS:
            if func in (F.nll_loss, F.cross_entropy) and (kwargs.get("weight") is not None or _weight(args)):
                raise createPoptorchError(f"The class weights of {func.__name__} are not supported by PopTorch.")
            result = functions.ctc_loss(*args, **kwargs) if func is F.ctc_loss else func(*args, **kwargs)
            markers.MARK_LOSS(result, str(kwargs.get("reduction", "mean")))
            return result
        if isinstance(func, torch._ops.OpOverloadPacket):
            return opaque.call_native(func, args, kwargs)
        result = lenient.REPLACED.get(func, func)(*args, **kwargs)
        _check_not_empty(result, args)
        return devices.adopted(func, result)


def _weight(args: tuple) -> bool:
    return len(args) > 2 and args[2] is not None


def _check_not_empty(result: Any, args: tuple) -> None:
    """Refuse an empty tensor that follows from one with elements; libraries begin lists with one that has none."""
    empty = next((t for t in (result if isinstance(result, (tuple, list)) else (result,)) if _is_empty(t)), None)
    if empty is None:
        return
    leaves = torch.utils._pytree.tree_leaves(args)
    if any(isinstance(value, FakeTensor) and not _is_empty(value) for value in leaves):
        raise createPoptorchError(f"Zero-sized tensors are unsupported (Got shape {list(empty.shape)})")


def _is_empty(value: Any) -> bool:
    # A size that is no int depends on values: nobody knows it yet.
    return isinstance(value, FakeTensor) and any(isinstance(size, int) and size == 0 for size in value.shape)


def _detached(result: Any, args: tuple) -> Any:
    """What was computed under torch.no_grad() passes no gradient on; a tensor changed in place stays itself."""
    inputs = {id(value) for value in torch.utils._pytree.tree_leaves(args)}

    def detach(value: Any) -> Any:
        return value.detach() if isinstance(value, torch.Tensor) and id(value) not in inputs else value

    return torch.utils._pytree.tree_map(detach, result)


def _with_long_index(position: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    def long(value: Any) -> Any:
        narrow = isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8)
        return value.long() if narrow else value

    if len(args) > position:
        return args[:position] + (long(args[position]),) + args[position + 1 :], kwargs
    return args, {
        key: long(value) if key in ("target", "tensor", "indices") else value for key, value in kwargs.items()
    }


def _with_activation_type(activation: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    dtype = activation.dtype if isinstance(activation, torch.Tensor) else None
    if dtype not in (torch.float16, torch.float32, torch.bfloat16):
        return args, kwargs

    def cast(value: Any) -> Any:
        other = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != dtype
        return value.to(dtype) if other else value

    return torch.utils._pytree.tree_map(cast, args), {key: cast(value) for key, value in kwargs.items()}
