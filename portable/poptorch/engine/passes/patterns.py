"""What the fusion passes ask of a graph."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..tracing.export import TracedGraph
from ..tracing.writes import origins, written

aten = torch.ops.aten
CASTS = frozenset({aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout})


def bodies(traced: TracedGraph) -> list[torch.fx.GraphModule]:
    """The graphs inside the modules of `traced`: those of loops and conditions, say."""
    inner = (module for outer in traced.modules.values() for module in outer.modules())
    return [module for module in inner if isinstance(module, torch.fx.GraphModule)]


def graphs(traced: TracedGraph) -> list[torch.fx.Graph]:
    """That of `traced` and those inside its modules."""
    return [traced.graph, *(body.graph for body in bodies(traced))]


def only_use(node: object, *targets: object) -> torch.fx.Node | None:
    """`node` if it is a call of one of `targets` whose value has one reader."""
    if isinstance(node, torch.fx.Node) and node.target in targets and len(node.users) == 1:
        return node
    return None


def overwritten(
    traced: TracedGraph,
    values: Iterable[torch.fx.Node],
    first: torch.fx.Node,
    last: torch.fx.Node,
    origin: dict[torch.fx.Node, torch.fx.Node] | None = None,
) -> bool:
    """Whether anything between `first` and `last` changes one of `values` in place.

    A fusion reads its operands at `last` where the program read them from `first` on. `origin` is origins() of the
    whole graph, for who asks often.
    """
    origin = origins(traced.graph.nodes) if origin is None else origin
    sources = {origin.get(value, value) for value in values}
    node = first
    while node is not last:
        if any(origin.get(target, target) in sources for target in written([node], traced.modules)):
            return True
        node = node.next
    return False


def erase(traced: TracedGraph, nodes: set[torch.fx.Node]) -> None:
    """Remove nodes that nobody reads but each other, and what only they read.

    Not by torch's own elimination: it goes through the whole graph, keeps random operations and those in place, and
    takes out what works by its effect alone, as torch.vmap's levels do.
    """
    read: set[torch.fx.Node] = set()
    for node in reversed(list(traced.graph.nodes)):
        if node in nodes or (node in read and not node.users and not node.is_impure()):
            read.update(node.all_input_nodes)
            traced.graph.erase_node(node)
