"""inference_gpt2.py under torchrun: its processes share replicas, or hold one together, and the first alone speaks."""

import pytest
from tiny_run import flags, run_together, together, write_config

PROGRAM = {"program": "inference_gpt2.py"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forward")
    write_config(folder, n_layer=2)
    return folder


@pytest.mark.parametrize(
    "changes, samples",
    [({"replication_factor": 2}, 6), ({"layers_per_ipu": "1 1"}, 3)],
    ids=["two replicas", "one replica"],
)
def test_two_processes_do_what_one_does(folder, changes, samples):
    argv = flags(folder, device_iterations=3, gradient_accumulation=1, training_steps=2, **changes)
    done = run_together(2, argv, **PROGRAM)
    assert f"= {samples} sequences a step" in done.out
    assert done.out.count("seq/s, Latency: ") == 2 and done.out.count("2 steps, ") == 1, done.out


def test_processes_that_do_not_fit_are_told_what_does(folder):
    done = together(2, flags(folder, replication_factor=3, gradient_accumulation=1), **PROGRAM)
    assert done.status == 2 and "Traceback" not in done.err
    assert done.err.count("2 processes cannot share 3 replicas: start 1 or 3") == 2, done.err  # no launcher ends one
