"""One process, one device: the program over iterations x accumulation x replicas (spec sections 2 to 5).

The stages run in turn on each micro-batch; their order and inputs are data (Program.stages), so that another executor
may place them elsewhere. The trivial case, one stage and one micro-batch, takes the same path.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ... import notices
from ...device.policy import Policy
from ...enums import OutputMode
from ...poptorch_core import createPoptorchError
from ..as_one.number import AsOne
from ..as_one.stacking import StackedProgram
from ..as_one.streams import NAME as STREAMS
from ..as_one.streams import Streams
from ..stages import Program
from .anchors import FINAL_LOSS_SCALE, Anchors
from .counts import Counts, Place
from .early_updates import early, heads
from .gradients import GradientAccumulator
from .outputs import OutputCollector
from .probe import Probe
from .progress import CallProgress
from .randomness import UPDATE, RandomStreams
from .state import DeviceState
from .timings import Timings


class Runner:
    """Runs a program, and for training updates the device's parameters once an iteration.

    Args:
        optimizer: the DeviceOptimizer, or None for inference.
        accumulator: its gradients, or None for inference.
        anchors: collects tensors that the program asked for by name, or None.
        stop_at_invalid: raise poptorch.Error at the first NaN or infinity that a micro-batch computes.
        random: what the program draws from.
        as_one: how many micro-batches run as one. They are a divisor of those of a weight update, or in inference of
            those of a call; there are neither anchors then nor stop_at_invalid.
        output_mode, output_period: what becomes of the outputs.
    """

    def __init__(
        self,
        program: Program,
        state: DeviceState,
        counts: Counts,
        output_mode: OutputMode,
        output_period: int,
        policy: Policy,
        *,
        optimizer: Any = None,
        accumulator: GradientAccumulator | None = None,
        anchors: Anchors | None = None,
        stop_at_invalid: bool = False,
        random: RandomStreams,
        as_one: AsOne = AsOne(),  # noqa: B008 - frozen
    ):
        self._program = program
        self._state = state
        self._counts = counts
        self._output_mode = output_mode
        self._output_period = output_period
        self._policy = policy
        self._optimizer = optimizer
        self._accumulator = accumulator
        self.probe = Probe()  # a report looks on here
        self._anchors = anchors
        self._stop_at_invalid = stop_at_invalid
        self._random = random
        self.as_one = as_one
        if accumulator is not None and anchors is not None:
            accumulator.take_whole()
        self._early = frozenset() if optimizer is None else early(program, state.parameters)
        self._heads = frozenset() if optimizer is None else heads(program)
        self._worked = False  # micro-batches have run as one
        self._announced = False
        self.timings = Timings(len(program.inputs), len(program.outputs))  # of the last call

    def run(self, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        """One call: `leaves` are the whole inputs, the result the whole outputs, both on the host."""
        counts = self._counts
        collector = OutputCollector(
            self._output_mode,
            self._output_period,
            self._program.output_dtypes,
            counts.iterations,
            counts.accumulation,
            counts.replicas,
        )
        self.timings = Timings(len(self._program.inputs), len(self._program.outputs))
        if self._anchors is not None:
            self._anchors.begin(self._scale())
        progress = CallProgress(counts.micro_batches, str(self._policy.device), self._announced)
        self._announced = True
        places = [
            (s, a, r)
            for s in range(counts.iterations)
            for a in range(counts.accumulation)
            for r in range(counts.replicas)
        ]
        step = self.as_one.number
        self._allocate_accumulators()
        try:
            for first in range(0, len(places), step):
                self._run(collector, leaves, places[first : first + step])
                progress.step(step)
        finally:
            progress.close()
            if self._accumulator is not None:
                self._accumulator.clear()
        if self._optimizer is None:
            self.probe.holds(self._state, {}, {})
        if self._anchors is not None:
            self._anchors.finish()
        return collector.result()

    def _allocate_accumulators(self) -> None:
        """But for weights that are updated within the backward pass: none unless it is the only one before an update.

        Nor where somebody looks at gradients: a report, anchors, or the check for what is not finite.
        """
        if self._accumulator is None:
            return
        alone = self.as_one.number == self._counts.accumulation * self._counts.all_replicas
        watched = self._anchors is not None or self._stop_at_invalid or type(self.probe) is not Probe
        names = self._early if alone and not watched else frozenset()
        names = names and self._optimizer.independent(names)
        self._accumulator.allocate(
            names,
            lambda name, gradient: self._optimizer.step({name: gradient}),
            lodged=self._heads if alone else frozenset(),
        )

    def _run(self, collector: OutputCollector, leaves: list[torch.Tensor], places: list[Place]) -> None:
        """The micro-batches at these (s, a, r), as one if there are several, and the ends of iterations among them."""
        counts = self._counts
        (s, a, r), each = places[0], counts.accumulation * counts.replicas
        self.probe.micro_batch(s, a * counts.replicas + r, each, len(places))
        if not self._together(collector, leaves, places):
            for s, a, r in places:
                self._position(collector, leaves, s, a, r)
        for s, a, r in places:
            if (a, r) != (counts.accumulation - 1, counts.replicas - 1):
                continue
            if self._optimizer is not None:
                self._update(s)
            self._random.iteration_done()
            self.probe.iteration_done()

    def _together(self, collector: OutputCollector, leaves: list[torch.Tensor], places: list[Place]) -> bool:
        """The micro-batches at `places` as one, and what becomes of their outputs. Returns whether that was done."""
        stacked = self.as_one.program
        if len(places) == 1 or stacked is None:
            return False
        training = self._optimizer is not None
        with torch.set_grad_enabled(training):
            before = len(self.timings.input), len(self.timings.input_complete)
            try:
                values = self._several(stacked, leaves, places)
            except RuntimeError as error:  # an operation whose shapes do not bear it, or too little memory
                if self._worked:
                    raise
                # Nothing has happened yet. If it is the program that fails it does so again.
                self.as_one.give_up()
                self.as_one = AsOne(reason=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
                self._allocate_accumulators()
                notices.logger.warning("Micro-batches run one at a time after all: %s", self.as_one.reason)
                del self.timings.input[before[0] :], self.timings.input_complete[before[1] :]
                return False
        self._worked = True
        outputs = [values[name] for name in self._program.outputs]
        available = self.timings.now()
        if training:
            loss = values.pop(self._program.loss)
            del values
            self._begin_backward(*places[0][1:], len(places))
            self._differentiate(loss)
        self._collect(collector, places, self._program.outputs, outputs, available)
        return True

    def _collect(
        self,
        collector: OutputCollector,
        places: list[Place],
        names: list[str],
        outputs: list[torch.Tensor],
        available: float,
    ) -> None:
        """Take the outputs of these names, which were `available` then, micro-batch by micro-batch."""
        stacked = self.as_one.program.stacked if len(places) > 1 else ()
        for number, place in enumerate(places):
            own = [output[number] if name in stacked else output for name, output in zip(names, outputs, strict=True)]
            if collector.add(*place, own):
                self.timings.output.append(available)
                self.timings.output_complete.append(self.timings.now())

    def _several(
        self, stacked: StackedProgram, leaves: list[torch.Tensor], places: list[Place]
    ) -> dict[str, torch.Tensor]:
        """What the stages make of the micro-batches at `places`."""
        values = self._state.values_of(0)
        values.update(zip(self._program.inputs, self._stacked_slices(leaves, places), strict=True))
        for stage in stacked.stages:
            if stage.index in stacked.draws:
                values[STREAMS] = self._streams(places, stage.index, places[0][0])
            with self.probe.forward(stage, values):
                stage.run(values)
        return values

    def _streams(self, places: list[Place], stage: int, first: int) -> Streams:
        """The random numbers of a stage for each of these micro-batches, counted from iteration `first` on."""
        seeks = [partial(self._random.seek, self._counts.replica(r), a, stage, s - first) for s, a, r in places]
        return Streams.of(seeks, self._policy.device)

    def _begin_backward(self, a: int, r: int, together: int = 1) -> None:
        """Tell the accumulator which micro-batches the next backward pass is of."""
        index, count = a * self._counts.replicas + r, self._counts.accumulation * self._counts.replicas
        self._accumulator.begin_micro_batch(index, together)
        if index + together == count:
            self._accumulator.last_backward()

    def _differentiate(self, loss: torch.Tensor) -> None:
        if loss.requires_grad:  # not if every parameter is frozen
            # A loss that is no scalar is back-propagated as its sum.
            with self.probe.backward():
                loss.backward(torch.full_like(loss, self._scale()))

    def _stacked_slices(self, leaves: list[torch.Tensor], places: list[Place]) -> list[torch.Tensor]:
        """The inputs of these micro-batches, on the device: (n, …), and as they are where all have the same one."""
        positions = [self._counts.position(*place) for place in places]
        self.timings.input += [self.timings.now()] * len(places)
        slices = []
        for leaf in leaves:
            if leaf.dim():
                parts = leaf.detach().unflatten(0, (self._counts.fed, -1))
                ahead = positions == list(range(positions[0], positions[0] + len(positions)))
                leaf = parts[positions[0] : positions[-1] + 1] if ahead else parts[positions]
            slices.append(
                leaf.detach().to(self._policy.device, self._policy.compute_dtype(leaf.dtype), non_blocking=True)
            )
        self.timings.input_complete += [self.timings.now()] * len(places)
        return slices

    def _position(self, collector: OutputCollector, leaves: list[torch.Tensor], s: int, a: int, r: int) -> None:
        """Micro-batch (s, a, r), and what becomes of its outputs."""
        position = self._counts.position(s, a, r)
        slices = self._slices(leaves, position)
        if self._accumulator is not None:
            self._begin_backward(a, r)
        outputs, watched, loss = self._micro_batch(slices, a, r)
        available = self.timings.now()
        if self._counts.last_of_group(r):
            self._write_inputs_back(leaves, position, dict(zip(self._program.inputs, slices, strict=True)))
        if self._stop_at_invalid:
            self._check_valid(dict(enumerate(outputs)), loss)
        if self._anchors is not None:
            values = dict(zip([*self._program.inputs, *self._program.outputs], [*slices, *outputs], strict=True))
            self._look(s, a, r, {**values, **watched}, loss)
        self._collect(collector, [(s, a, r)], self._program.outputs, outputs, available)

    def _look(self, s: int, a: int, r: int, values: dict[str, torch.Tensor], loss: torch.Tensor | None) -> None:
        """Give the anchors the values of micro-batch (s, a, r): inputs, outputs and intermediate ones."""
        if self._optimizer is not None:
            values = {**values, FINAL_LOSS_SCALE: torch.tensor(self._optimizer.loss_scaling, dtype=torch.float32)}
        self._anchors.micro_batch(s, a, r, {**values, "loss": loss})

    def _update(self, s: int) -> None:
        with self.probe.communication():
            gradients = self._accumulator.gradients()
        self._step(gradients, s)

    def _step(self, gradients: dict[str, torch.Tensor], s: int) -> None:
        self.probe.holds(self._state, gradients, self._optimizer.states)
        with self.probe.update():
            self._random.seek(UPDATE)
            self._optimizer.step(gradients)
            self._accumulator.clear()
        if self._anchors is not None:
            self._anchors.updated(s, self._scale())

    def _scale(self) -> float:
        """What a loss is multiplied by before the backward pass."""
        return 1.0 if self._optimizer is None else self._optimizer.loss_scaling * self._accumulator.loss_factor

    def _check_valid(self, outputs: dict[int, torch.Tensor], loss: torch.Tensor | None) -> None:
        """Floating-point exceptions: what a device that raises them would have stopped at."""
        tensors = {f"output {position}": output for position, output in outputs.items()}
        if self._optimizer is not None:
            tensors.update({} if loss is None else {"the loss": loss})
            tensors.update({f"the gradient of {name}": g for name, g in self._accumulator.seen().items()})
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise createPoptorchError(
                    f"Floating-point exception: {name} has a value that is infinite or not a number "
                    "(Precision.enableFloatingPointExceptions)."
                )

    def _micro_batch(
        self, slices: list[torch.Tensor], micro_batch: int, replica: int
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], torch.Tensor | None]:
        """The outputs of one micro-batch, anchored intermediate tensors by name, and in training its loss.

        Its gradients have been accumulated then.
        """
        program = self._program
        with torch.set_grad_enabled(self._optimizer is not None):
            values = self._state.values_of(replica)
            written_buffers = [values[name] for name in program.written_buffers]
            values.update(zip(program.inputs, slices, strict=True))
            for stage in program.stages:
                self._random.seek(self._counts.replica(replica), micro_batch, stage.index)
                with self.probe.forward(stage, values):
                    stage.run(values)
        outputs = [values[name] for name in program.outputs]
        watched = {name: values[value].detach() for name, value in program.watched.items()}
        loss = None
        if self._optimizer is not None:
            loss = values.pop(program.loss)
            del values
            self._differentiate(loss)
            for buffer in written_buffers:
                buffer.detach_()  # the next micro-batch must not differentiate through this one
        return outputs, watched, loss

    def _slices(self, leaves: list[torch.Tensor], position: int) -> list[torch.Tensor]:
        """The inputs of micro-batch `position`, on the device."""
        self.timings.input.append(self.timings.now())
        slices = [
            self._slice(leaf, position, name in self._program.written_inputs)
            for name, leaf in zip(self._program.inputs, leaves, strict=True)
        ]
        self.timings.input_complete.append(self.timings.now())
        return slices if self._anchors is None else self._anchors.inputs(slices)

    def _part(self, leaf: torch.Tensor, position: int) -> torch.Tensor:
        """Micro-batch `position` of an input: a view."""
        if not leaf.dim():
            return leaf.detach()
        size = leaf.shape[0] // self._counts.fed
        return leaf.narrow(0, position * size, size).detach()

    def _slice(self, leaf: torch.Tensor, position: int, written: bool) -> torch.Tensor:
        """Micro-batch `position` of an input, on the device; a view of the input where it is there already.

        Not where the program writes to it and other replicas read it, too.
        """
        part = self._part(leaf, position)
        copy = written and self._counts.input_group_size > 1
        return part.to(self._policy.device, self._policy.compute_dtype(part.dtype), non_blocking=True, copy=copy)

    def _write_inputs_back(self, leaves: list[torch.Tensor], position: int, values: dict[str, torch.Tensor]) -> None:
        for name, leaf in zip(self._program.inputs, leaves, strict=True):
            if name in self._program.written_inputs:
                self._write_back(leaf, position, values[name])

    def _write_back(self, leaf: torch.Tensor, position: int, changed: torch.Tensor) -> None:
        """What the program wrote to an input reaches the caller's tensor, if it is not in its memory already."""
        part = self._part(leaf, position)
        if part.data_ptr() != changed.data_ptr() or part.dtype != changed.dtype:
            part.copy_(changed.detach())
