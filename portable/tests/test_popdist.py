"""popdist over torchrun's environment, and popdist.poptorch.Options (section 13)."""

from __future__ import annotations

import inspect
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import popdist
import popdist.poptorch
from poptorch.options.executor_options import Options

VARIABLES = ("RANK", "WORLD_SIZE", "POPDIST_NUM_LOCAL_REPLICAS", "POPDIST_NUM_IPUS_PER_REPLICA")
OTHER = ("POPDIST_NUM_TOTAL_REPLICAS", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "POPTORCH_DEFAULT_OPTIONS")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in VARIABLES + OTHER:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def second_of_three(monkeypatch):
    for name, value in zip(VARIABLES, "1342", strict=True):
        monkeypatch.setenv(name, value)


def test_one_process_without_a_launcher():
    popdist.init()
    assert popdist.isPopdistEnvSet() is False
    assert (popdist.getInstanceIndex(), popdist.getNumInstances()) == (0, 1)
    assert (popdist.getNumTotalReplicas(), popdist.getNumLocalReplicas(), popdist.getNumIpusPerReplica()) == (1, 1, 1)


def test_the_launchers_environment(second_of_three):
    assert popdist.isPopdistEnvSet() is True
    assert (popdist.getInstanceIndex(), popdist.getNumInstances()) == (1, 3)
    assert (popdist.getNumTotalReplicas(), popdist.getNumLocalReplicas(), popdist.getNumIpusPerReplica()) == (12, 4, 2)


def test_poprun_starts_processes_through_mpi(monkeypatch):
    environment = {"POPDIST_NUM_TOTAL_REPLICAS": "6", "POPDIST_NUM_LOCAL_REPLICAS": "2"}
    for name, value in {**environment, "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert popdist.isPopdistEnvSet() and (popdist.getInstanceIndex(), popdist.getNumInstances()) == (1, 3)
    assert (popdist.getNumTotalReplicas(), popdist.getNumLocalReplicas()) == (6, 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 40))
def test_any_number_of_processes_shares_the_replicas_or_is_told_what_does(processes, replicas):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WORLD_SIZE", processes), ("RANK", 0), ("POPDIST_NUM_TOTAL_REPLICAS", replicas)):
            patch.setenv(name, str(value))
        if replicas % processes == 0:
            assert (popdist.getNumLocalReplicas(), popdist.getNumInstances()) == (replicas // processes, processes)
            assert popdist.getReplicaPart() == (0, 1)
            return
        if processes % replicas == 0:
            assert (popdist.getNumLocalReplicas(), popdist.getNumInstances()) == (1, replicas)
            return
        with pytest.raises(ValueError, match=f"choose a multiple of {processes} replicas") as caught:
            popdist.init()
    told = re.search(r"start ([\d, or]+)", str(caught.value))[1]
    assert [int(number) for number in re.findall(r"\d+", told)] == [w for w in range(1, 41) if replicas % w == 0]


def test_processes_that_hold_a_replica_together(monkeypatch):
    for name, value in (("WORLD_SIZE", 8), ("POPDIST_NUM_TOTAL_REPLICAS", 2), ("POPDIST_NUM_IPUS_PER_REPLICA", 4)):
        monkeypatch.setenv(name, str(value))
    for rank in range(8):
        monkeypatch.setenv("RANK", str(rank))
        assert (popdist.getInstanceIndex(), popdist.getNumInstances()) == (rank // 4, 2)
        assert popdist.getReplicaPart() == (rank % 4, 4)
        distributed = popdist.poptorch.Options().clone().Distributed
        assert (distributed.processId, distributed.numProcesses) == (rank // 4, 2)
        assert distributed._replica_part == (rank % 4, 4)
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="6 processes cannot share 2 replicas of 4 IPUs: start 1, 2, 4 or 8,"):
        popdist.init()


def test_a_broken_environment_is_named(monkeypatch):
    for name, value in (("WORLD_SIZE", "0"), ("WORLD_SIZE", "two"), ("RANK", "-1"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=name):
            popdist.init()
        monkeypatch.delenv(name)


def test_execute_on_instances(second_of_three):
    def add(a: int, b: int) -> int:
        return a + b

    assert list(inspect.signature(popdist.execute_on_instances).parameters) == ["instances", "func", "args", "kwargs"]
    assert popdist.execute_on_instances({1}, add, 2, b=3) == 5
    assert popdist.execute_on_instances({0, 2}, add, 2, b=3) is None
    with pytest.raises(ValueError, match=r"no process \[3\]"):
        popdist.execute_on_instances({0, 3}, add, 1, 1)


def test_section13_options_come_from_the_run(second_of_three, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "9")
    options = popdist.poptorch.Options(ipus_per_replica=4)
    assert isinstance(options, Options) and options.ipus_per_replica == 4
    assert options.replication_factor == 4
    assert (options.Distributed.numProcesses, options.Distributed.processId) == (3, 1)
    assert popdist.poptorch.Options().ipus_per_replica == 2
    assert options.deviceIterations(3).clone().device_iterations == 3
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="ipus_per_replica"):
            popdist.poptorch.Options(ipus_per_replica=wrong)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("useIpuId", (0,)),
        ("replicationFactor", (1,)),
        ("Distributed.configureProcessId", (0, 1)),
        ("Distributed.setEnvVarNames", ("A", "B")),
        ("Distributed.disable", ()),
    ],
)
def test_section13_what_popdist_decides_cannot_be_set(name, arguments):
    for options in (popdist.poptorch.Options(), popdist.poptorch.Options().clone()):
        target = options
        for part in name.split("."):
            target = getattr(target, part)
        with pytest.raises(RuntimeError, match=f"^Cannot call `{name}` with popdist.poptorch.Options$"):
            target(*arguments)
