"""Attention written with plain operators, replaced by torch's fused kernel where that is exact.

The pattern is softmax(where(mask, q k^T * scale, low)) v with an optional dropout. It is replaced when the mask is a
constant of the program and causal. The (B, H, T, T) scores are then never held; with dropout on a CPU, where torch's
kernel has none, dropout_attention.py takes its place and holds them once.
"""

from __future__ import annotations

import dataclasses

import torch

from ...device.dropout_attention import dropout_attention
from ..tracing.constants import constant_value
from ..tracing.export import TracedGraph
from ..tracing.writes import origins, written
from .half_products import hand_on, is_half
from .patterns import erase, only_use, overwritten

aten = torch.ops.aten
_LOW = -1e4  # masked scores at or below this vanish in the softmax


@dataclasses.dataclass
class _Match:
    query: torch.fx.Node  # (B, H, T, d)
    key: torch.fx.Node
    value: torch.fx.Node
    scale: float
    dropout: float
    first: torch.fx.Node  # the product of queries and keys
    replaced: set[torch.fx.Node]  # the nodes of the pattern before the last product


def fuse_attention(traced: TracedGraph, device: torch.device, philox: bool = True) -> int:
    """Replace every causal attention found in `traced`; returns how many there were. `philox` is its dropout's."""
    replaced: set[torch.fx.Node] = set()
    count = 0
    origin = origins(traced.graph.nodes)
    changed = written(traced.graph.nodes, traced.modules, origin)
    for node in list(traced.graph.nodes):
        match = _match(traced, node, origin, changed) if node.target is aten.matmul.default else None
        if match is None:
            continue
        operands = (match.query, match.key, match.value)
        with traced.graph.inserting_before(node):
            if match.dropout and device.type == "cpu":
                further = (match.dropout, match.scale, philox)
                fused = traced.graph.call_function(dropout_attention, (*operands, *further))
            else:
                fused = traced.graph.call_function(
                    aten.scaled_dot_product_attention.default,
                    (*operands, None, match.dropout, True),
                    {"scale": match.scale},
                )
        fused.meta.update(node.meta)
        hand_on(match.first if is_half(node) else node, fused)  # it is half if both products are
        node.replace_all_uses_with(fused)
        origin[fused] = origin[node]  # what is a view of the one is now a view of the other
        replaced |= match.replaced | {node}
        count += 1
    erase(traced, replaced)
    return count


def _match(
    traced: TracedGraph,
    product: torch.fx.Node,
    origin: dict[torch.fx.Node, torch.fx.Node],
    changed: set[torch.fx.Node],
) -> _Match | None:
    """Read the pattern backwards from the product of probabilities and values."""
    probabilities, value = product.args
    dropout = 0.0
    dropped = only_use(probabilities, aten.dropout.default)
    if dropped is not None:
        dropout = float(dropped.args[1]) if dropped.args[2] else 0.0
        if dropout >= 1.0:
            return None
        probabilities = dropped.args[0]
    softmax = only_use(probabilities, aten.softmax.int)
    if softmax is None or softmax.args[1] not in (-1, 3) or len(softmax.args) > 2:
        return None
    masked = only_use(softmax.args[0], aten.where.self, aten.where.ScalarOther)
    if masked is None:
        return None
    mask, scores, low = masked.args
    scaled = only_use(scores, aten.mul.Tensor, aten.div.Tensor)
    if scaled is None or not isinstance(scaled.args[1], (int, float)):
        return None
    scale = scaled.args[1] if scaled.target is aten.mul.Tensor else 1 / scaled.args[1]
    inner = only_use(scaled.args[0], aten.matmul.default)
    transposed = only_use(inner.args[1], aten.transpose.int) if inner is not None else None
    if transposed is None or sorted(d % 4 for d in transposed.args[1:]) != [2, 3]:
        return None
    operands = query, key, value = inner.args[0], transposed.args[0], value
    shapes = [node.meta["val"].shape for node in operands]
    if any(len(shape) != 4 for shape in shapes) or shapes[0] != shapes[1] or shapes[1][2] != shapes[2][2]:
        return None
    if len({node.meta["val"].dtype for node in operands}) > 1 or overwritten(traced, operands, inner, product, origin):
        return None
    if not _vanishes(traced, low, changed) or not _is_causal(traced, mask, shapes[0][2], changed):
        return None
    replaced = {node for node in (dropped, softmax, masked, scaled, inner) if node is not None}
    return _Match(query, key, value, float(scale), dropout, inner, replaced)


def _vanishes(traced: TracedGraph, low: object, changed: set[torch.fx.Node]) -> bool:
    if isinstance(low, torch.fx.Node):
        value = constant_value(traced, low, changed)
        return value is not None and bool((value <= _LOW).all())
    return isinstance(low, (int, float)) and low <= _LOW


def _is_causal(traced: TracedGraph, mask: object, length: int, changed: set[torch.fx.Node]) -> bool:
    value = constant_value(traced, mask, changed) if isinstance(mask, torch.fx.Node) else None
    if value is None or value.dtype != torch.bool or value.numel() != length * length:
        return False
    return torch.equal(value.reshape(length, length), torch.ones(length, length, dtype=torch.bool).tril())
