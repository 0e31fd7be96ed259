"""Matrix products of half programs on a CPU: operands of 16 bits, float32 sums.

An operand is rounded where it is not of 16 bits already, and it is the rounded one that is kept for the backward pass,
or nothing where it can be computed again (computed_again.py); the products there are made in the same way. A weight,
which lies in float32 on the device, is rounded once an update: the copy is kept with it until its version changes. What
writes to a weight by other means than torch's operations must say so by torch.autograd.graph.increment_version. Of a
weight that nothing but products read the copy is one of two parts (split_weights.py).

A result is of 16 bits, too, unless the caller wants it `wide`: float32, as the sums are. Gradients of weights are wide.
torch's library rounds every result to the type of its operands: where native/ has products that do not, these serve.
Where the CPU has no units for the type the rounded operands are multiplied in float32. That is exact: no product of two
of them has more than 22 bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from . import native as native_kernels
from . import split_weights
from .computed_again import recipe_of
from .dropout_attention import causal_attention, dropout_attention
from .native import wide_products


@dataclasses.dataclass
class Rounded:
    """A copy of a weight, or of a part of one, in 16 bits, and the version of the weight that it is of."""

    version: int
    copy: Tensor


# Device weight -> {(place in it, type): Rounded}. An entry goes with its weight.
_WEIGHTS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

# What the setting was before operands_rounded_inside(), once for each thread that is in there.
_INSIDE: list[str] = []
_INSIDE_LOCK = threading.Lock()


def keep_rounded(weight: Tensor) -> None:
    """`weight`, which only updates and the host change, is rounded once for all products until that happens."""
    _WEIGHTS.setdefault(weight, {})


def whole_copy(weight: Tensor) -> Rounded | None:
    """A copy of all of the contiguous `weight` that is kept, its elements in the same order in memory, if there is one.

    What updates `weight` may write the copy, too, and then set its version to that of the weight.
    """
    for (offset, _, stride, _), entry in _WEIGHTS.get(weight, {}).items():
        # A copy is dense: one of as many elements, at the strides of its original, has all of them in their order.
        whole = offset == weight.storage_offset() and entry.copy.numel() == weight.numel()
        if whole and entry.copy.stride() == stride:
            return entry
    return None


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, native: bool, wide: bool = False
) -> Tensor:
    """x W^T + b: (..., K), (N, K), (N,) or None -> (..., N) of type `dtype`, or float32 if `wide`."""
    if native and not wide:
        narrow_bias = None if bias is None else narrow(bias, dtype)
        if _is_kept(weight) and _own(dtype, x, weight):
            return _Linear.apply(narrow(x, dtype), weight, narrow_bias, recipe_of(x))
        return F.linear(narrow(x, dtype), narrow(weight, dtype), narrow_bias)
    out = matmul(x, weight.t(), dtype, native, wide=True)
    if bias is not None:
        out = out + narrow(bias, dtype)
    return out if wide else out.to(dtype)


def addmm(
    bias: Tensor, a: Tensor, b: Tensor, dtype: torch.dtype, native: bool, beta: float = 1, alpha: float = 1
) -> Tensor:
    """beta bias + alpha a b, the product alone in 16 bits: (M, K), (K, N) -> float32 (M, N), or batches of them."""
    return bias * beta + matmul(a, b, dtype, native, wide=True) * alpha


def matmul(a: Tensor, b: Tensor, dtype: torch.dtype, native: bool, wide: bool = False) -> Tensor:
    """torch.matmul(a, b) of type `dtype`, or float32 if `wide`."""
    if native and not wide:
        if b.dim() == 2 and _is_kept(b):
            return linear(a, b.t(), None, dtype, native)
        return torch.matmul(narrow(a, dtype), narrow(b, dtype))
    # one vector becomes a matrix, as in torch.matmul
    left, right = a.unsqueeze(0) if a.dim() == 1 else a, b.unsqueeze(1) if b.dim() == 1 else b
    unrounded = right.detach() if right.dtype == torch.float32 else None
    out = _Product.apply(narrow(left, dtype), narrow(right, dtype), unrounded, native, wide)
    if b.dim() == 1:
        out = out.squeeze(-1)
    return out.squeeze(-1 if b.dim() == 1 else -2) if a.dim() == 1 else out


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    dtype: torch.dtype,
    native: bool,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """F.scaled_dot_product_attention of rounded operands, the softmax in float32: of type `dtype`."""
    operands = [narrow(operand, dtype) for operand in (query, key, value)]
    same = query.shape[-3:] == key.shape[-3:] and query.dim() == 4
    if native and causal and mask is None and not dropout and same and _own(dtype, *operands):
        return causal_attention(*operands, scale)
    if not native or (mask is not None and mask.is_floating_point()):  # a mask of numbers would be rounded, too
        operands = [operand.float() for operand in operands]
    out = F.scaled_dot_product_attention(
        *operands, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=enable_gqa
    )
    return out.to(dtype)


def attention_with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scale: float,
    philox: bool,
    dtype: torch.dtype,
    keys: Sequence[int] | None = None,
) -> Tensor:
    """dropout_attention() of rounded operands: of type `dtype`."""
    operands = [narrow(operand, dtype) for operand in (query, key, value)]
    if not (philox and native_kernels.serves(*operands, narrow=True)):
        operands = [operand.float() for operand in operands]
    return dropout_attention(*operands, dropout, scale, philox, keys).to(dtype)


def narrow(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` rounded to `dtype`: the copy that is kept if it is a device's weight, or a view of one."""
    if tensor.dtype == dtype:
        return tensor
    return _RoundedWeight.apply(tensor, dtype) if _is_kept(tensor) else tensor.to(dtype)


def _is_kept(tensor: Tensor) -> bool:
    """Whether it is a device's weight, or a view of one."""
    return (tensor if tensor._base is None else tensor._base) in _WEIGHTS


def has_kernel(dtype: torch.dtype) -> bool:
    """Whether native/ has products for a CPU with units for `dtype`."""
    return dtype == torch.bfloat16 and wide_products.available()


def _own(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether the products of native/ serve. They read memory: not in torch.vmap."""
    return has_kernel(dtype) and not any(map(torch._C._functorch.is_batchedtensor, tensors))


def rounded_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The copy of `weight`, or of the part of one that it is a view of, in `dtype`; rounded anew if it has changed."""
    base = weight if weight._base is None else weight._base
    part = split_weights.rounded(weight, base)
    if part is not None:
        return part
    entries = _WEIGHTS.get(base)
    if entries is None:
        return weight.detach().to(dtype)
    key = (weight.storage_offset(), weight.shape, weight.stride(), dtype)
    entry = entries.get(key)
    if entry is None:
        entry = entries[key] = Rounded(weight._version, _rounded(weight, dtype))
    elif entry.version != weight._version:  # a view's is that of its base: every change of the weight counts
        entry.version = weight._version
        entry.copy = _rounded(weight, dtype, out=entry.copy)
    return entry.copy


def _rounded(weight: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return weight.detach().to(dtype) if out is None else out.copy_(weight)


class _RoundedWeight(torch.autograd.Function):
    @staticmethod
    def forward(weight, dtype):
        return rounded_weight(weight, dtype).detach()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad.float(), None

    @staticmethod
    def vmap(info, in_dims, weight, dtype):
        return weight.to(dtype), in_dims[0]  # one weight a sample: none that is kept


class _Linear(torch.autograd.Function):
    """F.linear of rounded operands: x (..., K) and bias (N,) are, `weight` (N, K) is a device's, in float32."""

    @staticmethod
    def forward(ctx, x, weight, bias, found):
        rounded = rounded_weight(weight, x.dtype)
        ctx.recipe, operands = found or (None, (x,))
        ctx.save_for_backward(rounded, *operands)
        ctx.transposed = weight.stride(0) == 1  # as the weight lies in memory, so will its gradient
        return F.linear(x, rounded, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rounded, *operands = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.matmul(grad, rounded)
        grad = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[1]:
            x = operands[0] if ctx.recipe is None else ctx.recipe.make(tuple(operands)).to(rounded.dtype)
            x = x.reshape(-1, x.shape[-1])
            left, right = (x, grad) if ctx.transposed else (grad, x)
            out = torch.empty(left.shape[1], right.shape[1], dtype=torch.float32)
            grad_weight = wide_products.multiply(left.t(), right, out)
            grad_weight = grad_weight.t() if ctx.transposed else grad_weight
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)  # added up in float32
        return grad_x, grad_weight, grad_bias, None


class _Product(torch.autograd.Function):
    """torch.matmul of two operands of 16 bits with at least two dimensions each.

    `unrounded` is the second one as it was in float32, or None.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a, b, unrounded, native, wide):
        if not (native and wide):
            return _multiply(a, b, native, wide)
        if a.dtype != torch.bfloat16:
            return torch.matmul(a, b).float()
        if b.dim() == 2 and _own(a.dtype, a, b):
            out = torch.empty(*a.shape[:-1], b.shape[-1], dtype=torch.float32)
            rows = a.reshape(-1, a.shape[-1])
            wide_products.multiply(rows, b if unrounded is None else unrounded, out.view(len(rows), b.shape[-1]))
            return out
        with operands_rounded_inside():
            return torch.matmul(a.float(), b.float() if unrounded is None else unrounded)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b, _, ctx.native, _ = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        grad, native = grad.to(a.dtype), ctx.native
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_a = _multiply(grad, b.transpose(-1, -2), native).sum_to_size(a.shape)
        if ctx.needs_input_grad[1]:
            if b.dim() == 2:  # one product over all rows instead of one a sample: (K, rows) x (rows, N)
                a, grad = a.reshape(-1, a.shape[-1]), grad.reshape(-1, grad.shape[-1])
            grad_b = _multiply(a.transpose(-1, -2), grad, native).sum_to_size(b.shape)
        return grad_a, grad_b, None, None, None


def _multiply(a: Tensor, b: Tensor, native: bool, wide: bool = False) -> Tensor:
    """torch.matmul of operands of 16 bits, without gradients: of their type, or (not if native) in float32."""
    if native:
        return torch.matmul(a, b)
    out = torch.matmul(a.float(), b.float())
    return out if wide else out.to(a.dtype)


@contextlib.contextmanager
def operands_rounded_inside() -> Iterator[None]:
    """In here oneDNN rounds the operands of float32 products to bfloat16, and leaves the sums as they are.

    torch has one such setting for the process: another thread's products are rounded meanwhile, and no longer.
    """
    matmul = torch.backends.mkldnn.matmul
    with _INSIDE_LOCK:
        _INSIDE.append(_INSIDE[0] if _INSIDE else matmul.fp32_precision)
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        with _INSIDE_LOCK:
            before = _INSIDE.pop()
            if not _INSIDE:
                matmul.fp32_precision = before
