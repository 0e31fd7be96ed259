"""Mistakes that all processes of a run make are told by the first; the others wait for its end."""

import os
from pathlib import Path

import pytest
import warm_process

from command_line import checks

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("train_gpt2.py", "text_generate_gpt2.py", "tasks/evaluate_wiki.py", "tasks/compare.py", "tasks/harness.py")


def test_the_others_wait_and_the_first_does_not(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(checks.time, "sleep", waited.append)
    for rank, waits in (("0", []), ("1", [checks._PATIENCE])):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        waited.clear()
        with pytest.raises(SystemExit):
            checks.refuse("program.py", ["--flag: wrong"])
        assert waited == waits and "--flag: wrong" in capsys.readouterr().err
    monkeypatch.delenv("RANK")
    waited.clear()
    with pytest.raises(SystemExit):
        checks.refuse("program.py", ["--flag: wrong"])
    assert waited == []


@pytest.mark.parametrize("rank, world", [("2", "2"), ("x", "2"), ("0", "0")])
def test_variables_that_make_no_sense_silence_nobody(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert checks.is_first_process()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_mistake_under_torchrun_is_told_once(program, tmp_path):
    command = [*warm_process.TORCHRUN, "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / program), "--batch-size", "none", "--no-such-flag"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "portable")}
    if program == "tasks/compare.py":
        command[-3:-3] = ["a", "b"]
    done = warm_process.run(command, environment, str(tmp_path))
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("  --batch-size")]
    assert len(told) == 1, done.stderr
    assert (
        f"{program}: " in done.stderr and "usage:" not in done.stderr and "--no-such-flag: unknown flag" in done.stderr
    )


def test_a_process_says_its_number_even_if_the_processes_do_not_fit(monkeypatch):
    """Three processes cannot share two replicas, which popdist refuses to count."""
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "3"), ("POPDIST_NUM_TOTAL_REPLICAS", "2")):
        monkeypatch.setenv(name, value)
    assert checks.speaker().startswith("process 1 of 3 on ")
