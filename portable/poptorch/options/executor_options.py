"""poptorch.Options: how a model is compiled and run. Spec: options (section 13), batches (2), outputs (3).

Setters carry PopTorch's names and return the object they belong to. Values are read under their stored names; what
the engine needs:
    options.device_iterations, .replication_factor, .input_group_size, .input_cgt, .input_batch_multiplier
    options.output_mode, .output_return_period, .anchored_tensors {short name: (long name, mode, period)}
    options.random_seed if options.exists("random_seed"); likewise model_name, use_model, ipu_id, ipu_version
    options.execution_strategy, .auto_round_num_ipus, .connection_type, .broadcast_buffers, .updatable_named_buffers
    options.show_progress_bar, .relax_optimizer_checks, .available_memory_proportion {ipu: proportion}
    options.Training.gradient_accumulation, .accumulation_and_replication_reduction_type,
        .meanAccumulationAndReplicationReductionStrategy
    options.Precision.stochastic_rounding, .running_statistics_always_float
    options.Distributed.numProcesses, .processId
An executor works on options.clone(), frozen, and calls validate() when it compiles.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import torch

from .. import notices, option_effects
from ..checks import require, require_positive_int
from ..enums import CommGroupType, OutputMode
from ..poptorch_core import createPoptorchError
from . import files as option_files
from .base import option
from .files import ConfigFileError
from .groups import DistributedOptions, JitOptions, PopartOptions, PrecisionOptions, TrainingOptions
from .placement import PlacementOptions
from .tensor_locations import TensorLocationOptions, TensorLocationSettings

__all__ = ["ConfigFileError", "Options", "TensorLocationSettings", "checked"]

# Values that only the Python side reads: not part of toDict().
_HOST_ONLY = {"module_namescope_enabled", "relax_optimizer_checks", "show_progress_bar", "source_location_excludes"}


class Options(PlacementOptions):
    """All options of a model. Defaults come from the environment variable POPTORCH_DEFAULT_OPTIONS if it is set:
    a JSON object (see from_json) or the path of a file (see loadFromFile).
    """

    def __init__(self) -> None:
        super().__init__(
            replication_factor=1,
            input_group_size=1,
            input_cgt=CommGroupType.Consecutive,
            broadcast_buffers=True,
            device_iterations=1,
            anchored_tensors={},
            output_mode=OutputMode.Default,
            output_return_period=1,
        )
        self._training = TrainingOptions(self._popart)
        self._distributed = DistributedOptions()
        self._jit = JitOptions()
        self._precision = PrecisionOptions(self._popart)
        self._tensor_locations = TensorLocationOptions()
        option_files.apply_defaults(self, os.environ.get("POPTORCH_DEFAULT_OPTIONS", ""))

    @property
    def Training(self) -> TrainingOptions:
        """Options specific to training."""
        return self._training

    @property
    def Distributed(self) -> DistributedOptions:
        """Options specific to running as several processes."""
        return self._distributed

    @property
    def Jit(self) -> JitOptions:
        """Options of the tracing front end."""
        return self._jit

    @property
    def Precision(self) -> PrecisionOptions:
        """Options of number formats and rounding."""
        return self._precision

    @property
    def TensorLocations(self) -> TensorLocationOptions:
        """Options of where tensors live."""
        return self._tensor_locations

    @property
    def _Popart(self) -> PopartOptions:
        return self._popart

    @property
    def updatable_named_buffers(self) -> list[str]:
        """Names of the buffers that copyNamedBuffersToDevice() may update."""
        return self._popart.get("updatableNamedBuffers", [])

    @property
    def input_batch_multiplier(self) -> int:
        """Micro-batches in one call's inputs: iterations x (replicas / input group size) x accumulation."""
        replica_groups = self.replication_factor // self.input_group_size
        return self.device_iterations * replica_groups * self.Training.gradient_accumulation

    # -- batches, replicas and outputs

    @option
    def deviceIterations(self, device_iterations: int) -> Options:
        """Iterations on the device in one call. AssertionError unless an int > 0."""
        require_positive_int("device_iterations", device_iterations)
        self.set(device_iterations=device_iterations)

    @option
    def replicationFactor(self, replication_factor: int) -> Options:
        """Copies of the model in this process. AssertionError unless an int > 0."""
        require_positive_int("replication_factor", replication_factor)
        self.set(replication_factor=replication_factor)

    @option
    def inputReplicaGrouping(self, input_group_size: int, input_group_type: CommGroupType) -> Options:
        """Gives the replicas of a group the same input. Call replicationFactor() first.

        Raises:
            ValueError: CommGroupType.All, or a size that does not divide the replication factor.
        """
        require_positive_int("input_group_size", input_group_size)
        require(
            isinstance(input_group_type, CommGroupType),
            f"input_group_type must be a poptorch.CommGroupType, got {input_group_type!r}",
        )
        _check_input_groups(input_group_size, input_group_type, self.replication_factor)
        self.set(input_group_size=input_group_size, input_cgt=input_group_type)

    @option
    def broadcastBuffers(self, broadcast_buffers: bool = True) -> Options:
        """Whether all replicas start from one set of buffers. AssertionError unless a bool."""
        self.set(broadcast_buffers=broadcast_buffers)

    @option
    def outputMode(self, output_mode: OutputMode, output_return_period: int | None = None) -> Options:
        """Which outputs a call returns; EveryN needs `output_return_period` (AssertionError otherwise)."""
        self.set(output_mode=output_mode, output_return_period=_return_period(output_mode, output_return_period))

    def defaultOutputMode(self) -> bool:
        """Whether the output mode is OutputMode.Default: Final in training, All in inference."""
        return self.output_mode is OutputMode.Default

    @option
    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: OutputMode | None = None,
        output_return_period: int | None = 1,
    ) -> Options:
        """Makes the tensor `long_name` readable with getAnchoredTensor(short_name).

        `output_mode` None means the output mode of these options.
        """
        mode = self.output_mode if output_mode is None else output_mode
        require(isinstance(mode, OutputMode), f"output_mode must be a poptorch.OutputMode, got {mode!r}")
        period = _return_period(mode, output_return_period) if mode is OutputMode.EveryN else 1
        self.set(anchored_tensors={**self.anchored_tensors, short_name: (long_name, mode, period)})

    @option
    def updatableNamedBuffers(self, buffers: list[str]) -> Options:
        """Buffers that copyNamedBuffersToDevice() may update, by name."""
        names = isinstance(buffers, list) and all(isinstance(name, str) for name in buffers)
        require(names, f"updatableNamedBuffers() expects a list of buffer names, got {buffers!r}")
        self._popart.store("updatableNamedBuffers", list(buffers))

    @option
    def randomSeed(self, random_seed: int) -> Options:
        """Seed of the device's random numbers; seeds torch on the host, too. AssertionError unless an int."""
        valid = isinstance(random_seed, int) and not isinstance(random_seed, bool)
        require(valid, f"random_seed must be an integer, got {random_seed!r}")
        torch.manual_seed(random_seed)
        self.createOrSet(random_seed=random_seed)

    @option
    def enableSyntheticData(self, enabled: bool | int) -> Options:
        """Random data instead of the program's: a bool, or a popart.SyntheticDataMode."""
        require(isinstance(enabled, int), f"enableSyntheticData() expects a bool, got {enabled!r}")
        random_normal = 2  # popart.SyntheticDataMode.RandomNormal
        mode = (random_normal if enabled else 0) if isinstance(enabled, bool) else int(enabled)
        self._popart.store("syntheticDataMode", mode)

    # -- reading, writing, checking

    def from_json(self, string: str) -> Options:
        """Calls setters by a JSON object such as {"deviceIterations": 4, "Precision.enableStochasticRounding": true}.

        Enums are written as strings, "poptorch.OutputMode.All"; several arguments as a list.
        Raises AttributeError for an unknown option, and what the setters raise.
        """
        return option_files.apply_json(self, string)

    def loadFromFile(self, filepath: str) -> Options:
        """Reads a file with one option a line, written as in Python without the object: `deviceIterations(4)`.

        Raises ConfigFileError quoting the line that is not an option or that the option refuses.
        """
        return option_files.apply_file(self, filepath)

    def resolve_output_mode(self, training: bool) -> None:
        """Makes OutputMode.Default what it means: Final in training, All in inference; an anchor's, that of outputs."""
        mode = self.output_mode
        if mode is OutputMode.Default:
            mode = OutputMode.Final if training else OutputMode.All
        anchors = {
            short: (long, mode, self.output_return_period) if wanted is OutputMode.Default else (long, wanted, period)
            for short, (long, wanted, period) in self.anchored_tensors.items()
        }
        self.set(output_mode=mode, anchored_tensors=anchors)

    def _entries(self) -> Iterator[tuple[str, Any]]:
        yield from super()._entries()
        yield "execution_strategy", self._execution_strategy
        for name in ("Training", "Distributed", "Jit", "Precision", "TensorLocations", "_Popart"):
            yield from ((f"{name}.{entry}", value) for entry, value in getattr(self, name)._entries())

    def clone(self) -> Options:
        """A copy, not frozen."""
        return copy.deepcopy(self)

    def toDict(self) -> dict[str, Any]:
        """All options but the Jit and Precision groups as one flat dictionary of plain data, enums as values."""
        merged = {name: value for name, value in super().toDict().items() if name not in _HOST_ONLY}
        groups = (self._training, self._distributed, self._tensor_locations, self._popart)
        for part in [group.toDict() for group in groups] + [self._execution_strategy.backendOptions()]:
            merged.update(part)
        return merged

    def validate(self) -> None:
        """The checks that need all options together; the executor calls it when it compiles.

        Raises:
            poptorch.Error: unknown PopART key or wrong type; one that this runtime refuses; EveryN with a
                period that does not divide the device iterations.
            ValueError: an input group size that does not divide the replication factor.
        """
        self._popart.check_keys()
        _check_input_groups(self.input_group_size, self.input_cgt, self.replication_factor)
        if self.output_mode is OutputMode.EveryN and self.device_iterations % self.output_return_period:
            raise createPoptorchError(
                f"OutputMode.EveryN: deviceIterations ({self.device_iterations}) must be a multiple of "
                f"output_return_period ({self.output_return_period})"
            )
        option_effects.refuse_keys(self)


def checked(options: Any) -> Options:
    """`options` itself. Raises poptorch.Error if it is anything but Options."""
    if not isinstance(options, Options):
        raise createPoptorchError(f"Invalid type: 'options' is of type {type(options)}, expected poptorch.Options")
    return options


def _return_period(mode: OutputMode, period: int | None) -> int:
    """The output return period to store: 1 unless the mode is EveryN. AssertionError if EveryN has none."""
    if mode is OutputMode.EveryN:
        require(period is not None, "OutputMode.EveryN needs an output_return_period")
        require_positive_int("output_return_period", period)
        return period
    if period is not None:
        notices.once("output_return_period", f"output_return_period is ignored with {mode}: it belongs to EveryN.")
    return 1


def _check_input_groups(size: int, kind: CommGroupType, replicas: int) -> None:
    """Raises ValueError unless groups of `size` replicas make up all `replicas`."""
    if kind is CommGroupType.All:
        raise ValueError("inputReplicaGrouping does not support CommGroupType.All: use Consecutive or Orthogonal")
    if kind is CommGroupType.NoGrouping and size != 1:
        raise ValueError(f"inputReplicaGrouping: CommGroupType.NoGrouping has groups of 1 replica, not {size}")
    if size > replicas or replicas % size:
        raise ValueError(
            f"inputReplicaGrouping: group size {size} must divide the replication factor {replicas}; "
            "call replicationFactor() first"
        )
