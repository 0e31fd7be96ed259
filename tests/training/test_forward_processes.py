"""inference_gpt2.py under torchrun: its processes share replicas, or hold one together, and the first alone speaks."""

import pytest
import torch
from tiny_run import flags, run_together, together, write_config, write_corpus

from arguments import parse_train_args
from data.batches import SampleDataset
from training import forward_run, run

PROGRAM = {"program": "inference_gpt2.py"}
IMPATIENT = """
from command_line import checks
import inference_gpt2
checks._PATIENCE = 0.0
raise SystemExit(inference_gpt2.main())
"""


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
    program = folder / "impatient.py"  # the second process does not wait for the end of the first
    program.write_text(IMPATIENT)
    done = together(2, flags(folder, replication_factor=3, gradient_accumulation=1), program)
    assert done.status == 2 and "Traceback" not in done.err
    assert done.err.count("2 processes cannot share 3 replicas: start 1 or 3") == 2, done.err  # no launcher ends one


@pytest.mark.parametrize("program", [run.TrainingRun, forward_run.ForwardRun])
def test_of_a_replica_the_first_process_alone_reads_samples(folder, monkeypatch, program):
    """The others have calls of the same shapes, and as many."""
    write_corpus(folder / "corpus.pkl", articles=8, length=40)
    asked = {"train_path": folder / "corpus.pkl", "gradient_accumulation": 1, "batch_size": 2}
    made = program(parse_train_args(list(map(str, flags(folder, **asked)))))
    reads = []
    read = SampleDataset.__getitems__
    monkeypatch.setattr(SampleDataset, "__getitems__", lambda *words: reads.append(words) or read(*words))
    first = list(made.batches())
    assert len(reads) >= len(first) > 1
    for module in (run, forward_run):
        monkeypatch.setattr(module, "reads_samples", lambda: False)
    reads.clear()
    others = list(made.batches())
    assert reads == [] and len(others) == len(first)
    for batch, other in zip(first, others):
        pairs = [(batch, other)] if torch.is_tensor(batch) else zip(batch, other)
        assert all((here.shape, here.dtype) == (there.shape, there.dtype) for here, there in pairs)
