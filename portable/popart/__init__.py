"""The names of PopART that PopTorch programs use: real enumerations, and session classes that need the SDK.

Enumerations are ints, because programs hand `int(popart.X.Y)` to `Options._Popart.set`. Programs import it; it imports
poptorch's errors. Start below: there is one file.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NoReturn

from poptorch.poptorch_core import createPoptorchError


class AccumulateOuterFragmentSchedule(enum.IntEnum):
    """How the part of a step outside the accumulation loop is scheduled."""

    Scheduler = 0
    Serial = 1
    OverlapCycleOptimized = 2
    OverlapMemoryOptimized = 3


class BatchSerializationBatchSchedule(enum.IntEnum):
    """The order of the parts of a batch that is computed in parts."""

    Scheduler = 0
    Isomorphic = 1
    OverlapOnIo = 2
    OverlapOnCompute = 3


class RecomputationType(enum.IntEnum):
    """Which activations are computed again in the backward pass."""

    NoRecompute = 0
    Standard = 1
    NormOnly = 2
    Pipeline = 3
    RecomputeAll = 4


class ReplicatedTensorSharding(enum.IntEnum):
    """Whether a tensor is sharded over replicas."""

    Off = 0
    On = 1


class SubgraphCopyingStrategy(enum.IntEnum):
    """When the inputs and outputs of a subgraph are copied."""

    OnEnterAndExit = 0
    JustInTime = 1


class SyntheticDataMode(enum.IntEnum):
    """What replaces the program's data."""

    Off = 0
    Zeros = 1
    RandomNormal = 2
    RandomUniform = 3


class TensorStorage(enum.IntEnum):
    """Where a tensor is stored."""

    OnChip = 0
    OffChip = 1


class VirtualGraphMode(enum.IntEnum):
    """How operations are assigned to IPUs."""

    Off = 0
    Manual = 1
    Auto = 2
    ExecutionPhases = 3


@dataclass(frozen=True)
class AnchorReturnType:
    """Which values of an anchored tensor come back: "Final", "EveryN" (with a period), "All" or "Sum"."""

    name: str
    return_period: int | None = None

    def __post_init__(self) -> None:
        if self.name not in ("Final", "EveryN", "All", "Sum"):
            raise ValueError(f"AnchorReturnType {self.name!r} is not one of Final, EveryN, All, Sum")
        if (self.name == "EveryN") != (self.return_period is not None):
            raise ValueError("AnchorReturnType: EveryN, and only EveryN, takes a return period")


@dataclass(frozen=True)
class TensorLocation:
    """Storage and sharding of a tensor."""

    storage: TensorStorage = TensorStorage.OnChip
    replicated_tensor_sharding: ReplicatedTensorSharding = ReplicatedTensorSharding.Off


class _NeedsSdk:
    """A class that only the Poplar SDK's popart can provide."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _needs_sdk(type(self).__name__)


def _needs_sdk(name: str) -> NoReturn:
    raise createPoptorchError(
        f"popart.{name} needs the Poplar SDK: this popart only has the enumerations that PopTorch programs pass on. "
        "Run this program on a host with the SDK"
    )


class Builder(_NeedsSdk):
    """Builds a PopART graph."""


class DataFlow(_NeedsSdk):
    """What goes in and out of a PopART session."""


class DeviceInfo(_NeedsSdk):
    """An IPU device."""


class DeviceManager(_NeedsSdk):
    """Finds IPU devices."""


class InferenceSession(_NeedsSdk):
    """Runs a PopART graph."""


class PyStepIO(_NeedsSdk):
    """The arrays of one step of a PopART session."""


class SGD(_NeedsSdk):
    """PopART's own optimizer."""


class SessionOptions(_NeedsSdk):
    """Options of a PopART session."""


class TensorInfo(_NeedsSdk):
    """Type and shape of a PopART tensor."""


class TrainingSession(_NeedsSdk):
    """Trains a PopART graph."""


def versionString() -> str:
    """The version of the API."""
    return "3.4.0"
