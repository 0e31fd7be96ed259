"""From the traced graph to the program the engine runs: stages made of segments.

A stage is what lies between two switches of the IPU (spec section 8); a segment is the part of a stage between two
recomputation checkpoints. Both are plain functions of named values: parameters are arguments too, so that a tied weight
stays one tensor whose gradients add, and so that a stage can run wherever its inputs are.
"""

from __future__ import annotations

import dataclasses

import torch

from .recomputation import recomputed
from .tracing import markers
from .tracing.buffer_writes import BufferWrites
from .tracing.export import TracedGraph
from .tracing.writes import origins, written


@dataclasses.dataclass
class Segment:
    """Operations that run in one go: `outputs = module(*inputs)`, all by name."""

    module: torch.fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    recompute: bool  # its activations are dropped in the forward pass and computed again in the backward pass
    last_uses: tuple[str, ...] = ()  # values nobody reads after this segment

    def run(self, values: dict[str, torch.Tensor]) -> None:
        """Read the inputs from `values`, add the outputs, drop what is not needed any more."""
        arguments = [values[name] for name in self.inputs]
        if self.recompute and torch.is_grad_enabled():
            results = recomputed(self.module, arguments)
        else:
            results = self.module.forward(*arguments)  # nobody hooks it, and what is around costs as much as it
        values.update(zip(self.outputs, results, strict=True))
        for name in self.last_uses:
            values.pop(name, None)


@dataclasses.dataclass
class Stage:
    """Consecutive blocks on one IPU.

    `inputs` come from the user or from earlier stages, `outputs` are read by later ones or by the user;
    `parameters` and `buffers` are names in the module.
    """

    index: int
    ipu: int
    blocks: tuple[str, ...]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    segments: list[Segment]
    writes: frozenset[str] = frozenset()  # what it did not make itself and writes to

    def run(self, values: dict[str, torch.Tensor]) -> None:
        """Run the stage on one micro-batch: `values` must hold its inputs, parameters and buffers."""
        for segment in self.segments:
            segment.run(values)


@dataclasses.dataclass
class Program:
    """A compiled model: what one micro-batch goes through.

    `inputs` are the value names of the user's tensors, `outputs` those of the returned tensors (the same name may
    occur twice), `loss` the value to differentiate. `parameters`, `buffers` and `constants` map value names to names in
    the module, or to the tensor.
    """

    stages: list[Stage]
    inputs: list[str]
    outputs: list[str]
    output_dtypes: list[torch.dtype]
    loss: str | None
    parameters: dict[str, str]
    buffers: dict[str, str]
    constants: dict[str, torch.Tensor]
    written_buffers: frozenset[str]  # value names of buffers that keep what is written to them
    restored_buffers: frozenset[str]  # value names of those that each micro-batch finds as they were uploaded
    shared_writes: frozenset[str]  # names in the module of buffers that replicas cannot share
    written_inputs: frozenset[str]
    written_parameters: frozenset[str]  # names in the module
    folded: dict[str, torch.Tensor]  # buffers (by name in the module) that are compiled in with these values
    watched: dict[str, str]  # anchored intermediate tensors: name -> value name
    scope_names: tuple[str, ...]  # intermediate tensors that may be anchored
    views: dict[str, str] = dataclasses.field(default_factory=dict)  # values in the memory of others, by name


def ipu_switches(blocks: list[tuple[str, int]]) -> int:
    """Switches from one IPU to another + 1 over the blocks in order: what PopTorch counts as pipeline stages."""
    ipus = [ipu for _, ipu in blocks]
    return 1 + sum(a != b for a, b in zip(ipus, ipus[1:], strict=False))


@dataclasses.dataclass
class _Cut:
    """Nodes of one future segment."""

    stage: int
    nodes: list[torch.fx.Node] = dataclasses.field(default_factory=list)
    checkpointed: bool = False


def _cut(graph: torch.fx.Graph) -> tuple[list[_Cut], list[tuple[int, list[str]]]]:
    """Segments in program order, and (ipu, blocks) of each stage. Erases the markers."""
    stages: list[tuple[int, list[str]]] = []
    cuts = [_Cut(0)]
    for node in list(graph.nodes):
        if node.target is markers.BEGIN_BLOCK:
            block, ipu = node.args
            if not stages:
                stages.append((ipu, []))  # operations before the first block belong to its stage
            elif stages[-1][0] != ipu:
                stages.append((ipu, []))
                cuts.append(_Cut(len(stages) - 1))
            if block not in stages[-1][1]:
                stages[-1][1].append(block)
        elif node.target is markers.CHECKPOINT:
            if cuts[-1].nodes:
                cuts[-1].checkpointed = True
                cuts.append(_Cut(max(len(stages) - 1, 0)))
        elif node.op not in ("placeholder", "output"):
            cuts[-1].nodes.append(node)
            continue
        if node.target in (markers.BEGIN_BLOCK, markers.CHECKPOINT):
            graph.erase_node(node)
    return [cut for cut in cuts if cut.nodes], stages or [(0, [])]


def build_program(traced: TracedGraph) -> Program:
    """Cut the traced graph into stages and segments. The graph's markers for losses and loops must be gone."""
    graph, loss = traced.graph, traced.loss
    writes = written(graph.nodes, traced.modules)
    buffers = BufferWrites.of(traced)
    cuts, stages = _cut(graph)
    watched = {name: node.name for name, node in traced.watched.items()}
    kept = {node.name for node in traced.outputs} | set(watched.values())
    kept |= {loss.name} if loss is not None else set()
    used_later = _names_read_after(cuts)
    segments: list[Segment] = []
    origin = origins(graph.nodes)
    repeatable = _repeatable(cuts, origin, traced)
    for index, cut in enumerate(cuts):
        outputs = [node for node in cut.nodes if node.name in kept or node.name in used_later[index]]
        segments.append(_segment(cut, outputs, traced, recompute=cut.checkpointed and repeatable[index]))
    state = set(traced.parameters) | set(traced.buffers) | set(traced.constants)
    for index, segment in enumerate(segments):
        readable = set(segment.inputs) | set(segment.outputs)
        segment.last_uses = tuple(sorted(readable - used_later[index] - kept - state))
    return Program(
        stages=[
            _stage(
                index,
                ipu,
                blocks,
                [s for s, cut in zip(segments, cuts, strict=True) if cut.stage == index],
                traced,
                kept,
                _writes([cut for cut in cuts if cut.stage == index], origin, traced),
            )
            for index, (ipu, blocks) in enumerate(stages)
        ],
        inputs=list(traced.inputs),
        outputs=[node.name for node in traced.outputs],
        output_dtypes=list(traced.output_dtypes),
        loss=None if loss is None else loss.name,
        parameters=dict(traced.parameters),
        buffers=dict(traced.buffers),
        constants=dict(traced.constants),
        written_buffers=buffers.kept,
        restored_buffers=buffers.restored,
        shared_writes=buffers.shared,
        written_inputs=frozenset(node.name for node in writes if node.name in traced.inputs),
        written_parameters=frozenset(traced.parameters[node.name] for node in writes if node.name in traced.parameters),
        folded=dict(traced.folded),
        watched=watched,
        scope_names=traced.scope_names,
        views={node.name: source.name for node, source in origin.items() if node is not source},
    )


def _writes(cuts: list[_Cut], origin: dict[torch.fx.Node, torch.fx.Node], traced: TracedGraph) -> frozenset[str]:
    nodes = [node for cut in cuts for node in cut.nodes]
    return frozenset(node.name for node in written(nodes, traced.modules, origin) - set(nodes))


def _repeatable(cuts: list[_Cut], origin: dict[torch.fx.Node, torch.fx.Node], traced: TracedGraph) -> list[bool]:
    """Whether each cut may run a second time, in the backward pass.

    It may not write to what it did not make itself, nor may anything that it reads have been written to meanwhile.
    """
    result = []
    written_later: set[torch.fx.Node] = set()
    for cut in reversed(cuts):
        inside = set(cut.nodes)
        reads = {origin[source] for node in cut.nodes for source in node.all_input_nodes if source not in inside}
        writes = written(cut.nodes, traced.modules, origin)
        result.append(writes <= inside and not reads & written_later)
        written_later |= writes
    return result[::-1]


def _names_read_after(cuts: list[_Cut]) -> list[set[str]]:
    """For each cut the names that later cuts read."""
    later: set[str] = set()
    result = []
    for cut in reversed(cuts):
        result.append(set(later))
        later |= {source.name for node in cut.nodes for source in node.all_input_nodes}
    return result[::-1]


def _segment(cut: _Cut, outputs: list[torch.fx.Node], traced: TracedGraph, recompute: bool) -> Segment:
    inside = set(cut.nodes)
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    inputs = []
    for node in cut.nodes:
        for source in node.all_input_nodes:
            if source not in inside and source not in copies:
                copies[source] = graph.placeholder(source.name)
                inputs.append(source.name)
    modules = {}
    for node in cut.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op == "call_module":
            modules[node.target] = traced.modules[node.target]
    graph.output(tuple(copies[node] for node in outputs))
    root = torch.nn.Module()
    for name, module in modules.items():
        root.add_module(name, module)
    return Segment(torch.fx.GraphModule(root, graph), tuple(inputs), tuple(node.name for node in outputs), recompute)


def _stage(
    index: int,
    ipu: int,
    blocks: list[str],
    segments: list[Segment],
    traced: TracedGraph,
    kept: set[str],
    writes: frozenset[str],
) -> Stage:
    reads = [name for segment in segments for name in segment.inputs]
    makes = [name for segment in segments for name in segment.outputs]
    last = {name for segment in segments for name in segment.last_uses}
    unique = dict.fromkeys(reads)
    state = {**traced.parameters, **traced.buffers, **traced.constants}
    return Stage(
        index=index,
        ipu=ipu,
        blocks=tuple(blocks),
        parameters=tuple(traced.parameters[name] for name in unique if name in traced.parameters),
        buffers=tuple(traced.buffers[name] for name in unique if name in traced.buffers),
        inputs=tuple(name for name in unique if name not in state and name not in makes),
        outputs=tuple(name for name in makes if name in kept or name not in last),
        segments=segments,
        writes=writes,
    )
