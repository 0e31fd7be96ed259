"""Finds projections onto a vocabulary whose logits only a cross-entropy and an argmax read, and fuses them.

The pattern is `cross_entropy(hidden W^T (+ bias))`, plain or through serializedMatMul, with views and casts in between.
"""

from __future__ import annotations

import dataclasses
import operator

import torch

from ...device import serialized
from ...device.linear_cross_entropy import linear_cross_entropy
from ...device.policy import Products
from ..tracing.export import TracedGraph
from .half_products import hand_on, is_half
from .patterns import CASTS, erase, overwritten

aten = torch.ops.aten

_SMALLEST_VOCABULARY = 1024  # below it the logits are no burden
_VIEWS = frozenset({aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.contiguous.default})
_ADDITIONS = frozenset({aten.add.Tensor, aten.add_.Tensor})
_TRANSPOSITIONS = frozenset({aten.t.default, aten.numpy_T.default, aten.transpose.int})


@dataclasses.dataclass
class _Match:
    hidden: torch.fx.Node
    weight: torch.fx.Node  # (V, C)
    bias: torch.fx.Node | None  # (V,)
    loss: torch.fx.Node
    target: torch.fx.Node
    reduction: str
    ignore_index: int
    steps: int  # of the serialised product
    argmaxes: list[torch.fx.Node]
    place: torch.fx.Node  # the first of the loss and the argmaxes
    logits: set[torch.fx.Node]  # every node that holds logits, and that nobody reads afterwards
    projection: torch.fx.Node


def fuse_losses(traced: TracedGraph, products: Products | None = None) -> int:
    """Fuse every projection and cross-entropy found in `traced`; returns how many there were.

    `products` are those of half, where they are not of float32.
    """
    matches = [match for node in traced.graph.nodes if (match := _match(traced, node)) is not None]
    for match in matches:
        # Several losses on one weight would each keep a gradient of its size until the backward pass.
        alone = sum(other.weight is match.weight for other in matches) == 1
        # Half gradients need the loss scaling, which is not known before the backward pass.
        float16 = products is not None and products.dtype == torch.float16 and is_half(match.projection)
        wide = match.hidden.meta["val"].dtype == torch.float32 and not float16
        _replace(traced, match, at_once=alone and wide)
    erase(traced, set().union(*(match.logits | {match.loss, *match.argmaxes} for match in matches)))
    return len(matches)


def _match(traced: TracedGraph, loss: torch.fx.Node) -> _Match | None:
    """Read the pattern backwards from a cross-entropy over rows of logits."""
    options = _options(loss)
    if options is None:
        return None
    chain = {loss}
    node = loss.args[0]
    while _hands_on(node):
        chain.add(node)
        node = node.args[0]
    bias = None
    if node.target in _ADDITIONS and not node.kwargs:
        chain.add(node)
        node, bias = node.args
        if not isinstance(node, torch.fx.Node) or not _is_bias(bias, node):
            return None
    found = _projection(node)
    if found is None:
        return None
    hidden, weight, own_bias, steps = found
    if own_bias is not None and bias is not None:
        return None
    bias = bias if bias is not None else own_bias
    if len(weight.meta["val"].shape) != 2 or weight.meta["val"].shape[0] < _SMALLEST_VOCABULARY:
        return None
    chain.add(node)
    argmaxes = _argmaxes(chain, loss)
    if argmaxes is None or any(member in traced.outputs for member in chain - {loss}):
        return None
    target = loss.args[1]
    operands = [hidden, weight, target] + ([bias] if bias is not None else [])
    place = next(node for node in traced.graph.nodes if node is loss or node in argmaxes)
    if overwritten(traced, operands, node, loss) or not all(operand < place for operand in operands):
        return None
    return _Match(hidden, weight, bias, loss, target, *options, steps, argmaxes, place, chain - {loss}, node)


def _options(loss: torch.fx.Node) -> tuple[str, int] | None:
    """(reduction, ignore_index) of a cross-entropy that the fused one can compute."""
    if loss.target is not aten.cross_entropy_loss.default or loss.kwargs or len(loss.args[0].meta["val"].shape) != 2:
        return None
    weight, reduction, ignore_index, smoothing = (*loss.args[2:], *(None, 1, -100, 0.0)[len(loss.args) - 2 :])
    probabilities = loss.args[1].meta["val"].is_floating_point()
    if weight is not None or smoothing or probabilities or reduction not in (1, 2):
        return None
    return ("mean" if reduction == 1 else "sum"), ignore_index


def _argmaxes(chain: set[torch.fx.Node], loss: torch.fx.Node) -> list[torch.fx.Node] | None:
    """Every argmax over the logits in `chain`, or None if somebody else reads them; `chain` grows by their views."""
    found = {}
    pending = [user for member in chain if member is not loss for user in member.users]
    while pending:
        user = pending.pop()
        if user in chain:
            continue
        if user.target is aten.argmax.default and _over_last(user):
            found[user] = None
        elif _hands_on(user):
            chain.add(user)
            pending.extend(user.users)
        else:
            return None
    return list(found)


def _projection(node: torch.fx.Node) -> tuple[torch.fx.Node, torch.fx.Node, torch.fx.Node | None, int] | None:
    """(hidden, weight (V, C), bias or None, serialisation factor) of a matrix product, if it is one."""
    if node.target is aten.linear.default:
        return node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else None, 1
    if node.target in (aten.matmul.default, serialized.OPERATOR):
        transposed = node.args[1]
        if transposed.target in _TRANSPOSITIONS and len(transposed.args[0].meta["val"].shape) == 2:
            swapped = len(transposed.args) == 1 or {dim % 2 for dim in transposed.args[1:]} == {0, 1}
            steps = node.args[3] if node.target is serialized.OPERATOR else 1
            return (node.args[0], transposed.args[0], None, steps) if swapped else None
    return None


def _is_bias(bias: object, logits: torch.fx.Node) -> bool:
    return isinstance(bias, torch.fx.Node) and bias.meta["val"].shape == logits.meta["val"].shape[-1:]


def _hands_on(node: torch.fx.Node) -> bool:
    """Whether `node` has the logits it is given, row by row: in another shape or type, or as a copy.

    An operator of a program's own says that it copies by torch's tag view_copy (as aten.alias_copy does).
    """
    copies = node.target is aten.clone.default or torch.Tag.view_copy in getattr(node.target, "tags", ())
    return (node.target in _VIEWS | CASTS or (copies and _same_shape(node))) and _keeps_rows(node)


def _same_shape(node: torch.fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, torch.fx.Node) and source.meta["val"].shape == node.meta["val"].shape


def _keeps_rows(node: torch.fx.Node) -> bool:
    source = node.args[0]
    if not isinstance(source, torch.fx.Node) or "val" not in source.meta:
        return False
    before, after = source.meta["val"], node.meta["val"]
    return before.shape[-1:] == after.shape[-1:] and after.is_floating_point()


def _over_last(node: torch.fx.Node) -> bool:
    dimension = node.args[1] if len(node.args) > 1 else None
    keepdim = node.args[2] if len(node.args) > 2 else False
    return dimension in (-1, len(node.args[0].meta["val"].shape) - 1) and not keepdim


def _replace(traced: TracedGraph, match: _Match, at_once: bool) -> None:
    """Put the fused operation into the graph; an argmax of the program reads its second result."""
    graph, loss = traced.graph, match.loss
    arguments = (match.hidden, match.weight, match.bias, match.target, match.reduction, match.ignore_index, at_once)
    arguments = (*arguments, match.steps)
    with graph.inserting_before(match.place):
        fused = graph.call_function(linear_cross_entropy, arguments)
        value = graph.call_function(operator.getitem, (fused, 0))
        if loss.meta["val"].dtype != torch.float32:
            value = graph.call_function(aten.to.dtype, (value, loss.meta["val"].dtype))
        best = graph.call_function(operator.getitem, (fused, 1)) if match.argmaxes else None
    hand_on(match.projection, fused)
    value.meta.update(loss.meta)
    loss.replace_all_uses_with(value)
    for argmax in match.argmaxes:
        with graph.inserting_before(argmax):
            shaped = graph.call_function(aten.view.default, (best, list(argmax.meta["val"].shape)))
        shaped.meta.update(argmax.meta)
        argmax.replace_all_uses_with(shaped)
