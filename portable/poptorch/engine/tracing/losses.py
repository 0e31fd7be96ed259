"""Which node is differentiated (spec section 4)."""

from __future__ import annotations

import torch

from ...poptorch_core import createPoptorchError
from . import markers
from .export import TracedGraph
from .writes import dependencies


def find_loss(traced: TracedGraph) -> None:
    """Make the one marked node that feeds no other marked node the loss of `traced`; the marks are erased.

    A copy of its value, made at the mark, is what will be differentiated: whatever the program does to the loss
    afterwards, in place or not, changes what it returns but not the gradient.
    Raises poptorch.Error if there is no such node or more than one.
    """
    graph = traced.graph
    marks = [node for node in graph.nodes if node.target is markers.MARK_LOSS]
    marked = {mark.args[0] for mark in marks}
    final = marked - _ancestors(marked, traced)
    if not final:
        raise createPoptorchError("Couldn't find a loss in graph!")
    if len(final) > 1:
        raise createPoptorchError(
            "Multiple independent losses found in graph. Graph must have one final loss. Wrap final graph loss in "
            "poptorch.identity_loss."
        )
    (loss,) = final
    mark = next(mark for mark in marks if mark.args[0] is loss)
    # A clone and not an alias: `loss *= 5` after the mark would otherwise scale the gradient too.
    with graph.inserting_before(mark):
        copy = graph.call_function(torch.ops.aten.clone.default, (loss,))
        copy.meta.update(loss.meta)
    erase_marks(graph)
    traced.set_loss(copy)


def _ancestors(nodes: set[torch.fx.Node], traced: TracedGraph) -> set[torch.fx.Node]:
    """Everything that `nodes` follow from."""
    depends = dependencies(traced.graph.nodes, traced.modules)
    found: set[torch.fx.Node] = set()
    pending = [source for node in nodes for source in depends[node]]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(depends[node])
    return found


def erase_marks(graph: torch.fx.Graph) -> None:
    """Remove the loss marks (inference has no use for them)."""
    for node in list(graph.nodes):
        if node.target is markers.MARK_LOSS:
            graph.erase_node(node)
