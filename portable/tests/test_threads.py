"""poptorch/openmp.py: processes that torchrun starts share the processors, unless OMP_NUM_THREADS was set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from poptorch import openmp

PROGRAM = "import os, sys; {}; print('threads', os.environ['OMP_NUM_THREADS'], torch.get_num_threads())"
IMPORTS = {"poptorch first": "import poptorch, torch", "torch first": "import torch, poptorch"}


def launched(program: str, processes: int, **variables: str) -> list[str]:
    """What processes print that torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    command += ["--nproc-per-node", str(processes), sys.executable, "-c", program]
    rest = {name: value for name, value in os.environ.items() if name != openmp.THREADS}
    done = subprocess.run(command, env={**rest, **variables}, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith("threads")]


@pytest.mark.long
@pytest.mark.parametrize("imports", list(IMPORTS))
def test_processes_share_the_processors(imports):
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert launched(PROGRAM.format(IMPORTS[imports]), 2) == [f"threads {share} {share}"] * 2


@pytest.mark.long
def test_what_the_environment_says_stays():
    program = PROGRAM.format(IMPORTS["poptorch first"])
    assert launched(program, 2, OMP_NUM_THREADS="1") == ["threads 1 1"] * 2


@pytest.fixture
def launched_by(monkeypatch):
    """Be one of four processes on a machine of eight processors, of a launcher with these variables."""
    launchers = []

    def launch(bound: int = 8, **variables: str) -> None:
        process = subprocess.Popen(["cat"], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        launchers.append(process)
        # Popen returns while the kernel still replaces the program: until it answers, its environment may read empty.
        process.stdin.write(b"?\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"?\n"
        launcher = process.pid
        monkeypatch.setattr(os, "getppid", lambda: launcher)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8 if pid == launcher else bound)))
        for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}.items():
            monkeypatch.setenv(name, value)

    yield launch
    for process in launchers:
        process.kill()
        process.communicate()


def test_the_share_of_a_process(launched_by, monkeypatch):
    launched_by(PATH="/bin")
    assert openmp.thread_share() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert openmp.thread_share() == 1, "more processes than processors"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert openmp.thread_share() is None, "not torchrun's process"


def test_a_process_that_is_bound_to_processors_has_them(launched_by):
    launched_by(bound=3, PATH="/bin")
    assert openmp.thread_share() == 3


def test_who_has_decided(launched_by, monkeypatch):
    launched_by(OMP_NUM_THREADS="1")
    assert openmp.thread_share() is None
    launched_by(PATH="/bin")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert openmp.thread_share() is None
