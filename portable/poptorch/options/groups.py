"""The option groups reached through Options: Training, Distributed, Jit, Precision, _Popart.

Spec: options (section 13) and gradient reduction (section 5). What the engine reads is listed in executor_options.py;
TensorLocations has a file of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from .. import notices, popart_keys
from ..checks import require, require_positive_int
from ..enums import HalfFloatCastingBehavior, MeanReductionStrategy, ReductionType
from ..poptorch_core import createPoptorchError
from .base import Freezable, OptionsDict, option, to_plain


class PopartOptions(Freezable):
    """Options._Popart: PopART's session options by name. Checked only when a model is compiled (check_keys)."""

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, Any] = {}
        self._patterns: dict[str, bool] = {}
        self._patterns_level = 2
        self._keys_set: set[str] = set()  # by the program itself, not by a setter of Options

    @option
    def set(self, key: str, value: Any) -> PopartOptions:
        """Sets a PopART session option; an enum of `popart` or its integer value for an enumeration."""
        self._values[key] = value
        self._keys_set.add(key)

    @option
    def setEngineOptions(self, engine_options: dict[str, str]) -> PopartOptions:
        """Poplar engine options (profiling, debugging)."""
        self.store("engineOptions", dict(engine_options))

    @option
    def setPatterns(self, patterns: dict[str, bool], level: int = 2) -> PopartOptions:
        """Turns PopART's graph patterns on or off over a level (0 none, 1 minimal, 2 default, 3 all)."""
        self._patterns = dict(patterns)
        self._patterns_level = level

    def _entries(self) -> Iterator[tuple[str, Any]]:
        yield from super()._entries()
        yield from (("patterns", self._patterns), ("patterns_level", self._patterns_level))

    def store(self, key: str, value: Any) -> None:
        """Sets a key on behalf of a setter of Options."""
        self.checkIsFrozen(key)
        self._values[key] = value

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default` if it was not set."""
        return self._values.get(key, default)

    @property
    def keys_set(self) -> frozenset[str]:
        """The keys that the program set by name."""
        return frozenset(self._keys_set)

    def check_keys(self) -> None:
        """Raises poptorch.Error naming every unknown key and every value of the wrong type."""
        problems = []
        for key, value in self._values.items():
            kind = popart_keys.TYPES.get(key)
            if kind is None:
                problems.append(f"unknown option {key!r}")
            elif not popart_keys.fits(kind, value):
                problems.append(f"option {key!r} expects a value of type {kind}, got {value!r}")
        if problems:
            raise createPoptorchError("Options()._Popart: " + "; ".join(problems))

    def toDict(self) -> dict[str, Any]:
        """The session options as plain data, with patterns and patterns_level."""
        plain = {key: to_plain(value) for key, value in self._values.items()}
        return {**plain, "patterns": dict(self._patterns), "patterns_level": self._patterns_level}


class TrainingOptions(OptionsDict):
    """Options.Training."""

    def __init__(self, popart: PopartOptions) -> None:
        super().__init__(
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=MeanReductionStrategy.Post,
        )
        self._popart = popart

    @option
    def gradientAccumulation(self, gradient_accumulation: int) -> TrainingOptions:
        """Micro-batches per optimizer step. AssertionError unless an int > 0."""
        require_positive_int("gradient_accumulation", gradient_accumulation)
        self.set(gradient_accumulation=gradient_accumulation)

    @option
    def accumulationAndReplicationReductionType(self, reduction_type: ReductionType) -> TrainingOptions:
        """Mean or Sum of the gradients over micro-batches and replicas. ValueError for anything else."""
        if reduction_type not in (ReductionType.Mean, ReductionType.Sum):
            raise ValueError(
                "accumulationAndReplicationReductionType expects poptorch.ReductionType.Mean or Sum, "
                f"got {reduction_type!r}"
            )
        self.set(accumulation_and_replication_reduction_type=reduction_type)

    @option
    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: MeanReductionStrategy
    ) -> TrainingOptions:
        """Where the mean is divided; equal in exact arithmetic. AssertionError unless a MeanReductionStrategy."""
        self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)

    @option
    def setAutomaticLossScaling(self, enabled: bool) -> TrainingOptions:
        """Loss scaling that follows the gradients. AssertionError unless a bool."""
        require(isinstance(enabled, bool), f"setAutomaticLossScaling() expects a bool, got {enabled!r}")
        self._popart.store("automaticLossScalingSettings.enabled", enabled)

    @option
    def setConvolutionDithering(self, enabled: bool) -> TrainingOptions:
        """Spreads convolutions over tiles. AssertionError unless a bool."""
        require(isinstance(enabled, bool), f"setConvolutionDithering() expects a bool, got {enabled!r}")
        options = dict(self._popart.get("convolutionOptions", {}))
        options["enableConvolutionDithering"] = "true" if enabled else "false"
        self._popart.store("convolutionOptions", options)


class DistributedOptions(OptionsDict):
    """Options.Distributed: this process among the processes of one training run."""

    # Of this runtime: (part, parts). A replica may lie over several processes, of which this is one; numProcesses and
    # processId count replicas then. popdist.poptorch.Options says so, where there are more processes than replicas.
    _replica_part = (0, 1)

    def __init__(self) -> None:
        super().__init__(num_distributed_processes=1, distributed_process_id=0, ipuof_configs={})
        self._read_environment("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")

    @property
    def numProcesses(self) -> int:
        """How many processes there are."""
        return self._values["num_distributed_processes"]

    @property
    def processId(self) -> int:
        """The number of this process, from 0."""
        return self._values["distributed_process_id"]

    @option
    def configureProcessId(self, process_id: int, num_processes: int) -> DistributedOptions:
        """Says which process this is. AssertionError unless 0 <= process_id < num_processes."""
        require_positive_int("num_processes", num_processes)
        valid = isinstance(process_id, int) and not isinstance(process_id, bool) and 0 <= process_id < num_processes
        require(valid, f"process_id must be an integer from 0 to {num_processes - 1}, got {process_id!r}")
        self.set(num_distributed_processes=num_processes, distributed_process_id=process_id)

    @option
    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> DistributedOptions:
        """Reads both numbers from environment variables; those that are not set mean one process."""
        self._read_environment(var_num_processes, var_process_id)

    @option
    def disable(self) -> DistributedOptions:
        """One process, whatever the environment says."""
        self.set(num_distributed_processes=1, distributed_process_id=0)

    def _read_environment(self, var_num_processes: str, var_process_id: str) -> None:
        count = _int_variable(var_num_processes, 1)
        index = _int_variable(var_process_id, 0)
        if not 0 <= index < count:
            raise ValueError(
                f"{var_process_id}={index} and {var_num_processes}={count} are no process id and number of processes: "
                "correct them, or unset both to run as one process"
            )
        self.set(num_distributed_processes=count, distributed_process_id=index)


def _int_variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"environment variable {name}={text!r} is not a whole number: correct or unset it") from None


class JitOptions(OptionsDict):
    """Options.Jit: the tracing front ends that PopTorch once offered."""

    @option
    def traceModel(self, trace_model: bool) -> JitOptions:
        """Accepts False only: torch.jit.trace as a front end no longer exists. ValueError for True."""
        require(isinstance(trace_model, bool), f"traceModel() expects a bool, got {trace_model!r}")
        if trace_model:
            raise ValueError("Jit.traceModel(True) is no longer supported: remove it, models are traced by dispatch")


class PrecisionOptions(OptionsDict):
    """Options.Precision."""

    def __init__(self, popart: PopartOptions) -> None:
        super().__init__(
            half_float_casting=HalfFloatCastingBehavior.Default,
            running_statistics_always_float=True,
        )
        self._popart = popart

    @property
    def stochastic_rounding(self) -> bool:
        """Whether half weights are rounded stochastically when updated."""
        return bool(self._popart.get("enableStochasticRounding", False))

    @property
    def floating_point_exceptions(self) -> bool:
        """Whether a run stops at overflow and invalid operations."""
        return bool(self._popart.get("enableFloatingPointChecks", False))

    @option
    def enableStochasticRounding(self, enabled: bool) -> PrecisionOptions:
        """Stochastic rounding of half values. AssertionError unless a bool."""
        require(isinstance(enabled, bool), f"enableStochasticRounding() expects a bool, got {enabled!r}")
        self._popart.store("enableStochasticRounding", enabled)

    @option
    def enableFloatingPointExceptions(self, enabled: bool) -> PrecisionOptions:
        """Stops at overflow and invalid operations. AssertionError unless a bool."""
        require(isinstance(enabled, bool), f"enableFloatingPointExceptions() expects a bool, got {enabled!r}")
        self._popart.store("enableFloatingPointChecks", enabled)

    @option
    def runningStatisticsAlwaysFloat(self, value: bool) -> PrecisionOptions:
        """Keeps the running statistics of normalisation layers in float32. AssertionError unless a bool."""
        self.set(running_statistics_always_float=value)

    @option
    def halfFloatCasting(self, half_float_casting: HalfFloatCastingBehavior) -> PrecisionOptions:
        """Deprecated: mixed operands follow torch's promotion whatever is given here."""
        self.set(half_float_casting=half_float_casting)
        notices.once("halfFloatCasting", "Precision.halfFloatCasting is deprecated and has no effect.")

    @option
    def setPartialsType(self, dtype: torch.dtype) -> PrecisionOptions:
        """Type in which products are accumulated: torch.float16 or torch.float32. ValueError for others."""
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"Precision.setPartialsType expects torch.float16 or torch.float32, got {dtype!r}")
        name = "half" if dtype == torch.float16 else "float"
        self._popart.store("partialsTypeMatMuls", name)
        options = dict(self._popart.get("convolutionOptions", {}))
        self._popart.store("convolutionOptions", {**options, "partialsType": name})
