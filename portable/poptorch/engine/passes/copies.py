"""Copies that nobody needs: torch traces a dropout that is switched off as a clone of its input."""

from __future__ import annotations

import torch

from ..tracing.export import TracedGraph
from ..tracing.writes import origins, written

_CLONE = torch.ops.aten.clone.default


def drop_copies(traced: TracedGraph) -> int:
    """Let readers of a clone read what it is a clone of, where neither is ever changed; returns how many there were.

    What the program returns stays apart from everything else, and from weights and inputs.
    """
    graph = traced.graph
    origin = origins(graph.nodes)
    kept = written(graph.nodes, traced.modules, origin) | {origin[node] for node in graph.output_node().all_input_nodes}
    count = 0
    for node in list(graph.nodes):
        if node.target is not _CLONE or node.kwargs:
            continue
        source = node.args[0]
        if origin[source].op != "call_function" or node in kept or origin[source] in kept:
            continue
        value = source.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_contiguous():  # a clone of others may be laid out anew
            continue
        node.replace_all_uses_with(source)
        graph.erase_node(node)
        count += 1
    return count
