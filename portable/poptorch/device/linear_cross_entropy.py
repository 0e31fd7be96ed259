"""Projection onto the vocabulary and cross-entropy in one operation: the logits of all rows are never held.

The rows go through in blocks, each in the same piece of memory. A block of logits gives its part of the loss, is turned
into its own gradient on the spot, and is multiplied into the gradients of its operands. Where these gradients can wait
for the backward pass this happens in the forward pass ("at once"); otherwise each block is computed a second time.

Of few rows the gradients of all logits, rounded to bfloat16, take less memory than the weight's gradient does in
float32: then it is they that wait, and the weight's goes into its accumulator part by part, without being held either.
Where one backward pass is all of an update the accumulator takes their place, part by part too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import native
from .kept_logits import KeptLogits
from .loss_products import LossProducts
from .native import cross_entropy
from .tied_embedding import SharedGradient, shared_gradient

# Float32 logits of one block. CPU: 256 rows of GPT-2's vocabulary; fewer make the products slower (8 % for 128 rows),
# more cost memory. CUDA: 1,335 rows. Twice as many where the CPU has units for products of bfloat16: they are so fast
# that reading the weight and adding to its gradient for each block shows (5 to 8 % of a step of GPT-2 small).
_BLOCK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}
# Where logits wait: 128 rows. The block's memory is held as long as theirs, and the kernels of these products read most
# of the weight while they multiply.
_KEPT_BLOCK_BYTES = 26 << 20
_SMALLEST_BLOCK = 16  # rows
_ARGMAX_GROUP = 1024  # columns


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    reduction: str,
    ignore_index: int,
    at_once: bool,
    steps: int = 1,
    products: torch.dtype | None = None,
    native: bool = False,
    groups: int | None = None,
    shared: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, argmax) of cross_entropy(hidden weight^T + bias, target).

    Args:
        hidden: (..., C); weight: (V, C); bias: (V,) or None; target: as many int64 ids as hidden has rows.
        reduction: "sum" or "mean", the mean being over targets other than `ignore_index`.
        at_once: form the gradients in the forward pass, without the upstream gradient, which they are multiplied by
            later. Not for float16: its gradients need the loss scaling from the start. The backward pass may then run
            once only.
        steps: the rows go through in that many blocks at least.
        products: the type that float32 operands are rounded to before they are multiplied (half_products.py), or None;
            logits and gradients are float32 sums in any case. native: the CPU has units for it. Of float32 there are
            large products by the kernels (float32_products.py).
        groups: the rows are those of so many losses, as many consecutive ones for each.
        shared: the weight's gradient is offered to the lookup in it (tied_embedding.py).
    Returns:
        A float32 scalar, or (groups,) of them, and the (N,) int64 argmax of each row.
    """
    at_once = at_once and torch.is_grad_enabled()
    hidden, how = hidden.float() if products else hidden, LossProducts(products, native)
    return _LinearCrossEntropy.apply(
        hidden, weight, bias, target, reduction, ignore_index, at_once, steps, how, groups, shared
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, reduction, ignore_index, at_once, steps, products, groups, shared):
        rows = products.prepared(hidden.reshape(-1, hidden.shape[-1]))  # (N, C)
        factor = products.prepared(weight)
        target = target.reshape(-1)
        kept = target != ignore_index
        by_group = kept.view(groups or 1, -1)
        # Of a mean over nothing the loss is NaN and the gradient 0, as in torch.
        counts = by_group.sum(-1, dtype=torch.float32)  # without a type their quotient would be of torch's default one
        scale = 1.0 / counts if reduction == "mean" else torch.ones_like(counts)
        row_scale = torch.where(by_group, scale.unsqueeze(-1), 0.0).view(-1)
        index = torch.where(kept, target, 0)
        memory = shared_gradient(weight) if weight.device.type == "cpu" else None
        keeps = at_once and _keeps_logits(rows, weight, bias, ctx.needs_input_grad, products, memory)
        size = _block_rows(rows, weight, steps, _KEPT_BLOCK_BYTES if keeps else _block_bytes(rows, products))
        waiting = KeptLogits(len(rows), weight, size, memory) if keeps else None
        at_once = at_once and not keeps
        gradients = _Gradients(rows, factor, bias, ctx.needs_input_grad, products, memory) if at_once else None
        best = torch.empty_like(target)
        losses = torch.zeros_like(row_scale, dtype=torch.float32)
        for part, logits in _blocks(rows, factor, size, products, None if waiting is None else waiting.block):
            if waiting is not None:
                found = waiting.take(part, logits, bias, index[part], best[part], row_scale[part])
            elif gradients is None:
                found = _losses(logits, bias, index[part], best[part])
            else:
                found, delta, factors = _differentiate(logits, bias, index[part], best[part], gradients.narrow)
                gradients.add(part, delta, row_scale[part] if factors is None else row_scale[part] * factors)
            losses[part] = torch.where(kept[part], found, 0.0)
        ctx.formed = gradients is not None
        formed = gradients.tensors() if ctx.formed else (None, None, None)
        # Several losses may have different upstream gradients, which nobody knows before the backward pass.
        again = (rows, weight, bias, index, row_scale) if groups or not ctx.formed else (None,) * 5
        ctx.save_for_backward(*formed, *again)
        ctx.waiting = waiting
        ctx.hidden_shape, ctx.steps, ctx.products, ctx.groups = hidden.shape, steps, products, groups
        ctx.shared, ctx.memory = shared_gradient(weight) if shared else None, memory
        ctx.mark_non_differentiable(best)
        total = losses.view(groups or 1, -1).sum(-1) * scale
        return (total if groups else total[0]), best

    @staticmethod
    def backward(ctx, grad, _):
        *formed, rows, weight, bias, index, row_scale = ctx.saved_tensors
        common = grad[0] if ctx.groups else grad
        if ctx.waiting is not None:
            tensors = (ctx.waiting.gradient(grad, rows, weight, ctx.products, ctx.needs_input_grad[0]), None, None)
        elif ctx.formed and (not ctx.groups or bool((grad == common).all())):
            # Nobody else holds these: scaling them in place saves a copy of each.
            tensors = [None if tensor is None else tensor.mul_(common) for tensor in formed]
        else:
            row_grad = (row_scale.view(ctx.groups or 1, -1) * grad.view(-1, 1)).view(-1)
            weight = ctx.products.prepared(weight)
            gradients = _Gradients(rows, weight, bias, ctx.needs_input_grad, ctx.products, ctx.memory)
            best = torch.empty_like(index)
            size = _block_rows(rows, weight, ctx.steps, _block_bytes(rows, ctx.products))
            for part, logits in _blocks(rows, weight, size, ctx.products):
                _, delta, factors = _differentiate(logits, bias, index[part], best[part], gradients.narrow)
                gradients.add(part, delta, row_grad[part] if factors is None else row_grad[part] * factors)
            tensors = gradients.tensors()
        grad_rows, grad_weight, grad_bias = tensors
        if ctx.shared is not None and grad_weight is not None:
            ctx.shared.offer(grad_weight)
        return None if grad_rows is None else grad_rows.view(ctx.hidden_shape), grad_weight, grad_bias, *(None,) * 8


class _Gradients:
    """Gradients of the loss with respect to rows, weight and bias, summed up over the blocks."""

    def __init__(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        needed: tuple[bool, ...],
        products: LossProducts,
        memory: SharedGradient | None,
    ):
        self._operands, self._products = (rows, weight), products
        self._rows = torch.empty_like(rows) if needed[0] else None
        self._weight = None
        if needed[1]:
            self._weight = torch.empty_like(weight) if memory is None else memory.memory(weight.shape, weight.dtype)
        self._bias = torch.zeros_like(bias) if needed[2] else None
        self._beta = 0  # the first block overwrites, the others add
        # Whether add() takes bfloat16: it is rounded to that in the products, but added up in float32 for the bias.
        self.narrow = not needed[2] and products.take_bfloat16

    def add(self, part: slice, delta: torch.Tensor, row_scale: torch.Tensor) -> None:
        """Add a block's share: delta (n, V) times row_scale (n,), in float32 or as `narrow` says. Overwrites delta."""
        rows, weight = self._operands
        scale = row_scale.unsqueeze(-1)
        inputs = rows[part]
        if self._bias is not None:
            self._bias += torch.mv(delta.t(), row_scale)
        if rows.dtype == torch.float32 and self._products.dtype != torch.float16:
            # Scaling (n, C) twice is cheaper than (n, V) once.
            inputs, outer = inputs * scale, scale
        else:
            # Half would lose small probabilities that are not scaled.
            delta, outer = delta.mul_(scale).to(rows.dtype), None
        delta = self._products.rounded(delta)
        if self._rows is not None:
            self._products.mm(delta, weight, out=self._rows[part])
            if outer is not None:
                self._rows[part] *= outer
        if self._weight is not None:
            self._products.addmm(self._weight, delta.t(), self._products.rounded(inputs), self._beta)
        self._beta = 1

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """The gradients of rows, weight and bias; None where none is needed."""
        return self._rows, self._weight, self._bias


def _keeps_logits(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    needed: tuple[bool, ...],
    products: LossProducts,
    memory: SharedGradient | None,
) -> bool:
    """Whether the gradients of all logits wait for the backward pass, instead of those of the operands."""
    if memory is None or memory.accumulate is None or not needed[1] or needed[2] or not products.take_bfloat16:
        return False
    return 0 < 2 * len(rows) <= 4 * rows.shape[1] and rows.dtype == torch.float32 and _kernel_serves(rows, bias)


def _block_bytes(rows: torch.Tensor, products: LossProducts) -> int:
    return _BLOCK_BYTES[rows.device.type] * (2 if products.take_bfloat16 else 1)


def _block_rows(rows: torch.Tensor, weight: torch.Tensor, steps: int, limit: int) -> int:
    """How many rows a block has, of `steps` at least and of `limit` bytes of float32 logits."""
    count, vocabulary = rows.shape[0], weight.shape[0]
    size = max(_SMALLEST_BLOCK, limit // (4 * vocabulary))
    blocks = max(-(-count // size), min(steps, count), 1)
    return -(-count // blocks)  # blocks of one size, rather than a small one at the end


def _blocks(
    rows: torch.Tensor, weight: torch.Tensor, size: int, products: LossProducts, memory: torch.Tensor | None = None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Each block's rows and their float32 logits (size, V) before the bias, which the next block overwrites."""
    count, vocabulary = rows.shape[0], weight.shape[0]
    if memory is None:
        memory = torch.empty(size, vocabulary, dtype=torch.float32, device=rows.device)
    for start in range(0, count, max(1, size)):
        part = slice(start, min(start + size, count))
        logits = memory[: part.stop - start]
        if rows.dtype == torch.float32:
            products.mm(rows[part], weight.t(), out=logits)
        else:  # the product is in the type of its operands, everything after it in float32
            logits.copy_(torch.mm(rows[part], weight.t()))
        yield part, logits


def _losses(logits: torch.Tensor, bias: torch.Tensor | None, index: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each row of logits (n, V) + bias (V,) with `index` (n,): (n,). The logits are overwritten.

    The argmax of each row is written to `best` (n,).
    """
    if _kernel_serves(logits, bias):
        return cross_entropy.losses(logits, bias, index, best)
    if bias is not None:
        logits += bias
    best.copy_(_argmax(logits))
    own = logits.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    highest = logits.gather(-1, best.unsqueeze(-1)).squeeze(-1)
    torch.softmax(logits, -1, out=logits)
    # log sum exp(x) = max x - log(probability of the max), which is at least 1 / V: nothing underflows.
    share = logits.gather(-1, best.unsqueeze(-1)).squeeze(-1)
    return highest - share.log() - own


def _differentiate(
    logits: torch.Tensor, bias: torch.Tensor | None, index: torch.Tensor, best: torch.Tensor, narrow: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """_losses(), and softmax minus one-hot (n, V), in the memory of the logits, over the factors (n,) or None.

    It is of bfloat16 if `narrow`, for which the kernel is needed.
    """
    if _kernel_serves(logits, bias):
        return cross_entropy.differentiate(logits, bias, index, best, narrow)
    losses, index = _losses(logits, bias, index, best), index.unsqueeze(-1)
    return losses, logits.scatter_(-1, index, logits.gather(-1, index) - 1.0), None


def _kernel_serves(logits: torch.Tensor, bias: torch.Tensor | None) -> bool:
    return native.serves(logits) if bias is None else bias.is_contiguous() and native.serves(logits, bias)


def _argmax(logits: torch.Tensor) -> torch.Tensor:
    """The first largest entry of each row of (n, V): (n,) int64."""
    vocabulary = logits.shape[-1]
    if logits.is_cuda or vocabulary <= _ARGMAX_GROUP:
        return logits.argmax(-1)
    # On a CPU the search for a maximum is vectorised, the search for its place is not and five times slower: look for
    # the place in one group of columns only. The last group reaches back into the one before it.
    groups = vocabulary // _ARGMAX_GROUP
    highest = logits[:, : groups * _ARGMAX_GROUP].unflatten(-1, (groups, _ARGMAX_GROUP)).amax(-1)
    highest = torch.cat([highest, logits[:, -_ARGMAX_GROUP:].amax(-1, keepdim=True)], -1)
    start = highest.argmax(-1, keepdim=True).mul_(_ARGMAX_GROUP).clamp_(max=vocabulary - _ARGMAX_GROUP)  # (n, 1)
    group = logits.gather(-1, start + torch.arange(_ARGMAX_GROUP))
    return start.squeeze(-1) + group.argmax(-1)
