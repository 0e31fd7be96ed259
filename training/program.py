"""The training program on the device: compiled for calls of one length at a time, and run."""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from typing import Iterator

import poptorch
import torch

from command_line.checks import BadFlags
from model import ranks
from model.pretraining import PretrainingModel
from training.label_counts import Call
from training.memory import is_out_of_memory
from training.rule_optimizer import RuleOptimizer
from training.sharing import alone


class TrainingProgram:
    """Model and optimizer in an executor, which another one takes the place of when calls become longer.

    Attributes:
        executor: the one that has the weights now.
        length: tokens of a sample that it is compiled for; None: it is not yet.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        model: PretrainingModel,
        options: poptorch.Options,
        optimizer: torch.optim.Optimizer,
        rng_state: list[int] | None,
    ) -> None:
        """`rng_state`: of the checkpoint of a resumed run. Raises BadFlags for what the runtime refuses."""
        self._args, self._model, self._options, self._optimizer = args, model, options, optimizer
        self._rng_state = rng_state
        self.length: int | None = None
        self.executor = self._make_executor()

    def _make_executor(self) -> poptorch.PoplarExecutor:
        with self._refusals("these flags or its environment variables"):
            return poptorch.trainingModel(self._model, self._options, self._optimizer)

    @property
    def rng_state(self) -> list[int] | None:
        """Of the random numbers on the device; None: they have not begun."""
        return self.executor.rng_state if self.executor.isCompiled() else self._rng_state

    def is_compiled_for(self, call: Call) -> bool:
        """Whether there is a program for samples of that length."""
        return self.executor.isCompiled() and call.input_ids.shape[1] == self.length

    def compile(self, call: Call) -> None:
        """Compile for such a call, in place of a program for another length.

        Weights, optimizer and random numbers go on: where they were, or as the checkpoint of a resumed run has them.
        """
        if self.executor.isCompiled():
            self._rng_state = self.executor.rng_state
            self.executor.destroy()  # weights and the optimizer's state come to the host
            self.executor = self._make_executor()
        self.trace(call)
        self.length = call.input_ids.shape[1]
        if self._rng_state is not None:
            self.executor.rng_state = self._rng_state

    def trace(self, call: Call) -> None:
        """Trace the model and check its stages. Raises BadFlags for what the runtime refuses."""
        with self._refusals("these flags"):  # numbers of IPUs, stages, options: all of them come from flags
            self.executor.compile(**call._asdict())

    @contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        """What the runtime refuses inside is told as BadFlags about `what`."""
        try:
            yield
        except poptorch.Error as error:
            if is_out_of_memory(error):
                raise
            raise BadFlags(f"the runtime refuses {what}: {error}") from error
        except AssertionError as error:  # PopTorch's answer to an optimizer that it does not have
            if not isinstance(self._optimizer, RuleOptimizer):
                raise
            flag = f"--optimizer {self._args.optimizer}"
            remedy = "one of AdamW, Adam, LAMB, LAMBNoBiasCorrection and SGD"
            if self._args.tensor_gradient_clipping is not None:
                flag += f" with --tensor-gradient-clipping {self._args.tensor_gradient_clipping:g}"
                remedy += ", without --tensor-gradient-clipping"
            raise BadFlags(
                f"{flag}: PopTorch has no such update on an IPU, it runs on a CPU or a GPU; use {remedy}"
            ) from error

    def step(self, call: Call) -> tuple[float, float]:
        """Runs a call: its loss in nats and its accuracy, means over the labels of all processes.

        Every process must call it. Raises RuntimeError where another process has gone.
        """
        try:
            losses, accuracies = self.executor(**call._asdict())
        except poptorch.Error as error:
            if alone() or is_out_of_memory(error):
                raise
            raise RuntimeError(
                f"{error.message}\nHINT: the process that ended first says why. Start all of them again with --resume "
                "latest"
            ) from error
        # Output mode Sum: a replica returns the sum over the micro-batches of all iterations and accumulation steps.
        micro_batches = self._args.device_iterations * self._args.gradient_accumulation
        loss, accuracy = ranks.means([float(out.float().mean()) / micro_batches for out in (losses, accuracies)])
        return loss, accuracy
