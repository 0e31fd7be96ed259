"""Lookups in tables: their gradients are dense, and in a weight that the fused loss multiplies later they add to its.

The latter on a CPU only, where filling as much memory with zeros takes time.
"""

from __future__ import annotations

import torch

from ...device.linear_cross_entropy import linear_cross_entropy
from ...device.tied_embedding import tied_embedding
from ..tracing.export import TracedGraph
from .patterns import bodies, graphs

aten = torch.ops.aten
# Where the arguments have `sparse`.
_SPARSE = {aten.embedding.default: 4, aten.embedding_bag.default: 5, aten.embedding_bag.padding_idx: 5}


def make_gradients_dense(traced: TracedGraph) -> int:
    """Take `sparse` off lookups, which is for torch's optimizers; returns how many had it."""
    count = 0
    for graph in graphs(traced):
        for node in graph.nodes:
            place = _SPARSE.get(node.target)
            if place is not None and len(node.args) > place and node.args[place]:
                node.args = (*node.args[:place], False, *node.args[place + 1 :])
                count += 1
            elif place is not None and node.kwargs.get("sparse"):
                node.kwargs = {**node.kwargs, "sparse": False}
                count += 1
    for body in bodies(traced):
        body.recompile()
    return count


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
