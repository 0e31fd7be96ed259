"""Which part of a run each process holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.layout import Layout, fitting_processes, is_first_of_machine


@pytest.mark.parametrize(
    ("processes", "replicas", "ipus", "ranks", "held", "of_ipus"),
    [
        (1, 4, 4, 1, 4, [0, 0, 0, 0]),  # one process: everything
        (2, 4, 4, 1, 2, [0, 0, 0, 0]),  # two replicas each
        (4, 4, 4, 1, 1, [0, 0, 0, 0]),
        (8, 4, 4, 2, 1, [0, 0, 1, 1]),  # half of a replica each
        (16, 4, 4, 4, 1, [0, 1, 2, 3]),  # an IPU each
        (1024, 16, 64, 64, 1, list(range(64))),
    ],
)
def test_what_a_rank_holds(processes, replicas, ipus, ranks, held, of_ipus):
    layout = Layout(processes, replicas, ipus)
    assert (layout.ranks_a_replica, layout.replicas_a_rank) == (ranks, held)
    assert [layout.rank(ipu) for ipu in range(ipus)] == of_ipus


def test_numbers_that_do_not_fit_are_refused_with_those_that_do():
    with pytest.raises(ValueError, match="3 processes cannot share 4 replicas of 6 IPUs; start 1, 2, 4, 8, 12 or 24$"):
        Layout(3, 4, 6)
    with pytest.raises(ValueError, match="2 processes cannot share 1 replica of 1 IPU; start 1$"):
        Layout(2, 1, 1)


@given(st.integers(1, 12), st.integers(1, 12))
def test_every_replica_is_held_once(replicas, ipus):
    for processes in fitting_processes(replicas, ipus):
        layout = Layout(processes, replicas, ipus)
        assert processes * layout.replicas_a_rank == replicas * layout.ranks_a_replica
        held = [layout.rank(ipu) for ipu in range(ipus)]
        assert held == sorted(held) and {held.count(rank) for rank in held} == {ipus // layout.ranks_a_replica}


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "4", "WORLD_SIZE": "8", "LOCAL_RANK": "0"}, True),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}, False),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}, True),  # told by nobody: each for itself
        ({"LOCAL_RANK": "1"}, True),  # of no launcher
    ],
)
def test_the_first_process_of_a_machine(monkeypatch, variables, first):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_of_machine() == first
