"""Lookups in a weight that a later product multiplies, too, replaced by ones with a sparse gradient.

The product's gradient is formed first, and is dense: what the lookup gives is added to it. On a CPU only, where filling
as much memory with zeros takes time.
"""

from __future__ import annotations

import torch

from ...device import half_products, serialized
from ...device.linear_cross_entropy import linear_cross_entropy
from ...device.tied_embedding import tied_embedding
from ..tracing.export import TracedGraph
from ..tracing.writes import origins

aten = torch.ops.aten
# Whose gradient for the weight is dense, and has the weight's shape.
_PRODUCTS = frozenset(
    {
        aten.linear.default, aten.matmul.default, aten.mm.default, serialized.OPERATOR,
        linear_cross_entropy, half_products.linear, half_products.matmul,
    }
)  # fmt: skip


def fuse_tied_embeddings(traced: TracedGraph, device: torch.device) -> int:
    """Replace the lookups in tied weights; returns how many there were."""
    if device.type != "cpu":
        return 0
    nodes = list(traced.graph.nodes)
    origin, place = origins(nodes), {node: place for place, node in enumerate(nodes)}
    last = {  # product that reads a weight, and where the last one stands
        origin[source]: place[node]
        for node in nodes
        if node.target in _PRODUCTS
        for source in node.all_input_nodes[1:2]
        if origin[source].op == "placeholder"
    }
    count = 0
    for node in nodes:
        if node.target is not aten.embedding.default or node.kwargs or any(node.args[3:]):
            continue
        if last.get(node.args[0], -1) > place[node]:
            node.target, node.args = tied_embedding, node.args[:3]
            count += 1
    return count
