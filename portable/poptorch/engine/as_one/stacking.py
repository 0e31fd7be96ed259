"""A program for several micro-batches at once, made from that for one, if it can be proven to compute the same.

Proven is what is built from operations that have a rule (choosing.py) and where no micro-batch can see what another one
did: nothing is written to but tensors that the operations made themselves, and no Python is called that is not known.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Collection

import torch

from ..stages import Program, Segment, Stage
from ..tracing.writes import in_place, origins, writers
from . import choosing
from .streams import NAME as STREAMS

aten = torch.ops.aten

# Views wherever they succeed; of others, such as reshape, it depends on the strides whether they copy.
_VIEWS = frozenset(
    {operator.getitem}
    | {
        overload
        for name in (
            "view transpose permute t unsqueeze squeeze select slice split split_with_sizes chunk unbind narrow expand "
            "detach alias diagonal unflatten movedim swapaxes"
        ).split()
        for overload in (getattr(getattr(aten, name), each) for each in getattr(aten, name).overloads())
    }
)


class NotProven(Exception):
    """Why the micro-batches of a program run one at a time."""


@dataclasses.dataclass(frozen=True)
class StackedProgram:
    """Stages that take stacked values, (n, …) for n micro-batches, in the place of those of one.

    Args:
        stages: as the program's, with the same names.
        stacked: names of the values that are stacked. The others are the same for all micro-batches.
        draws: indices of the stages that draw random numbers; they find their streams among their values.
        sure: no operation can turn out not to bear several micro-batches when it is computed.
        bytes: of a micro-batch, what the forward pass leaves behind, estimated from the shapes.
    """

    stages: list[Stage]
    stacked: frozenset[str]
    draws: frozenset[int]
    sure: bool
    bytes: int


def stack(program: Program, shared_inputs: Collection[str], training: bool) -> StackedProgram:
    """The program for several micro-batches; `shared_inputs` are those that all of them have in common.

    Raises NotProven.
    """
    if program.written_inputs or program.written_parameters or program.written_buffers or program.restored_buffers:
        raise NotProven("forward() writes to inputs or buffers")
    stacked = {name for name in program.inputs if name not in shared_inputs}
    own = {*program.inputs, *program.parameters, *program.buffers, *program.constants}
    stages, draws, sure = [], set(), True
    for stage in program.stages:
        if stage.writes & own:
            raise NotProven("forward() writes to what it did not make")
        segments = []
        for segment in stage.segments:
            made, drawing = _stack_segment(segment, stacked)
            segments.append(made)
            sure = sure and all(rule.sure for rule in made.module.children())
            draws |= {stage.index} if drawing else set()
        stages.append(dataclasses.replace(stage, segments=segments))
    if training and program.loss not in stacked:
        raise NotProven("the loss does not depend on the inputs")
    return StackedProgram(stages, frozenset(stacked), frozenset(draws), sure, _bytes(program, training))


def _stack_segment(segment: Segment, stacked: set[str]) -> tuple[Segment, bool]:
    """The segment for stacked values, and whether it draws random numbers. `stacked` grows by what it makes."""
    graph = segment.module.graph
    _check_writes(graph)
    root, new = torch.nn.Module(), torch.fx.Graph()
    streams = new.placeholder("streams")
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    drawing = False
    for node in graph.nodes:
        if node.op == "output":
            outputs = tuple(copies[each] for each in node.args[0])
            new.output((*outputs, streams) if drawing else outputs)
            continue
        if node.op == "placeholder":
            copies[node] = new.node_copy(node)
            continue
        chosen = choosing.choose(node, stacked)
        if isinstance(chosen, str):
            raise NotProven(chosen)
        if chosen is None:
            copies[node] = new.node_copy(node, copies.__getitem__)
            if any(source.name in stacked for source in node.all_input_nodes):
                stacked.add(node.name)
            continue
        name = f"several_{node.name}"  # many operations are called as methods of modules are
        root.add_module(name, chosen)
        operands = tuple(copies[operand] for operand in chosen.operands)
        if choosing.draws(node):
            drawing = True
            both = new.call_module(name, (streams, *operands))
            copies[node] = new.call_function(operator.getitem, (both, 0))
            streams = new.call_function(operator.getitem, (both, 1))
        else:
            copies[node] = new.call_module(name, operands)
        stacked.add(node.name)
    if not drawing:
        new.erase_node(streams)
    module = torch.fx.GraphModule(root, new)
    extra = (STREAMS,) if drawing else ()
    inputs, outputs = (*extra, *segment.inputs), (*segment.outputs, *extra)
    return dataclasses.replace(segment, module=module, inputs=inputs, outputs=outputs), drawing


def _check_writes(graph: torch.fx.Graph) -> None:
    """That what is written to is the segment's own, and that what shares its memory is sure to for stacked values."""
    if any(node.op == "call_module" for node in graph.nodes):
        raise NotProven("forward() has a loop, a condition or an autograd.Function")
    nodes = list(graph.nodes)
    origin, place = origins(nodes), {node: place for place, node in enumerate(nodes)}
    last = {target: max(map(place.get, found)) for target, found in writers(nodes, {}, origin).items()}
    for node in nodes:
        if origin[node] not in last:
            continue
        if node.op == "placeholder":
            raise NotProven("forward() writes to a tensor made in an earlier stage or before a checkpoint")
        sure = origin[node] is node or node.target in _VIEWS or in_place(node)
        if not sure and place[node] < last[origin[node]]:
            raise NotProven(f"forward() writes to a tensor of which {node.target} may be a copy or not")


def _bytes(program: Program, training: bool) -> int:
    """What a micro-batch's forward pass leaves for the backward pass, or, in inference, holds at most."""
    sizes = [stage_bytes(stage, training) for stage in program.stages]
    return sum(kept for kept, _ in sizes) + max((most for _, most in sizes), default=0)


def product_rows(program: Program) -> int:
    """Rows of the products with weights in one micro-batch, on average over what they make; 1 if there are none."""
    graphs = [segment.module.graph for stage in program.stages for segment in stage.segments]
    made = [node.meta["val"] for graph in graphs for node in graph.nodes if node.target in choosing.PRODUCTS]
    total = sum(value.numel() for value in made)
    return max(1, sum(value.numel() * (value.numel() // max(1, value.shape[-1])) for value in made) // max(1, total))


def stage_bytes(stage: Stage, training: bool) -> tuple[int, int]:
    """From the shapes, of one micro-batch: what a stage leaves for the backward pass, and what it holds for a time.

    The latter is a segment that is computed again, or in inference what is alive at most.
    """
    kept, most = 0, 0
    for segment in stage.segments:
        sizes = [choosing.held_bytes(node) for node in segment.module.graph.nodes]
        if segment.recompute and training:
            most = max(most, sum(sizes))
            outputs = next(iter(reversed(segment.module.graph.nodes))).args[0]
            kept += sum(choosing.held_bytes(node) for node in outputs)
        elif training:
            kept += sum(sizes)
        else:
            most = max(most, _most_alive(segment.module.graph))
    return kept, most


def _most_alive(graph: torch.fx.Graph) -> int:
    """Bytes of the values that are alive at one time, at most."""
    last = {source: node for node in graph.nodes for source in node.all_input_nodes}
    ends: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for source, node in last.items():
        ends.setdefault(node, []).append(source)
    alive = most = 0
    for node in graph.nodes:
        alive += choosing.held_bytes(node)
        most = max(most, alive)
        alive -= sum(choosing.held_bytes(source) for source in ends.get(node, ()))
    return most
