"""Execution strategies: which blocks form a stage, and on which IPU it runs. Spec: blocks and strategies (section 8).

Numerics are the same under all of them. For the engine:
    strategy.kind        "pipelined", "sharded" or "phased"
    strategy.auto_stage  an AutoStage, or None if the stages are explicit
    strategy.stages      explicit stages as (block ids, IPU or None), in order; empty under an AutoStage
    strategy.lookup(id)  (stage number, IPU or None) of a block of the explicit stages
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..checks import require
from ..enums import AutoStage, Liveness


class Stage:
    """Blocks that run one after the other on one IPU, named by their user ids."""

    def __init__(self, *block_ids: str) -> None:
        require(
            bool(block_ids) and all(isinstance(block, str) for block in block_ids),
            "A Stage is made of one or more block ids (strings)",
        )
        self._blocks = list(block_ids)
        self._ipu: int | None = None

    def __repr__(self) -> str:
        ipu = "" if self._ipu is None else f".ipu({self._ipu})"
        return f"Stage({', '.join(map(repr, self._blocks))}){ipu}"

    @property
    def blocks(self) -> list[str]:
        """The ids of its blocks."""
        return list(self._blocks)

    def ipu(self, ipu: int) -> Stage:
        """Puts the stage on an IPU, overriding that of its blocks. AssertionError unless `ipu` is an int."""
        require(isinstance(ipu, int) and not isinstance(ipu, bool), f"Stage.ipu() expects an int, got {ipu!r}")
        self._ipu = ipu
        return self


class Phase:
    """Stages that run side by side. Strings are the blocks of one stage: Phase("A", "B") is Phase(Stage("A", "B"))."""

    def __init__(self, *arg: Stage | str) -> None:
        strings = bool(arg) and all(isinstance(item, str) for item in arg)
        stages = bool(arg) and all(isinstance(item, Stage) for item in arg)
        require(strings or stages, "A Phase is made of one or more Stages, or of one or more block ids (strings)")
        self.stages: list[Stage] = [Stage(*arg)] if strings else list(arg)

    def __repr__(self) -> str:
        return f"Phase({', '.join(map(repr, self.stages))})"

    def stage(self, idx: int) -> Stage:
        """Its stage number `idx`."""
        return self.stages[idx]

    def ipus(self, *ipus: int) -> Phase:
        """Puts each stage on an IPU. AssertionError unless there is one for each."""
        require(len(ipus) == len(self.stages), f"Phase.ipus(): {len(ipus)} IPUs given for {len(self.stages)} stages")
        for stage, ipu in zip(self.stages, ipus, strict=True):
            stage.ipu(ipu)
        return self


class ExecutionStrategy:
    """What all strategies share: explicit stages, or an AutoStage, and the look-up of blocks."""

    kind = ""

    def __init__(self, stages: Sequence[Stage], auto_stage: AutoStage | None = None) -> None:
        self.auto_stage = auto_stage
        self._stages = list(stages)
        self._index: dict[str, int] = {}  # block id -> position in _stages
        for index, stage in enumerate(self._stages):
            for block in stage.blocks:
                require(block not in self._index, f"{block} associated with more than one stage")
                self._index[block] = index

    def __repr__(self) -> str:
        auto = self.auto_stage
        return (
            f"{type(self).__name__}({', '.join(map(repr, self._stages)) if auto is None else f'AutoStage.{auto.name}'})"
        )

    @property
    def stages(self) -> list[tuple[list[str], int | None]]:
        """The explicit stages as (block ids, IPU or None)."""
        return [(stage.blocks, stage._ipu) for stage in self._stages]

    def _number(self, index: int) -> int:
        """The number that stands for the IPU of a stage that names none."""
        return index

    def stage(self, block_id: str) -> Stage:
        """The explicit stage of a block. AssertionError "Unknown block X" if there is none."""
        require(block_id in self._index, f"Unknown block {block_id}")
        return self._stages[self._index[block_id]]

    def lookup(self, block_id: str) -> tuple[int, int | None]:
        """(stage number, IPU or None if the stage names none) of a block met while tracing.

        A stage without an IPU runs on the one that its block names, else on the IPU with the stage's number.

        Raises:
            AssertionError: the explicit stages do not have that block.
        """
        expected = list(self._index)
        require(block_id in self._index, f"Unknown Block '{block_id}' list of expected Blocks: {expected}")
        index = self._index[block_id]
        return self._number(index), self._stages[index]._ipu

    def backendOptions(self) -> dict[str, Any]:
        """The strategy's entries in Options.toDict()."""
        raise NotImplementedError("a strategy is one of the subclasses")


class _StagedExecution(ExecutionStrategy):
    """Pipelined and sharded execution: one AutoStage, or stages and block ids, each id a stage of its own."""

    def __init__(self, *args: AutoStage | Stage | str) -> None:
        if not args or isinstance(args[0], AutoStage):
            require(len(args) <= 1, f"{type(self).__name__}: an AutoStage cannot be combined with other arguments")
            super().__init__([], args[0] if args else AutoStage.SameAsIpu)
            return
        for arg in args:
            require(
                isinstance(arg, (Stage, str)),
                f"{type(self).__name__} expects an AutoStage, or Stages and block ids (strings), got {arg!r}",
            )
        super().__init__([Stage(arg) if isinstance(arg, str) else arg for arg in args])


class PipelinedExecution(_StagedExecution):
    """Stages work on different micro-batches at the same time."""

    kind = "pipelined"

    def backendOptions(self) -> dict[str, Any]:
        """The strategy's entries in Options.toDict()."""
        return {"execution_mode": 0}


class ShardedExecution(_StagedExecution):
    """Stages take turns: one at a time is busy."""

    kind = "sharded"

    def backendOptions(self) -> dict[str, Any]:
        """The strategy's entries in Options.toDict()."""
        return {"execution_mode": 1}


class _PhasedExecution(ExecutionStrategy):
    """Explicit phases, executed one after the other. An argument is a Phase, a Stage, a block id, or a list of them."""

    kind = "phased"

    def __init__(self, *phases: Phase | Stage | str | Sequence[Stage | str]) -> None:
        name = type(self).__name__
        require(bool(phases), f"{name} needs explicit phases: one or more poptorch.Phase")
        self._phases = [self._as_phase(phase) for phase in phases]
        # (phase, position within it) of each entry of _stages
        self._positions = [(p, s) for p, phase in enumerate(self._phases) for s in range(len(phase.stages))]
        super().__init__([stage for phase in self._phases for stage in phase.stages])
        self._tensors_liveness = Liveness.AlwaysLive
        self._separate_backward_phase = False

    def __repr__(self) -> str:
        settings = (
            f"tensors_liveness={self._tensors_liveness.name}, separate_backward_phase={self._separate_backward_phase}"
        )
        return f"{type(self).__name__}({', '.join(map(repr, self._phases))}, {settings})"

    def _as_phase(self, phase: Any) -> Phase:
        if isinstance(phase, Phase):
            return phase
        require(
            isinstance(phase, (Stage, str, list, tuple)),
            f"{type(self).__name__} needs explicit phases (poptorch.Phase, or lists of stages or block ids), "
            f"got {phase!r}",
        )
        return Phase(*phase) if isinstance(phase, (list, tuple)) else Phase(phase)

    def phase(self, phase: int) -> Phase:
        """Phase number `phase`. AssertionError if there is no such phase."""
        valid = isinstance(phase, int) and 0 <= phase < len(self._phases)
        require(valid, f"There is no phase {phase!r}: this strategy has phases 0 to {len(self._phases) - 1}")
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> _PhasedExecution:
        """Gives the backward pass phases of its own, after the forward ones. No numeric effect."""
        require(isinstance(use, bool), f"useSeparateBackwardPhase() expects a bool, got {use!r}")
        self._separate_backward_phase = use
        return self

    def _backend_options(self, serial: bool) -> dict[str, Any]:
        return {
            "execution_mode": 2,
            "serial_phases_execution": serial,
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": self._tensors_liveness.value,
        }


class ParallelPhasedExecution(_PhasedExecution):
    """Even and odd phases alternate between two groups of IPUs."""

    def _number(self, index: int) -> int:
        phase, position = self._positions[index]
        return 2 * position + phase % 2  # even phases on IPUs 0, 2, ..., odd ones on 1, 3, ...

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> ParallelPhasedExecution:
        """Whether activations leave the chip between the forward and the backward pass. No numeric effect."""
        require(isinstance(off_chip, bool), f"sendTensorsOffChipAfterFwd() expects a bool, got {off_chip!r}")
        self._tensors_liveness = Liveness.OffChipAfterFwd if off_chip else Liveness.AlwaysLive
        return self

    def backendOptions(self) -> dict[str, Any]:
        """The strategy's entries in Options.toDict()."""
        return self._backend_options(serial=False)


class SerialPhasedExecution(_PhasedExecution):
    """All phases on the same group of IPUs."""

    def _number(self, index: int) -> int:
        return self._positions[index][1]

    def setTensorsLiveness(self, liveness: Liveness) -> SerialPhasedExecution:
        """When activations leave the chip. No numeric effect. AssertionError unless a poptorch.Liveness."""
        require(isinstance(liveness, Liveness), f"setTensorsLiveness() expects a poptorch.Liveness, got {liveness!r}")
        self._tensors_liveness = liveness
        return self

    def backendOptions(self) -> dict[str, Any]:
        """The strategy's entries in Options.toDict()."""
        return self._backend_options(serial=True)
