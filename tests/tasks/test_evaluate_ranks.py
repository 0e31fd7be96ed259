"""Several processes share an evaluation: counts and losses are those of one, whatever the batch."""

import json
import os

import pytest
import tiny_checkpoint
import warm_process
from test_evaluate_program import run


def test_two_processes_score_what_one_does(tmp_path):
    """Every protocol of WikiText and LAMBADA; the number of batches is odd, so that one process has one more.

    Then both hold the model together, a layer each.
    """
    tiny_checkpoint.write(tmp_path)
    common = ["--all", "--seq-length", "0", "--overlapping-eval", "7"]
    found = {}
    for name, words in {"one row": [1, 1, 1], "together": [2, 3, 2]}.items():
        flags = zip(("--batch-size", "--device-iterations", "--replication-factor"), map(str, words))
        path = tmp_path / f"{name}.json"
        status, _, err = run(tmp_path, *common, *(word for flag in flags for word in flag), "--json", path)
        assert status == 0, err
        found[name] = json.loads(path.read_text(encoding="utf-8"))["results"]
    stages = {"POPDIST_NUM_TOTAL_REPLICAS": "1"}, ["--layers-per-ipu", "1", "1", "--device-iterations", "2"]
    for name, (variables, more) in {"ranks": ({}, ["--device-iterations", "1"]), "stages": stages}.items():
        found[name] = by_two_processes(tmp_path, tmp_path / f"{name}.json", variables, [*common, *more])
    expected = found.pop("one row")
    assert len(expected) == 6
    for name, results in found.items():
        for result, other in zip(results, expected):
            assert result["complete"] and result["counts"] == other["counts"], name
            assert result["values"] == pytest.approx(other["values"], rel=1e-6), (name, result["protocol"])


def by_two_processes(tmp_path, path, variables, flags):
    command = [*warm_process.TORCHRUN, "--standalone", "--nproc-per-node", "2", *warm_process.FORKED]
    command += ["tasks/evaluate_wiki.py", *flags, "--batch-size", "2", "--json", str(path)]
    command += ["--pretrained-checkpoint", str(tmp_path / "checkpoint"), "--data-dir", str(tmp_path / "data")]
    done = warm_process.run(command, {**os.environ, "OMP_NUM_THREADS": "1", **variables})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("avg loss: ") == done.stdout.count("number correct: ") == 1, "one process prints"
    return json.loads(path.read_text(encoding="utf-8"))["results"]


def test_processes_that_cannot_reach_each_other_are_told(tmp_path):
    tiny_checkpoint.write(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": "0", "WORLD_SIZE": "2"}
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    command = ["tasks/evaluate_lambada.py", "--pretrained-checkpoint", str(tmp_path / "checkpoint")]
    command += ["--data-dir", str(tmp_path / "data"), "--seq-length", "0"]
    done = warm_process.run(command, environment)
    assert done.returncode == 1 and "MASTER_ADDR" in done.stderr and "HINT: start them with torchrun" in done.stderr
    assert "Traceback" not in done.stderr
