"""Lookups in a weight that the fused loss multiplies later, replaced by ones that add to the gradient it forms.

On a CPU only, where filling as much memory with zeros takes time.
"""

from __future__ import annotations

import torch

from ...device.linear_cross_entropy import linear_cross_entropy
from ...device.tied_embedding import tied_embedding
from ..tracing.export import TracedGraph

aten = torch.ops.aten


def fuse_tied_embeddings(traced: TracedGraph, device: torch.device) -> int:
    """Replace the lookups in tied weights; returns how many there were."""
    if device.type != "cpu":
        return 0
    count, heads = 0, [node for node in traced.graph.nodes if node.target is linear_cross_entropy]
    for node in traced.graph.nodes:
        if node.target is not aten.embedding.default or node.kwargs or any(node.args[3:]):
            continue
        users = set(node.args[0].users)
        tied = [head for head in heads if head.args[1] is node.args[0]]
        # One of each, so that there is nothing but the two to add up.
        if len(tied) == 1 and users == {node, *tied} and node.args[0].op == "placeholder":
            node.target, node.args = tied_embedding, node.args[:3]
            tied[0].kwargs = {**tied[0].kwargs, "shared": True}
            count += 1
    return count
