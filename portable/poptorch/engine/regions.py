"""Loops: the operations between two markers become one node that runs them as often as asked.

The body was traced once, inline; values from outside that it reads become extra arguments. Loops may be nested.
"""

from __future__ import annotations

import operator

import torch

from ..poptorch_core import createPoptorchError
from . import markers
from .tracing import TracedGraph
from .writes import in_place, written


class Loop(torch.nn.Module):
    """`count` times `body(*state, *captured)`, the state being what the body returned before."""

    def __init__(self, body: torch.fx.GraphModule, count: int, carried: int, writes: tuple[int, ...]):
        super().__init__()
        self.body = body
        self.count = count
        self.carried = carried
        self.writes = writes  # positions of the arguments that the body changes in place

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state, captured = arguments[: self.carried], arguments[self.carried :]
        for _ in range(self.count):
            state = self.body(*state, *captured)
        return tuple(state)


def extract_loops(traced: TracedGraph) -> None:
    """Replace every marked loop of `traced` by a call of a Loop module, innermost first."""
    graph = traced.graph
    while True:
        nodes = list(graph.nodes)
        ends = [index for index, node in enumerate(nodes) if node.target is markers.END_LOOP]
        if not ends:
            return
        end = ends[0]  # the first end closes the innermost loop
        number = nodes[end].args[0]
        begin = next(i for i, node in enumerate(nodes) if node.target is markers.BEGIN_LOOP and node.args[0] == number)
        _extract(traced, nodes[begin], nodes[begin + 1 : end], nodes[end])


def _extract(traced: TracedGraph, begin: torch.fx.Node, region: list[torch.fx.Node], end: torch.fx.Node) -> None:
    graph, inside = traced.graph, set(region)
    number, count, carried = begin.args
    outputs = end.args[1]
    sources = dict.fromkeys(source for node in region for source in node.all_input_nodes)
    captured = [source for source in sources if source not in inside and source not in carried]
    changed = written(region, traced.modules)
    arguments = [*carried, *captured]

    body = torch.fx.Graph()
    copies = {source: body.placeholder(source.name) for source in arguments}
    root = torch.nn.Module()
    for node in region:
        copies[node] = body.node_copy(node, copies.__getitem__)
        if node.op == "call_module":
            root.add_module(node.target, traced.modules[node.target])
    body.output(tuple(copies[node] for node in outputs))

    name = f"loop_{number}"
    writes = tuple(position for position, node in enumerate(arguments) if node in changed)
    traced.modules[name] = loop = Loop(torch.fx.GraphModule(root, body), count, len(carried), writes)
    graph.owning_module.add_module(name, loop)  # passes look it up there
    with graph.inserting_after(end):
        call = graph.call_module(name, tuple(arguments))
    last = call
    for position, output in enumerate(outputs):
        with graph.inserting_after(last):
            last = graph.call_function(operator.getitem, (call, position))
        last.meta.update(output.meta)
        output.replace_all_uses_with(last, delete_user_cb=lambda user: user not in inside and user is not end)
    for node in [end, *reversed(region), begin]:
        _use_what_was_changed(node, inside)
        graph.erase_node(node)


def _use_what_was_changed(node: torch.fx.Node, inside: set[torch.fx.Node]) -> None:
    """After `buffer.add_(…)` in the body, later operations read the result of that: it is the buffer."""
    if not node.users:
        return
    source = node
    while source in inside and in_place(source):
        source = source.args[0]
    if source in inside:
        raise createPoptorchError(
            "poptorch.for_loop(): a tensor made in the body is used outside of it: return it from the body."
        )
    node.replace_all_uses_with(source)
