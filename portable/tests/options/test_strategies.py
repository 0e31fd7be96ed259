"""Stages, phases and execution strategies (section 8)."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poptorch.enums import AutoStage, Liveness
from poptorch.options.strategies import (
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
)

STAGED = [PipelinedExecution, ShardedExecution]
PHASED = [ParallelPhasedExecution, SerialPhasedExecution]


def test_signatures():
    facts = {
        Stage: ["*block_ids"],
        Stage.ipu: ["self", "ipu"],
        Phase: ["*arg"],
        Phase.ipus: ["self", "*ipus"],
        Phase.stage: ["self", "idx"],
        PipelinedExecution: ["*args"],
        PipelinedExecution.backendOptions: ["self"],
        ParallelPhasedExecution.sendTensorsOffChipAfterFwd: ["self", "off_chip=True"],
        SerialPhasedExecution.setTensorsLiveness: ["self", "liveness"],
    }
    for target, expected in facts.items():
        found = inspect.signature(target).parameters.values()
        assert [str(p.replace(annotation=inspect.Parameter.empty)) for p in found] == expected
    assert isinstance(Stage.blocks, property)


@pytest.mark.parametrize("strategy", STAGED)
def test_auto_stages(strategy):
    assert strategy().auto_stage is AutoStage.SameAsIpu
    assert strategy(AutoStage.AutoIncrement).auto_stage is AutoStage.AutoIncrement
    assert strategy(AutoStage.AutoIncrement).stages == []
    with pytest.raises(AssertionError, match="cannot be combined"):
        strategy(AutoStage.AutoIncrement, "A")
    for wrong in (("A", 1), (None,), ("A", AutoStage.SameAsIpu), (Phase("A"),)):
        with pytest.raises(AssertionError, match="expects an AutoStage"):
            strategy(*wrong)


@pytest.mark.parametrize("strategy", STAGED)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    ipus=st.lists(st.one_of(st.none(), st.integers(0, 7)), min_size=5, max_size=5),
)
def test_section8_explicit_stages(strategy, sizes, ipus):
    names = [[f"{index}.{block}" for block in range(size)] for index, size in enumerate(sizes)]
    stages = []
    for blocks, ipu in zip(names, ipus, strict=False):
        stage = Stage(*blocks)
        stages.append(stage if ipu is None else stage.ipu(ipu))
    made = strategy(*stages)
    assert made.auto_stage is None
    assert made.stages == list(zip(names, ipus, strict=False))
    for index, blocks in enumerate(names):
        for block in blocks:
            assert made.lookup(block) == (index, ipus[index])
            assert made.stage(block) is stages[index] and made.stage(block).blocks == blocks


def test_section8_strings_are_stages_of_one_block():
    made = PipelinedExecution("A", Stage("B", "C").ipu(0), "D")
    assert made.stages == [(["A"], None), (["B", "C"], 0), (["D"], None)]


@pytest.mark.parametrize("strategy", STAGED + PHASED)
def test_section8_unknown_and_repeated_blocks(strategy):
    made = strategy("A", "B")
    with pytest.raises(AssertionError, match="^Unknown block X$"):
        made.stage("X")
    with pytest.raises(AssertionError, match=r"^Unknown Block 'X' list of expected Blocks: \['A', 'B'\]$"):
        made.lookup("X")
    for repeated in (("A", "B", "A"), (Stage("A", "B"), Stage("B")), (Stage("A", "A"),)):
        with pytest.raises(AssertionError, match="associated with more than one stage"):
            strategy(*repeated)


def test_stages_and_phases_are_made_of_names():
    for wrong in ((), (1,), (Stage("A"),)):
        with pytest.raises(AssertionError):
            Stage(*wrong)
    for wrong in ((), (1,), ("A", Stage("B"))):
        with pytest.raises(AssertionError):
            Phase(*wrong)
    with pytest.raises(AssertionError):
        Stage("A").ipu("0")
    phase = Phase(Stage("A"), Stage("B")).ipus(2, 4)
    assert [stage._ipu for stage in phase.stages] == [2, 4] and phase.stage(1).blocks == ["B"]
    assert len(Phase("A", "B").stages) == 1
    with pytest.raises(AssertionError, match="3 IPUs given for 2 stages"):
        phase.ipus(0, 1, 2)


@pytest.mark.parametrize("strategy", PHASED)
def test_section8_phased_strategies_need_explicit_phases(strategy):
    for wrong in ((), (AutoStage.SameAsIpu,), (1,)):
        with pytest.raises(AssertionError, match="explicit phases"):
            strategy(*wrong)
    made = strategy(Phase(Stage("A"), Stage("B")), [Stage("C"), Stage("D")], ["E", "F"], "G")
    assert made.auto_stage is None and made.kind == "phased"
    assert [len(made.phase(index).stages) for index in range(4)] == [2, 2, 1, 1]
    made.phase(1).ipus(5, 7)
    assert made.lookup("C")[1] == 5 and made.lookup("D")[1] == 7 and made.lookup("E")[1] is None
    for wrong in (4, -1, "0"):
        with pytest.raises(AssertionError, match="no phase"):
            made.phase(wrong)


def test_section8_ipus_of_phases_without_their_own():
    phases = [Phase(Stage("A"), Stage("B")), Phase(Stage("C"), Stage("D"))]
    assert [ParallelPhasedExecution(*phases).lookup(block)[0] for block in "ABCD"] == [0, 2, 1, 3]
    assert [SerialPhasedExecution(*phases).lookup(block)[0] for block in "ABCD"] == [0, 1, 0, 1]


def test_backend_options():
    assert PipelinedExecution("A").backendOptions() == {"execution_mode": 0}
    assert ShardedExecution("A").backendOptions() == {"execution_mode": 1}
    parallel = ParallelPhasedExecution("A").sendTensorsOffChipAfterFwd()
    serial = SerialPhasedExecution("A").setTensorsLiveness(Liveness.OffChipAfterEachPhase).useSeparateBackwardPhase()
    names = ("execution_mode", "serial_phases_execution", "separate_backward_phase", "tensors_liveness")
    assert parallel.backendOptions() == dict(zip(names, (2, False, False, 1), strict=True))
    assert serial.backendOptions() == dict(zip(names, (2, True, True, 3), strict=True))
    assert parallel.sendTensorsOffChipAfterFwd(False).backendOptions()["tensors_liveness"] == 0
    with pytest.raises(AssertionError):
        serial.setTensorsLiveness(3)
