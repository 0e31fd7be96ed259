"""GELU, exact or by tanh, replaced by the kernel that takes the bias of the product before it along.

The pattern is gelu(x), or gelu(x W^T + bias) where nothing else reads the sum, of as many elements as make it worth it.
"""

from __future__ import annotations

import torch

from ...device import native
from ...device.gelu import bias_gelu
from ..tracing.export import TracedGraph
from ..tracing.writes import origins
from .patterns import only_use, overwritten

aten = torch.ops.aten
_TYPES = (torch.float32, torch.bfloat16)
_FEWEST = 1 << 14  # elements; below, the call takes more time than the kernel saves


def fuse_gelu(traced: TracedGraph, device: torch.device) -> int:
    """Replace every GELU that is worth it; returns how many there were."""
    if device.type != "cpu" or not native.available():
        return 0
    graph, origin, count = traced.graph, origins(traced.graph.nodes), 0
    for node in list(graph.nodes):
        if not _is_worth_it(node):
            continue
        x, bias = node.args[0], None
        if _has_bias(x) and not overwritten(traced, x.args, x, node, origin):
            x.args, bias = x.args[:2], x.args[2]
        with graph.inserting_before(node):
            fused = graph.call_function(bias_gelu, (x, bias, node.kwargs.get("approximate", "none")))
        fused.meta.update(node.meta)
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        origin[fused] = fused
        count += 1
    return count


def _is_worth_it(node: torch.fx.Node) -> bool:
    if node.target is not aten.gelu.default:
        return False
    value, given = node.meta["val"], node.args[0].meta["val"]
    return value.dtype == given.dtype and value.dtype in _TYPES and value.dim() > 0 and value.numel() >= _FEWEST


def _has_bias(x: torch.fx.Node) -> bool:
    """Whether `x` is a product in float32 with a bias (N,), read by nothing but one GELU."""
    if only_use(x, aten.linear.default) is None or x.kwargs or len(x.args) < 3 or x.args[2] is None:
        return False
    bias = x.args[2].meta["val"]
    return bias.dim() == 1 and bias.dtype == torch.float32
