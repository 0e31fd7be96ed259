"""Where processes meet that a launcher starts again, with a store that has what the earlier ones wrote."""

from __future__ import annotations

import os
import time
import types
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from launch import free_port, together

import popdist
import poptorch
from poptorch.engine.processes import group
from poptorch.engine.processes.layout import Layout


def met(counts: str) -> float:
    """The sum over all of rank + 1; each believes in a number of restarts of its own, as torchrun's agents do."""
    rank = int(os.environ["RANK"])
    os.environ["TORCHELASTIC_RESTART_COUNT"] = counts[rank]
    time.sleep(0.3 * (rank == 0))  # the others find the name of the start before
    popdist.init()
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, rank + 1)
    return sum(told)


def test_started_again_with_the_store_of_before():
    port = free_port()
    server = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(port)}
    assert together(3, met, "000", **agent) == [6, 6, 6]
    assert together(2, met, "01", **agent) == [3, 3], "fewer, one of whose launchers has counted a restart"
    assert together(3, met, "012", **agent) == [6, 6, 6]
    assert server.num_keys() > 0


def alone() -> str:
    with pytest.raises(Exception, match="cannot meet the others") as caught:
        popdist.init()
    return str(caught.value)


def test_who_has_not_come_is_named():
    server = dist.TCPStore("127.0.0.1", port := free_port(), is_master=True, wait_for_workers=False)
    server.add("init/", 3)  # torch counts those who came to an earlier start, too
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(port), "POPTORCH_PORTABLE_TIMEOUT": "1"}
    (text,) = together(1, alone, WORLD_SIZE="3", **agent)
    assert "process 0 of 3 cannot meet the others at 127.0.0.1:" in text and "(process 1, 2 has not come)" in text


def test_nobody_answers_at_the_address():
    begun = time.monotonic()
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "POPTORCH_PORTABLE_TIMEOUT": "1"}
    (text,) = together(1, alone, WORLD_SIZE="3", RANK="1", **agent)
    assert "process 1 of 3 cannot meet the others at 127.0.0.1:" in text and "start all of them" in text
    assert timedelta(seconds=time.monotonic() - begun) < timedelta(minutes=5)  # torch's own patience


def with_gpus(*names: tuple[str, str]) -> list[str]:
    """What a process is told whose GPU has that name, as far as torch knows: for each pair of names."""
    rank, told = int(os.environ["RANK"]), []
    popdist.init()
    for pair in names:
        torch.cuda.get_device_properties = lambda device, pair=pair: types.SimpleNamespace(uuid=pair[rank])
        try:
            group.check_gpus(torch.device("cuda", 0), Layout(rank, 2))
            told.append("")
        except poptorch.Error as error:
            told.append(str(error))
    return told


def test_processes_that_would_share_a_gpu_are_named():
    """On a machine with fewer GPUs than processes, or under POPTORCH_PORTABLE_DEVICE=cuda:0."""
    for told in together(2, with_gpus, ("GPU-1", "GPU-1"), ("GPU-1", "GPU-2")):
        assert "processes 0 and 1 have the same GPU" in told[0] and "POPTORCH_PORTABLE_DEVICE=cpu" in told[0]
        assert told[1] == ""
