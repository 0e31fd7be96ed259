"""One replica over several processes: each runs its stages on the micro-batches in the order of a schedule.

A span of stages is differentiated by itself: what it receives are leaves, whose gradients go back where they came from.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from ..as_one.streams import NAME as STREAMS
from ..processes.channels import Edge, tensors_of
from ..processes.links import Links
from ..processes.reduction import exchange
from ..processes.schedule import Task, schedule
from .counts import Place
from .outputs import OutputCollector
from .placement import Placement, Span
from .progress import CallProgress
from .runner import Runner
from .timings import Timings

_AHEAD = 2  # tasks whose messages may come in while another one is computed


@dataclasses.dataclass
class _Flight:
    """What the backward pass of a span needs of a micro-batch: attached tensors."""

    received: dict[int, list[torch.Tensor]]  # leaves, by the span that they come from
    sent: dict[int, list[torch.Tensor]]  # by the span that they went to
    loss: torch.Tensor | None


class PipelineRunner(Runner):
    """Runs this process's spans of a program; the outputs of all processes are given to all of them.

    Args:
        placement: who runs what. `overlap`: whether micro-batches overlap, as in PipelinedExecution.
        The others as Runner's.
    """

    def __init__(self, *arguments: Any, placement: Placement, links: Links, overlap: bool, **options: Any):
        super().__init__(*arguments, **options)
        self._placement = placement
        self._links = links
        # Anchors look at one micro-batch at a time.
        alone = not overlap or self._anchors is not None or self._stop_at_invalid
        self._in_flight = 1 if alone else len(placement.spans)
        source = self.as_one.program if self.as_one.number > 1 else self._program
        self._stages = {stage.index: stage for stage in source.stages}
        self._values: dict[int, dict[str, Any]] = {}  # by micro-batch
        self._flights: dict[tuple[int, int], _Flight] = {}  # by span and micro-batch
        self._gradients: dict[tuple[int, int, int], list[torch.Tensor]] = {}  # between spans of this process
        self._tasks: dict[int, list[Task]] = {}  # by number of micro-batches
        self._shapes: dict[int, list[tuple[torch.Size, torch.dtype]]] = {}  # of results, by span

    def run(self, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        """One call: `leaves` are the whole inputs, of which the replica's first process's count."""
        counts, training = self._counts, self._optimizer is not None
        collectors = {
            span.index: OutputCollector(
                self._output_mode,
                self._output_period,
                [self._program.output_dtypes[position] for position in span.outputs],
                counts.iterations,
                counts.accumulation,
                1,
            )
            for span in self._placement.mine
        }
        self.timings = Timings(len(self._program.inputs), len(self._program.outputs))
        if self._anchors is not None:
            self._anchors.begin(self._scale())
        announced = self._announced or self._placement.part > 0
        progress = CallProgress(counts.micro_batches, str(self._policy.device), announced)
        self._announced = True
        self._allocate_accumulators()
        try:
            if training:
                for s in range(counts.iterations):
                    places = [(s, a, 0) for a in range(counts.accumulation)]
                    self._pass(leaves, self._several_each(places), collectors, progress)
                    self._update(s)
                    self._random.iteration_done()
                    self.probe.iteration_done()
            else:
                places = [(s, 0, 0) for s in range(counts.iterations)]
                self._pass(leaves, self._several_each(places), collectors, progress)
                self.probe.holds(self._state, {}, {})
                for _ in range(counts.iterations):
                    self._random.iteration_done()
                    self.probe.iteration_done()
        finally:
            progress.close()
            self._values.clear()
            self._flights.clear()
            self._gradients.clear()
            if self._accumulator is not None:
                self._accumulator.clear()
        if self._anchors is not None:
            self._anchors.finish(self._links.share)
        with self.probe.communication():
            return self._shared(collectors, leaves)

    def _several_each(self, places: list[Place]) -> list[list[Place]]:
        """Those that run as one, together."""
        step = self.as_one.number
        return [places[first : first + step] for first in range(0, len(places), step)]

    def _pass(
        self,
        leaves: list[torch.Tensor],
        positions: list[list[Place]],
        collectors: dict[int, OutputCollector],
        progress: CallProgress,
    ) -> None:
        """All tasks of this process on the micro-batches at `positions`, several where they run as one."""
        tasks, step = self._order(len(positions)), self.as_one.number
        for number, task in enumerate(tasks):
            for later in tasks[number : number + 1 + _AHEAD]:
                self._expect(later)
            places = positions[task.micro_batch]
            span = self._placement.spans[task.span]
            if task.forward:
                self.probe.micro_batch(places[0][0], task.micro_batch * step, len(positions) * step, step)
                self._forward(span, task.micro_batch, places, leaves, collectors[span.index])
                if span is self._placement.mine[0]:
                    progress.step(step)
            else:
                self._backward(span, task.micro_batch, last=task.micro_batch == len(positions) - 1)
            if self._ends(span, task):
                self._micro_batch_ended(task.micro_batch, places[0], leaves)
        with self.probe.communication():
            self._links.channels.finish()

    def _order(self, micro_batches: int) -> list[Task]:
        if micro_batches not in self._tasks:
            spans = self._placement.spans
            costs = [1.0 + sum(len(g.module.graph.nodes) for stage in s.stages for g in stage.segments) for s in spans]
            parts = [span.part for span in spans]
            found = schedule(parts, costs, micro_batches, self._optimizer is not None, self._in_flight)
            self._tasks[micro_batches] = found.get(self._placement.part, [])
        return self._tasks[micro_batches]

    def _expect(self, task: Task) -> None:
        """The messages that the task needs may come in."""
        span = self._placement.spans[task.span]
        for other in span.receives if task.forward else ():
            if not self._here(other):
                self._links.channels.expect(Edge(other, span.index), task.micro_batch)
        for other in () if task.forward else span.sends:
            if not self._here(other):
                self._links.channels.expect(Edge(other, span.index, gradient=True), task.micro_batch)

    def _here(self, span: int) -> bool:
        return self._placement.spans[span].part == self._placement.part

    def _ends(self, span: Span, task: Task) -> bool:
        """Whether this process has nothing more to do for the micro-batch."""
        mine = self._placement.mine
        if self._optimizer is not None:
            return not task.forward and span is mine[0]
        return span is mine[-1]

    def _forward(
        self, span: Span, m: int, places: list[Place], leaves: list[torch.Tensor], collector: OutputCollector
    ) -> None:
        training = self._optimizer is not None
        with torch.set_grad_enabled(training):
            if m not in self._values:
                self._values[m] = self._state.values_of(0)
            values = self._values[m]
            if not span.index:
                several = self.as_one.number > 1
                slices = self._stacked_slices(leaves, places) if several else self._slices(leaves, self._at(places[0]))
                values.update(zip(self._program.inputs, slices, strict=True))
            flight = _Flight({}, {}, None)
            for source, names in span.receives.items():
                self._take(span, source, names, m, values, flight)
            own_buffers = self._copied_buffers(span, values) if training or self._hands_buffers_on(span) else {}
            for stage in span.stages:
                self._seek(places, stage.index, values)
                with self.probe.forward(stage, values):
                    self._stages[stage.index].run(values)
            for buffer, copy in own_buffers.values():
                with torch.no_grad():
                    buffer.copy_(copy.detach())
            outputs = [values[self._program.outputs[position]] for position in span.outputs]
            for target, names in span.sends.items():
                sent = [values[name] for name in names]
                flight.sent[target] = [tensor for tensor in tensors_of(sent) if tensor.requires_grad]
                if not self._here(target):
                    with self.probe.communication():
                        self._links.channels.send(Edge(span.index, target), sent)
        if span.index == self._placement.loss_span:
            flight.loss = values[self._program.loss]
        if training:
            self._flights[span.index, m] = flight
        available = self.timings.now()
        if outputs:
            self._collect(collector, places, [self._program.outputs[each] for each in span.outputs], outputs, available)
        self._forget(span, m, values)

    def _at(self, place: Place) -> int:
        return self._counts.position(*place)

    def _seek(self, places: list[Place], stage: int, values: dict[str, Any]) -> None:
        """What a stage draws next is that of these micro-batches. An inference's iterations have not been counted."""
        first = 0 if self._optimizer is None else places[0][0]
        if self.as_one.number == 1:
            (s, a, r) = places[0]
            self._random.seek(self._counts.replica(r), a, stage, s - first)
        elif stage in self.as_one.program.draws:
            values[STREAMS] = self._streams(places, stage, first)

    def _take(
        self, span: Span, source: int, names: tuple[str, ...], m: int, values: dict[str, Any], flight: _Flight
    ) -> None:
        """What the span needs of an earlier one, as leaves."""
        if self._here(source):
            received = [_leaves(values[name]) for name in names]
        else:
            with self.probe.waiting():
                received = self._links.channels.receive(Edge(source, span.index), m)
        flight.received[source] = [tensor for tensor in tensors_of(received) if tensor.requires_grad]
        for name, value in zip(names, received, strict=True):
            # A leaf that collects a gradient cannot be written to.
            values[name] = value.clone() if name in span.writes else value

    def _hands_buffers_on(self, span: Span) -> bool:
        """Whether a later span gets what is in the memory of a buffer that is written to."""
        handed_on = {self._program.views.get(name, name) for names in span.sends.values() for name in names}
        return bool(handed_on & self._program.written_buffers)

    def _copied_buffers(self, span: Span, values: dict[str, Any]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Copies of the buffers that the span may write to, in `values`, by what they are copies of.

        The next micro-batch may write to the buffer before a later span, or this one's backward pass, reads what was in
        it.
        """
        used = {name for stage in span.stages for segment in stage.segments for name in segment.inputs}
        copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for name in self._program.written_buffers & used:
            buffer = self._state.values[name]
            if id(buffer) not in copies:
                copies[id(buffer)] = (buffer, buffer.detach().clone())
            values[name] = copies[id(buffer)][1]
        return copies

    def _forget(self, span: Span, m: int, values: dict[str, Any]) -> None:
        """Drop what no later span of this process, nor the end of the micro-batch, needs."""
        later = [other for other in self._placement.mine if other.index > span.index]
        needed = {name for other in later for source, names in other.receives.items() for name in names}
        needed |= {self._program.outputs[position] for other in later for position in other.outputs}
        needed |= self._program.written_inputs | self._state.values.keys()
        if self._anchors is not None or self._stop_at_invalid:
            needed |= {*self._program.inputs, *self._program.outputs, *self._program.watched.values()}
            needed |= {self._program.loss}
        for name in [name for name in values if name not in needed]:
            del values[name]

    def _backward(self, span: Span, m: int, last: bool) -> None:
        flight = self._flights.pop((span.index, m))
        tensors: list[torch.Tensor] = []
        gradients: list[torch.Tensor] = []
        for target, sent in flight.sent.items():
            if self._here(target):
                found = self._gradients.pop((span.index, target, m))
            else:
                with self.probe.waiting():
                    found = self._links.channels.receive(Edge(target, span.index, gradient=True), m)
            tensors += sent
            gradients += found
        if flight.loss is not None and flight.loss.requires_grad:
            tensors.append(flight.loss)
            gradients.append(torch.full_like(flight.loss, self._scale()))
        self._accumulator.begin_micro_batch(m * self.as_one.number, self.as_one.number)
        self._accumulator.last_backward(last)
        if tensors:
            with self.probe.backward(span.stages, m * self.as_one.number):
                torch.autograd.backward(tensors, gradients)
        for source, leaves in flight.received.items():
            found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
            if self._here(source):
                self._gradients[source, span.index, m] = found
            else:
                with self.probe.communication():
                    self._links.channels.send(Edge(span.index, source, gradient=True), found)

    def _micro_batch_ended(self, m: int, place: Place, leaves: list[torch.Tensor]) -> None:
        values = self._values.pop(m)
        if not self._placement.part:
            self._write_inputs_back(leaves, self._at(place), values)
        if self._stop_at_invalid:
            mine = [position for span in self._placement.mine for position in span.outputs]
            outputs = {position: values[self._program.outputs[position]] for position in mine}
            self._check_valid(outputs, values.get(self._program.loss))
        if self._anchors is not None:
            watched = {
                name: values[self._program.watched[name]].detach()
                for span in self._placement.mine
                for name in span.watched
            }
            self._look(*place, {**values, **watched}, values.get(self._program.loss))

    def _update(self, s: int) -> None:
        """As in one process, but for parameters that several processes of the replica use."""
        with self.probe.communication():
            gradients = self._accumulator.gradients()
            for name, group in self._links.ties.items():
                parameter = self._state.parameters[name]
                if parameter.requires_grad:
                    gradient = gradients.get(name)
                    gradients[name] = torch.zeros_like(parameter) if gradient is None else gradient
                    with exchange():
                        dist.all_reduce(gradients[name], group=group)
        self._step(gradients, s)
        for name, group in self._links.ties.items():  # stochastic rounding may have made them differ
            with exchange():
                first = self._links.ranks[self._placement.shared[name][0]]
                dist.broadcast(self._state.parameters[name].detach(), first, group=group)

    def _shared(self, collectors: dict[int, OutputCollector], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs of the call, in every process of the replica."""
        share = self._links.share
        outputs: dict[int, torch.Tensor] = {}
        for span in self._placement.spans:
            if not span.outputs:
                continue
            tensors = collectors[span.index].result() if span.part == self._placement.part else []
            if span.index in self._shapes:
                found = share(span.part, tensors, self._shapes[span.index])
            else:
                found = share(span.part, tensors)
                self._shapes[span.index] = [(tensor.shape, tensor.dtype) for tensor in found]
            outputs.update(zip(span.outputs, found, strict=True))
        for name, leaf in zip(self._program.inputs, leaves, strict=True):
            if name in self._program.written_inputs:
                (changed,) = share(0, [leaf] if not self._placement.part else [])
                leaf.copy_(changed)
        return [outputs[position] for position in range(len(self._program.outputs))]


def _leaves(value: Any) -> Any:
    """A value of another span of this process, as one that is differentiated by itself."""
    return pytree.tree_map_only(
        torch.Tensor, lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad), value
    )
