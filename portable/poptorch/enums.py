"""Enumerations of the PopTorch API. Names and values are facts of the published API (3.4)."""

from __future__ import annotations

import enum


class AutoStage(enum.Enum):
    """How blocks without an explicit stage get one: the IPU's number, or the next number for each new block."""

    SameAsIpu = 0
    AutoIncrement = 1


class CommGroupType(enum.Enum):
    """How replicas form groups. Consecutive: 0,1 | 2,3. Orthogonal: 0,2 | 1,3."""

    All = 0
    Consecutive = 1
    Orthogonal = 2
    NoGrouping = 3


class ConnectionType(enum.Enum):
    """When to attach to a device: at once, at the first run, or never (compile only)."""

    Always = 0
    OnDemand = 1
    Never = 2


class DataLoaderMode(enum.Enum):
    """Where batches are put together: the calling process, another process, or by parts in worker processes."""

    Sync = 0
    Async = 1
    AsyncRebatched = 2


class HalfFloatCastingBehavior(enum.Enum):
    """Deprecated and without effect: mixed half and float operands follow torch's promotion."""

    FloatDowncastToHalf = 0
    HalfUpcastToFloat = 1
    Default = 2


class Liveness(enum.Enum):
    """When tensors are kept on chip under SerialPhasedExecution."""

    AlwaysLive = 0
    OffChipAfterFwd = 1
    OffChipAfterFwdNoOverlap = 2
    OffChipAfterEachPhase = 3


class MatMulSerializationMode(enum.Enum):
    """The dimension along which serializedMatMul cuts the product. Shapes: (M, K) x (K, N)."""

    InputChannels = "input_channels"  # M
    ReducingDim = "reducing_dim"  # K
    OutputChannels = "output_channels"  # N
    Disabled = "none"


class MeanReductionStrategy(enum.Enum):
    """Where a mean over micro-batches and replicas is divided: at each addition, or after the last one."""

    Running = 0
    Post = 1
    PostAndLoss = 2


class MultiConvPlanType(enum.Enum):
    """Whether the convolutions of a MultiConv run side by side."""

    Parallel = 0
    Serial = 1


class OutputMode(enum.Enum):
    """Which micro-batches' outputs come back from a call."""

    Final = 0
    EveryN = 1
    All = 2
    Sum = 3
    Default = 4  # Final in training, All in inference


class OverlapMode(enum.Enum):
    """What host transfers may overlap with."""

    NoOverlap = "no_overlap"
    OverlapAccumulationLoop = "overlap_accumulation_loop"
    OverlapDeviceIterationLoop = "overlap_device_iteration_loop"


class ReductionType(enum.Enum):
    """How values of several micro-batches or replicas become one."""

    Sum = 0
    Mean = 1
    NoReduction = 2


class SharingStrategy(enum.Enum):
    """How an asynchronous loader's process is started and shares its data."""

    SharedMemory = 0
    FileSystem = 1
    Fork = 2
    ForkServer = 3


class SyncPattern(enum.Enum):
    """How IPUs synchronise with one another."""

    Full = 0
    SinglePipeline = 1
    ReplicaAndLadder = 2


class VariableRetrievalMode(enum.Enum):
    """Which replicas' values of a grouped weight come back to the host."""

    OnePerGroup = 0
    AllReplicas = 2
