"""Where processes meet that a launcher starts again, with a store that has what the earlier ones wrote."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import pytest
import torch.distributed as dist
from launch import free_port, together

import popdist


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
