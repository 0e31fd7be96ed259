"""A replica of a variant over two processes: projections, a shared block and a head of its own are where they are."""

import pytest
from test_pipeline_processes import losses, pipeline_flags, same_weights
from test_variants_program import SYSTEMS, write_system
from tiny_run import NO_DROPOUT, run_here, run_together, write_corpus

SPLITS = {"algpt2": "0 2"}  # one block is on one IPU


@pytest.mark.parametrize(
    "name", [name if name == "algpt2" else pytest.param(name, marks=pytest.mark.long) for name in SYSTEMS]
)
def test_two_processes_train_what_one_does(tmp_path, name):
    write_corpus(tmp_path / "corpus.pkl", articles=72, length=40)
    folder = write_system(tmp_path, name, **NO_DROPOUT)
    split = {"layers_per_ipu": SPLITS.get(name, "1 1"), "training_steps": 4}
    alone, save = tmp_path / "alone", tmp_path / "two"
    expected = run_here(pipeline_flags(folder, alone, 1, **split))
    assert expected.status == 0, expected.err
    run_together(2, pipeline_flags(folder, save, 1, **{**split, "training_steps": 2}, save_per_steps=2))
    resumed = run_here([*pipeline_flags(folder, save, 1, **split), "--resume", "latest"])
    assert resumed.status == 0 and "2 of 4 steps are done" in resumed.out, resumed.err
    assert losses(save) == pytest.approx(losses(alone), rel=1e-4)
    same_weights(save / "epoch_0", alone / "epoch_0")
