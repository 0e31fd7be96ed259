"""Setters of Options about devices: which of them a model runs on, and how it is spread over them. Spec: section 13."""

from __future__ import annotations

from ..checks import require, require_positive_int
from ..enums import AutoStage, ConnectionType, SyncPattern
from .base import option
from .reporting import ReportingOptions
from .strategies import ExecutionStrategy, PipelinedExecution


class PlacementOptions(ReportingOptions):
    """The part of Options that says which devices there are and what goes where."""

    def __init__(self, **default_values: object) -> None:
        super().__init__(
            auto_round_num_ipus=False,
            connection_type=ConnectionType.Always,
            sync_pattern=SyncPattern.Full,
            available_memory_proportion={},
            **default_values,
        )
        self._execution_strategy: ExecutionStrategy = PipelinedExecution(AutoStage.SameAsIpu)

    @property
    def execution_strategy(self) -> ExecutionStrategy:
        """The strategy that assigns blocks to stages."""
        return self._execution_strategy

    @option
    def setExecutionStrategy(self, strategy: ExecutionStrategy | AutoStage) -> PlacementOptions:
        """How blocks become stages; an AutoStage means PipelinedExecution with it."""
        if isinstance(strategy, AutoStage):
            strategy = PipelinedExecution(strategy)
        require(
            isinstance(strategy, ExecutionStrategy),
            f"setExecutionStrategy() expects an execution strategy or a poptorch.AutoStage, got {strategy!r}",
        )
        self._execution_strategy = strategy

    @option
    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> PlacementOptions:
        """Whether to reserve the next power of two of IPUs. AssertionError unless a bool."""
        self.set(auto_round_num_ipus=auto_round_num_ipus)

    @option
    def setAvailableMemoryProportion(self, available_memory_proportion: dict[str, float]) -> PlacementOptions:
        """Share of each IPU's memory for temporaries, as {"IPU0": 0.2, ...}.

        AssertionError unless keys are "IPU<n>" and values from 0 to 1.
        """
        require(
            isinstance(available_memory_proportion, dict),
            f"setAvailableMemoryProportion() expects a dictionary, got {available_memory_proportion!r}",
        )
        proportions = {}
        for name, share in available_memory_proportion.items():
            valid = isinstance(name, str) and name.startswith("IPU") and name[3:].isdigit()
            require(valid, f'available_memory_proportion: {name!r} is no IPU, expected "IPU" and a number, as "IPU0"')
            fits = isinstance(share, (int, float)) and 0 <= share <= 1
            require(fits, f"available_memory_proportion of {name} must be from 0 to 1, got {share!r}")
            proportions[int(name[3:])] = float(share)
        self.set(available_memory_proportion=proportions)

    @option
    def connectionType(self, connection_type: ConnectionType) -> PlacementOptions:
        """When to attach to a device. AssertionError unless a ConnectionType."""
        self.set(connection_type=connection_type)

    @option
    def syncPattern(self, sync_pattern: SyncPattern) -> PlacementOptions:
        """How IPUs synchronise. AssertionError unless a SyncPattern."""
        self.set(sync_pattern=sync_pattern)

    @option
    def useIpuId(self, ipu_id: int) -> PlacementOptions:
        """The device to use, by number. AssertionError unless an int >= 0."""
        valid = isinstance(ipu_id, int) and not isinstance(ipu_id, bool) and ipu_id >= 0
        require(valid, f"ipu_id must be an integer of at least 0, got {ipu_id!r}")
        self.createOrSet(ipu_id=ipu_id)

    @option
    def useIpuModel(self, use_model: bool) -> PlacementOptions:
        """Simulate an IPU. AssertionError unless a bool."""
        require(isinstance(use_model, bool), f"useIpuModel() expects a bool, got {use_model!r}")
        self.createOrSet(use_model=use_model)

    @option
    def useOfflineIpuTarget(self, ipu_version: int = 2) -> PlacementOptions:
        """Compile without a device: implies ConnectionType.Never. AssertionError unless an int > 0."""
        require_positive_int("ipu_version", ipu_version)
        self.set(connection_type=ConnectionType.Never)
        self.createOrSet(ipu_version=ipu_version)
