"""One process, one device: the program over iterations x accumulation x replicas (spec sections 2 to 5).

The stages run in turn on each micro-batch; their order and inputs are data (Program.stages), so that another executor
may place them elsewhere. The trivial case, one stage and one micro-batch, takes the same path.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..device.policy import Policy
from ..enums import CommGroupType, OutputMode
from .gradients import GradientAccumulator
from .outputs import OutputCollector
from .probe import Probe
from .progress import CallProgress
from .stages import Program
from .state import DeviceState


@dataclasses.dataclass(frozen=True)
class Counts:
    """S, A, R and how replicas share inputs."""

    iterations: int
    accumulation: int
    replicas: int
    input_group_size: int = 1
    input_group_type: CommGroupType = CommGroupType.Consecutive

    @property
    def micro_batches(self) -> int:
        """Micro-batches computed in one call."""
        return self.iterations * self.accumulation * self.replicas

    @property
    def fed(self) -> int:
        """Micro-batches that the inputs of one call hold: groups of replicas share theirs."""
        return self.iterations * self.accumulation * (self.replicas // self.input_group_size)

    def position(self, s: int, a: int, r: int) -> int:
        """Where micro-batch (s, a, r) lies in the inputs: [S][A][R/g], the replica fastest."""
        groups = self.replicas // self.input_group_size
        consecutive = self.input_group_type is CommGroupType.Consecutive
        group = r // self.input_group_size if consecutive else r % groups
        return (s * self.accumulation + a) * groups + group


class Runner:
    """Runs a program, and for training updates the device's parameters once an iteration.

    Args:
        optimizer: the DeviceOptimizer, or None for inference.
        accumulator: its gradients, or None for inference.
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
        optimizer: Any = None,
        accumulator: GradientAccumulator | None = None,
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
        self._announced = False
        self._written_buffers = [state.values[name] for name in program.written_buffers]

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
        progress = CallProgress(counts.micro_batches, str(self._policy.device), self._announced)
        self._announced = True
        try:
            for s in range(counts.iterations):
                for a in range(counts.accumulation):
                    for r in range(counts.replicas):
                        self.probe.micro_batch(s, a * counts.replicas + r, counts.accumulation * counts.replicas)
                        collector.add(s, a, r, self._micro_batch(leaves, counts.position(s, a, r)))
                        progress.step()
                if self._optimizer is not None:
                    with self.probe.update():
                        self._optimizer.step(self._accumulator.gradients())
                        self._accumulator.clear()
                self.probe.iteration_done()
        finally:
            progress.close()
            if self._accumulator is not None:
                self._accumulator.clear()
        return collector.result()

    def _micro_batch(self, leaves: list[torch.Tensor], position: int) -> list[torch.Tensor]:
        program = self._program
        slices = [self._slice(leaf, position) for leaf in leaves]
        values = dict(self._state.values)
        values.update(zip(program.inputs, slices, strict=True))
        with torch.set_grad_enabled(self._optimizer is not None):
            for stage in program.stages:
                with self.probe.forward(stage, values):
                    stage.run(values)
        outputs = [values[name] for name in program.outputs]
        if self._optimizer is not None:
            loss = values.pop(program.loss)
            scale = self._optimizer.loss_scaling * self._accumulator.loss_factor
            del values
            if loss.requires_grad:  # not if every parameter is frozen
                # A loss that is no scalar is back-propagated as its sum.
                with self.probe.backward():
                    loss.backward(torch.full_like(loss, scale))
            self._accumulator.micro_batch_done()
            for buffer in self._written_buffers:
                buffer.detach_()  # the next micro-batch must not differentiate through this one
        for name, leaf, part in zip(program.inputs, leaves, slices, strict=True):
            if name in program.written_inputs:
                self._write_back(leaf, position, part)
        return outputs

    def _part(self, leaf: torch.Tensor, position: int) -> torch.Tensor:
        """Micro-batch `position` of an input: a view."""
        if not leaf.dim():
            return leaf.detach()
        size = leaf.shape[0] // self._counts.fed
        return leaf.narrow(0, position * size, size).detach()

    def _slice(self, leaf: torch.Tensor, position: int) -> torch.Tensor:
        """Micro-batch `position` of an input, on the device; a view of the input where it is there already."""
        part = self._part(leaf, position)
        return part.to(self._policy.device, self._policy.compute_dtype(part.dtype), non_blocking=True)

    def _write_back(self, leaf: torch.Tensor, position: int, changed: torch.Tensor) -> None:
        """What the program wrote to an input reaches the caller's tensor, if it is not in its memory already."""
        part = self._part(leaf, position)
        if part.data_ptr() != changed.data_ptr() or part.dtype != changed.dtype:
            part.copy_(changed.detach())
