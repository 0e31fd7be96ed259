"""What processes of a run tell each other (model/ranks.py)."""

import json
import os

import pytest
from launch import free_port
from tiny_run import environment
from warm_process import PipedProcess

from model import ranks

PROGRAM = """
import json, sys
from model import ranks
found = {"means": ranks.means([ranks.launched()[0], 1.5]), "votes": [ranks.agree(False), ranks.agree(ranks.is_first())]}
with ranks.first_before_others(), open(sys.argv[1], "a") as file:
    file.write(str(ranks.launched()[0]))
try:
    with ranks.first_before_others():
        if ranks.is_first():
            raise KeyError("the first fails")
except KeyError:
    found["failed"] = True
for unreadable in (0, 1):
    try:
        with ranks.first_before_others():
            if ranks.launched()[0] == unreadable:
                raise ValueError("no corpus", "no checkpoint")
    except ValueError as error:
        found.setdefault("problems", []).append(error.args)
facts = {"--seed": 1, "--learning-rate": 0.1 * (1 + ranks.launched()[0])}
ranks.check_same({"--seed": 1})
try:
    ranks.check_same(facts)
except ValueError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


def together(processes, path):
    variables = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        PipedProcess(["-c", PROGRAM, str(path)], {**environment(), **variables, "RANK": str(rank)})
        for rank in range(processes)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert not any(process.returncode for process in started), ended
    return [json.loads(out) for out, _ in ended]


def test_two_processes(tmp_path):
    told = together(2, tmp_path / "order")
    assert (tmp_path / "order").read_text() == "01"
    assert [found.get("failed") for found in told] == [True, None], "the second is not left waiting"
    first, second = ["no corpus", "no checkpoint"], ["process 1: no corpus", "process 1: no checkpoint"]
    assert [found["problems"] for found in told] == [[first, second]] * 2, "all are told what one cannot read"
    for found in told:
        assert found["means"] == [0.5, 1.5] and found["votes"] == [False, True]
        assert found["error"].startswith("--learning-rate: process 1 has 0.2, process 0 0.1; start all processes with")


def test_alone_nothing_is_sent(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert "MASTER_ADDR" not in os.environ
    assert ranks.means([2.0]) == [2.0] and ranks.agree(True) and not ranks.agree(False) and ranks.is_first()
    ranks.check_same({"--seed": 1})
    with ranks.first_before_others():
        pass


def test_a_process_that_nobody_meets_is_told(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("POPTORCH_PORTABLE_TIMEOUT", "1")
    with pytest.raises(RuntimeError, match="(?s)cannot exchange their results.*HINT: start them with torchrun"):
        ranks.agree(True)
