"""Projection onto the vocabulary and cross-entropy in one: the logits of all positions are never held.

A graph that computes `cross_entropy(hidden W^T (+ bias))` and reads the logits for nothing else but an argmax is given
one operation that goes through the rows in blocks. Where the gradient can be formed at once (float32, one use of
W) each block of logits is turned into its gradient on the spot and multiplied into the gradients of `hidden` and W;
otherwise the block is computed a second time in the backward pass.
"""

from __future__ import annotations

import dataclasses
import operator

import torch
import torch.nn.functional as F

from ..engine import serialized
from ..engine.tracing import TracedGraph

aten = torch.ops.aten

_BLOCK_BYTES = {"cpu": 24 << 20, "cuda": 512 << 20}  # of one block of logits in float32
_SMALLEST_VOCABULARY = 1024  # below it the logits are no burden
_SHAPES = frozenset({aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.contiguous.default})
_CASTS = frozenset({aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout})
_ADDITIONS = frozenset({aten.add.Tensor, aten.add_.Tensor})


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, target, reduction, ignore_index, at_once):
        rows = hidden.reshape(-1, hidden.shape[-1])  # (N, C)
        target = target.reshape(-1)
        kept = target != ignore_index
        needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        ctx.at_once = at_once and needed
        count = kept.sum()
        scale = 1.0 / count if reduction == "mean" else torch.ones((), device=rows.device)
        best = torch.empty_like(target)
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        grad_rows = torch.empty_like(rows) if ctx.at_once else None
        grad_weight = torch.zeros_like(weight) if ctx.at_once and ctx.needs_input_grad[1] else None
        for part in _blocks(rows, weight):
            logits = _logits(rows[part], weight, bias)
            torch.argmax(logits, -1, out=best[part])
            loss = F.cross_entropy(logits, target[part], reduction="sum", ignore_index=ignore_index)
            total += loss
            if ctx.at_once:
                delta = _to_delta(logits, target[part], kept[part], scale)
                torch.mm(delta, weight, out=grad_rows[part])
                if grad_weight is not None:
                    grad_weight.addmm_(delta.t(), rows[part])
        if ctx.at_once:
            ctx.save_for_backward(grad_rows, grad_weight)
        else:
            ctx.save_for_backward(rows, weight, bias, target, kept, scale)
        ctx.hidden_shape = hidden.shape
        ctx.mark_non_differentiable(best)
        return (total * scale).to(torch.float32), best

    @staticmethod
    def backward(ctx, grad, _):
        if ctx.at_once:
            grad_rows, grad_weight = ctx.saved_tensors
            # Nobody else holds these: scaling them in place saves a copy of each.
            grad_weight = grad_weight.mul_(grad) if grad_weight is not None else None
            return grad_rows.mul_(grad).view(ctx.hidden_shape), grad_weight, *(None,) * 5
        rows, weight, bias, target, kept, scale = ctx.saved_tensors
        grad_rows = torch.empty_like(rows)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for part in _blocks(rows, weight):
            logits = _logits(rows[part], weight, bias)
            delta = _to_delta(logits, target[part], kept[part], scale * grad).to(rows.dtype)
            torch.mm(delta, weight, out=grad_rows[part])
            if grad_weight is not None:
                grad_weight.addmm_(delta.t(), rows[part])
        return grad_rows.view(ctx.hidden_shape), grad_weight, *(None,) * 5


def _blocks(rows: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    size = max(16, _BLOCK_BYTES[rows.device.type] // (4 * weight.shape[0]))
    return [slice(start, min(start + size, rows.shape[0])) for start in range(0, rows.shape[0], size)]


def _logits(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(n, C) -> (n, V) in float32; the product itself is in the type of its operands."""
    logits = torch.mm(rows, weight.t())
    if bias is not None:
        logits += bias
    return logits.float()


def _to_delta(logits: torch.Tensor, target: torch.Tensor, kept: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The gradient of the block's loss with respect to its logits, in their memory: (softmax - one-hot) * scale."""
    torch.softmax(logits, -1, out=logits)
    index = torch.where(kept, target, torch.zeros_like(target)).unsqueeze(-1)
    logits.scatter_add_(-1, index, torch.full_like(index, -1, dtype=logits.dtype))
    return logits.mul_((kept * scale).unsqueeze(-1))


def linear_cross_entropy(hidden, weight, bias, target, reduction, ignore_index, at_once):
    """(loss, argmax) of cross_entropy(hidden weight^T + bias, target).

    Args:
        hidden: (..., C); weight: (V, C); bias: (V,) or None; target: as many int64 ids as hidden has rows.
        reduction: "sum" or "mean", the mean being over targets other than `ignore_index`.
        at_once: form the gradients in the forward pass.
    Returns:
        A float32 scalar and the (N,) int64 argmax of each row.
    """
    return _LinearCrossEntropy.apply(hidden, weight, bias, target, reduction, ignore_index, at_once)


@dataclasses.dataclass
class _Match:
    hidden: torch.fx.Node
    weight: torch.fx.Node  # (V, C)
    bias: torch.fx.Node | None
    loss: torch.fx.Node
    argmaxes: list[torch.fx.Node]
    logits: set[torch.fx.Node]  # every node that holds logits, and that nobody reads afterwards


def fuse_losses(traced: TracedGraph) -> int:
    """Fuse every projection and cross-entropy found in `traced`; returns how many there were."""
    matches = [match for node in traced.graph.nodes if (match := _match(traced, node)) is not None]
    for match in matches:
        alone = sum(other.weight is match.weight for other in matches) == 1
        _replace(traced, match, alone)
    # An addition in place counts as live in itself: erase what held logits by hand, last first.
    dead = set().union(*(match.logits | {match.loss, *match.argmaxes} for match in matches))
    for node in reversed(list(traced.graph.nodes)):
        if node in dead:
            traced.graph.erase_node(node)
    if matches:
        traced.graph.eliminate_dead_code()
    return len(matches)


def _match(traced: TracedGraph, loss: torch.fx.Node) -> _Match | None:
    """Read the pattern backwards from a cross-entropy over rows of logits."""
    if loss.target is not aten.cross_entropy_loss.default or loss in traced.outputs:
        return None
    options = dict(enumerate(loss.args))
    reduction, smoothing = options.get(3, 1), options.get(5, 0.0)
    if options.get(2) is not None or smoothing or reduction not in (1, 2):
        return None
    chain = {loss}
    node = loss.args[0]
    while node.target in _SHAPES | _CASTS and _keeps_rows(node):
        chain.add(node)
        node = node.args[0]
    bias = None
    if node.target in _ADDITIONS and not node.kwargs:
        chain.add(node)
        node, bias = node.args[0], node.args[1]
        if not isinstance(bias, torch.fx.Node) or len(bias.meta["val"].shape) != 1:
            return None
        if bias.op == "placeholder" and bias.name in traced.parameters:
            return None  # its gradient is not computed here
    operands = _projection(node)
    if operands is None or operands[1].meta["val"].shape[0] < _SMALLEST_VOCABULARY:
        return None
    chain.add(node)
    argmaxes = []
    pending = [user for member in chain for user in member.users if member is not loss]
    while pending:
        user = pending.pop()
        if user in chain:
            continue
        if user.target is aten.argmax.default and _over_last(user):
            argmaxes.append(user)
        elif user.target in _SHAPES | _CASTS and _keeps_rows(user):
            chain.add(user)
            pending.extend(user.users)
        else:
            return None  # somebody needs the logits
    if any(member in traced.outputs for member in chain):
        return None
    return _Match(*operands, bias, loss, list(dict.fromkeys(argmaxes)), chain - {loss})


def _projection(node: torch.fx.Node) -> tuple[torch.fx.Node, torch.fx.Node] | None:
    """(hidden, weight (V, C)) of a matrix product, if it is one."""
    if node.target is aten.linear.default and len(node.args) == 2:
        return node.args[0], node.args[1]
    if node.target in (aten.matmul.default, serialized.OPERATOR):
        transposed = node.args[1]
        if transposed.target in (aten.t.default, aten.numpy_T.default):
            return node.args[0], transposed.args[0]
        if transposed.target is aten.transpose.int and len(transposed.args[0].meta["val"].shape) == 2:
            return node.args[0], transposed.args[0]
    return None


def _keeps_rows(node: torch.fx.Node) -> bool:
    source = node.args[0]
    if not isinstance(source, torch.fx.Node) or "val" not in source.meta:
        return False
    before, after = source.meta["val"], node.meta["val"]
    return before.shape[-1] == after.shape[-1] and after.is_floating_point()


def _over_last(node: torch.fx.Node) -> bool:
    dimension = node.args[1] if len(node.args) > 1 else None
    keepdim = node.args[2] if len(node.args) > 2 else False
    return dimension in (-1, len(node.args[0].meta["val"].shape) - 1) and not keepdim


def _replace(traced: TracedGraph, match: _Match, alone: bool) -> None:
    graph, loss = traced.graph, match.loss
    options = dict(enumerate(loss.args))
    reduction = "mean" if options.get(3, 1) == 1 else "sum"
    # Formed at once the gradient does not know the loss scaling yet: only float32 can hold it.
    at_once = alone and match.hidden.meta["val"].dtype == torch.float32
    with graph.inserting_before(loss):
        fused = graph.call_function(
            linear_cross_entropy,
            (match.hidden, match.weight, match.bias, loss.args[1], reduction, options.get(4, -100), at_once),
        )
        value = graph.call_function(operator.getitem, (fused, 0))
        value.meta.update(loss.meta)
    loss.replace_all_uses_with(value)
    for argmax in match.argmaxes:
        with graph.inserting_after(value):
            best = graph.call_function(operator.getitem, (fused, 1))
        with graph.inserting_after(best):
            shaped = graph.call_function(aten.view.default, (best, list(argmax.meta["val"].shape)))
        shaped.meta.update(argmax.meta)
        argmax.replace_all_uses_with(shaped)
