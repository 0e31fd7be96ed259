"""The names of popart that PopTorch programs use."""

from __future__ import annotations

import enum

import pytest

import popart
from poptorch.options.executor_options import Options
from poptorch.poptorch_core import Error

ENUM_MEMBERS = {
    "AccumulateOuterFragmentSchedule": ["OverlapMemoryOptimized"],
    "BatchSerializationBatchSchedule": ["Isomorphic"],
    "RecomputationType": ["Pipeline", "RecomputeAll", "Standard"],
    "ReplicatedTensorSharding": ["On"],
    "SubgraphCopyingStrategy": ["JustInTime"],
    "SyntheticDataMode": ["RandomNormal"],
    "TensorStorage": ["OffChip"],
    "VirtualGraphMode": ["Manual"],
}
SESSION_CLASSES = [
    "Builder",
    "DataFlow",
    "DeviceInfo",
    "DeviceManager",
    "InferenceSession",
    "PyStepIO",
    "SGD",
    "SessionOptions",
    "TensorInfo",
    "TrainingSession",
]


@pytest.mark.parametrize("name", sorted(ENUM_MEMBERS))
def test_enumerations_are_distinct_ints(name):
    kind = getattr(popart, name)
    assert issubclass(kind, enum.IntEnum)
    assert set(ENUM_MEMBERS[name]) <= set(kind.__members__)
    assert sorted(int(member) for member in kind) == list(range(len(kind)))


@pytest.mark.parametrize("name", SESSION_CLASSES)
def test_session_classes_need_the_sdk(name):
    with pytest.raises(Error, match=rf"popart\.{name} needs the Poplar SDK"):
        getattr(popart, name)("anything", option=1)


def test_members_and_their_numbers_are_options():
    for convert in (lambda member: member, int):
        options = Options()
        schedule = popart.AccumulateOuterFragmentSchedule.OverlapMemoryOptimized
        options._Popart.set("accumulateOuterFragmentSettings.schedule", convert(schedule))
        options._Popart.set("subgraphCopyingStrategy", convert(popart.SubgraphCopyingStrategy.JustInTime))
        options._Popart.set("autoRecomputation", convert(popart.RecomputationType.Pipeline))
        options._Popart.set("accumulateOuterFragmentSettings.excludedVirtualGraphs", ["0"])
        options.validate()
        assert options.toDict()["subgraphCopyingStrategy"] == 1


def test_synthetic_data_mode_is_accepted_by_the_option():
    options = Options().enableSyntheticData(popart.SyntheticDataMode.RandomNormal)
    assert options._Popart.get("syntheticDataMode") == Options().enableSyntheticData(True)._Popart.get(
        "syntheticDataMode"
    )
    options.validate()
    Options().enableSyntheticData(popart.SyntheticDataMode.Off).validate()


def test_values():
    assert popart.AnchorReturnType("EveryN", 4).return_period == 4
    for wrong in (("Some",), ("EveryN",), ("All", 2)):
        with pytest.raises(ValueError, match="AnchorReturnType"):
            popart.AnchorReturnType(*wrong)
    location = popart.TensorLocation(popart.TensorStorage.OffChip, popart.ReplicatedTensorSharding.On)
    assert location.storage is popart.TensorStorage.OffChip
    assert popart.versionString().startswith("3.4")
