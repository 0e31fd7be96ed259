"""Loops and conditionals: the operations between markers become one node that runs them as asked.

Each body was traced once, inline; values from outside that it reads become extra arguments. Regions may be nested.
"""

from __future__ import annotations

import operator

import torch

from ...poptorch_core import createPoptorchError
from . import markers
from .export import TracedGraph
from .writes import in_place, written

_LIBRARY = torch.library.Library("poptorch_region", "FRAGMENT")
_LIBRARY.define("select(int conditional, Tensor condition, Tensor[] then_outputs, Tensor[] else_outputs) -> Tensor[]")
# Stands for a conditional until its bodies are cut out.
SELECT = torch.ops.poptorch_region.select.default


def _select_shapes(number: int, condition: torch.Tensor, then_outputs: list, else_outputs: list) -> list[torch.Tensor]:
    return [torch.empty_like(tensor) for tensor in then_outputs]


torch.library.register_fake("poptorch_region::select", _select_shapes, lib=_LIBRARY)


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


class Conditional(torch.nn.Module):
    """One of two bodies, by the value of the first argument; the bodies' arguments follow it, one's after the other's.

    `writes` are positions among all arguments.
    """

    def __init__(self, bodies: list[torch.fx.GraphModule], arguments: int, writes: tuple[int, ...]):
        super().__init__()
        self.then_body, self.else_body = bodies
        self.split = arguments  # of the first body
        self.writes = writes

    def forward(self, condition: torch.Tensor, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if condition.item():
            return tuple(self.then_body(*arguments[: self.split]))
        return tuple(self.else_body(*arguments[self.split :]))


def extract_regions(traced: TracedGraph) -> None:
    """Replace every marked loop and conditional of `traced` by a call of a module, innermost first."""
    graph = traced.graph
    while True:
        nodes = list(graph.nodes)
        end = next((i for i, node in enumerate(nodes) if node.target in (markers.END_LOOP, SELECT)), None)
        if end is None:
            return
        # The first end closes an innermost region.
        if nodes[end].target is markers.END_LOOP:
            _extract_loop(traced, nodes, end)
        else:
            _extract_conditional(traced, nodes, end)


def _position(nodes: list[torch.fx.Node], marker: torch._ops.OpOverload, *arguments: int) -> int:
    return next(i for i, node in enumerate(nodes) if node.target is marker and node.args[: len(arguments)] == arguments)


def _body(
    traced: TracedGraph, region: list[torch.fx.Node], carried: list[torch.fx.Node], outputs: list[torch.fx.Node]
) -> tuple[torch.fx.GraphModule, list[torch.fx.Node], tuple[int, ...]]:
    """The region as a module, the nodes it takes as arguments, and the positions of those that it changes."""
    inside = set(region)
    sources = dict.fromkeys(source for node in region for source in node.all_input_nodes)
    outer = [node for node in outputs if node not in inside]
    sources.update(dict.fromkeys(outer))
    arguments = [*carried, *(source for source in sources if source not in inside and source not in carried)]
    body = torch.fx.Graph()
    copies = {source: body.placeholder(source.name) for source in arguments}
    for source, placeholder in copies.items():
        placeholder.meta.update(source.meta)  # passes ask what it is like
    root = torch.nn.Module()
    for node in region:
        copies[node] = body.node_copy(node, copies.__getitem__)
        if node.op == "call_module":
            root.add_module(node.target, traced.modules[node.target])
    body.output(tuple(copies[node] for node in outputs))
    changed = written(region, traced.modules)
    writes = tuple(position for position, node in enumerate(arguments) if node in changed)
    return torch.fx.GraphModule(root, body), arguments, writes


def _call(
    traced: TracedGraph, name: str, module: torch.nn.Module, arguments: list[torch.fx.Node], after: torch.fx.Node
) -> torch.fx.Node:
    traced.modules[name] = module
    traced.graph.owning_module.add_module(name, module)  # passes look it up there
    with traced.graph.inserting_after(after):
        return traced.graph.call_module(name, tuple(arguments))


def _extract_loop(traced: TracedGraph, nodes: list[torch.fx.Node], end: int) -> None:
    number = nodes[end].args[0]
    begin = _position(nodes, markers.BEGIN_LOOP, number)
    region, inside = nodes[begin + 1 : end], set(nodes[begin + 1 : end])
    _, count, carried = nodes[begin].args
    outputs = nodes[end].args[1]
    body, arguments, writes = _body(traced, region, carried, outputs)
    _hand_back(body, [position for position in writes if position < len(carried)])
    loop = Loop(body, count, len(carried), writes)
    last = call = _call(traced, f"loop_{number}", loop, arguments, nodes[end])
    for position, output in enumerate(outputs):
        with traced.graph.inserting_after(last):
            last = traced.graph.call_function(operator.getitem, (call, position))
        last.meta.update(output.meta)
        output.replace_all_uses_with(last, delete_user_cb=lambda user: user not in inside and user is not nodes[end])
    _erase(traced, [nodes[end], *reversed(region), nodes[begin]], inside)


def _hand_back(body: torch.fx.GraphModule, changed: list[int]) -> None:
    """State at these positions that a body changes in place and returns there is that tensor, and no copy of it.

    A key/value cache would otherwise be copied once a token.
    """
    graph = body.graph
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    outputs = list(graph.output_node().args[0])
    for position in changed:
        copy = outputs[position]
        if copy.target is not torch.ops.aten.clone.default or copy.kwargs or len(copy.users) > 1:
            continue
        source = copy.args[0]
        while in_place(source):
            source = source.args[0]
        if source is arguments[position]:
            copy.replace_all_uses_with(source)
            graph.erase_node(copy)
    body.recompile()


def _extract_conditional(traced: TracedGraph, nodes: list[torch.fx.Node], end: int) -> None:
    select = nodes[end]
    number, condition = select.args[:2]
    bodies, arguments, writes, erased, sizes = [], [condition], [], [], []
    for branch in (0, 1):
        begin = _position(nodes, markers.BEGIN_BRANCH, number, branch)
        stop = _position(nodes, markers.END_BRANCH, number, branch)
        region = nodes[begin + 1 : stop]
        body, taken, changed = _body(traced, region, nodes[begin].args[2], nodes[stop].args[2])
        writes.extend(position + len(arguments) for position in changed)
        arguments.extend(taken)
        sizes.append(len(taken))
        bodies.append(body)
        erased.extend(nodes[begin : stop + 1])
    conditional = Conditional(bodies, sizes[0], tuple(writes))
    call = _call(traced, f"conditional_{number}", conditional, arguments, select)
    call.meta.update(select.meta)
    select.replace_all_uses_with(call)
    traced.graph.erase_node(select)
    inside = {node for node in erased if node.target not in (markers.BEGIN_BRANCH, markers.END_BRANCH)}
    _erase(traced, list(reversed(erased)), inside)


def _erase(traced: TracedGraph, nodes: list[torch.fx.Node], inside: set[torch.fx.Node]) -> None:
    for node in nodes:
        _use_what_was_changed(node, inside)
        traced.graph.erase_node(node)


def _use_what_was_changed(node: torch.fx.Node, inside: set[torch.fx.Node]) -> None:
    """After `buffer.add_(…)` in the body, later operations read the result of that: it is the buffer."""
    if not node.users:
        return
    source = node
    while source in inside and in_place(source):
        source = source.args[0]
    if source in inside:
        raise createPoptorchError(
            "A tensor made in the body of poptorch.for_loop() or poptorch.cond() is used outside of it: return it "
            "from the body."
        )
    node.replace_all_uses_with(source)
