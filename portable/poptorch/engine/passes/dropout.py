"""Dropout in plain operators, replaced by the kernel that stores no mask, with the residual sum after it if any.

The pattern is dropout(x), or dropout(x) + residual in either order with nothing else reading the dropped values.
"""

from __future__ import annotations

import torch

from ...device.residual_dropout import residual_dropout
from ..tracing.export import TracedGraph
from ..tracing.writes import origins
from .patterns import erase, only_use, overwritten

aten = torch.ops.aten


def draws(traced: TracedGraph) -> bool:
    """Whether there is a dropout whose outcome is left to chance."""
    return any(_is_drawn(node) for node in traced.graph.nodes)


def _is_drawn(node: torch.fx.Node) -> bool:
    return node.target is aten.dropout.default and node.args[2] and 0.0 < node.args[1] < 1.0


def fuse_dropout(traced: TracedGraph) -> int:
    """Replace every dropout found in `traced`; returns how many there were."""
    origin = origins(traced.graph.nodes)
    replaced: set[torch.fx.Node] = set()
    count = 0
    for node in list(traced.graph.nodes):
        if not _is_drawn(node):
            continue
        total, residual = _sum(traced, node, origin)
        with traced.graph.inserting_before(total):
            fused = traced.graph.call_function(residual_dropout, (node.args[0], residual, float(node.args[1])))
        fused.meta.update(total.meta)
        total.replace_all_uses_with(fused)
        origin[fused] = fused
        replaced |= {node, total}
        count += 1
    erase(traced, replaced)
    return count


def _sum(
    traced: TracedGraph, dropped: torch.fx.Node, origin: dict[torch.fx.Node, torch.fx.Node]
) -> tuple[torch.fx.Node, torch.fx.Node | None]:
    """The sum that reads `dropped` and what it adds, if both can be one with it; else `dropped` itself and None."""
    total = next(iter(dropped.users), None)
    if only_use(dropped, aten.dropout.default) is None or total.target is not aten.add.Tensor or total.kwargs:
        return dropped, None
    first, second = total.args
    residual = second if first is dropped else first
    if not isinstance(residual, torch.fx.Node) or residual is dropped:
        return dropped, None
    value, other = dropped.meta["val"], residual.meta["val"]
    if value.shape != other.shape or value.dtype != other.dtype:
        return dropped, None
    if overwritten(traced, (dropped.args[0], dropped), dropped, total, origin):
        return dropped, None
    return total, residual
