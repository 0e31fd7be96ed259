"""The end of a process whose native threads are still at work for it (engine/processes/activity.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from launch import free_port

from poptorch.engine.processes.activity import wait_for_rest

PROGRAM = """
import os, time
import popdist
popdist.init()
import torch
import torch.distributed as dist

def at_work(future):
    until = time.monotonic() + 1
    while time.monotonic() < until:
        sum(range(10_000))
    os.write(1, b"let go")

rank = int(os.environ["RANK"])
if rank == 1:
    time.sleep(0.3)  # so that the collective of process 0 is under way when it says what follows it
done = dist.all_reduce(torch.ones(1), async_op=True).get_future()
if rank == 0:
    done.then(at_work)  # in gloo's thread
done.wait()
"""


def test_a_process_ends_behind_the_threads_of_its_collectives():
    """Python ended such a thread where it asked for the interpreter's lock, and with it the process by SIGABRT."""
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **variables, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert said[0].endswith("let go"), said


@pytest.mark.parametrize("patience, waited", [(10.0, True), (0.1, False)])
def test_a_thread_is_waited_for_until_it_sleeps(patience, waited):
    asleep, end = threading.Event(), threading.Event()

    def work() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("works")
        named.set()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            pass
        asleep.set()
        end.wait()

    named = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    named.wait()
    wait_for_rest("works", patience)
    found = asleep.is_set()
    end.set()
    thread.join()
    assert found == waited


def test_where_no_thread_has_the_name_nothing_is_waited_for():
    before = time.monotonic()
    wait_for_rest("works", 100.0)
    assert time.monotonic() - before < 1
