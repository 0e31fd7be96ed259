"""The optimizers of recipes and sequence-length warm-up over several processes: the run of one, and resumed by one."""

import csv

import pytest
from test_processes import run_flags
from tiny_run import NO_DROPOUT, run_here, run_together, write_config, write_corpus

SCHEDULE = {"lr_warmup_steps": 1, "lr_decay_steps": 12, "sequence_warmup": "4 8", "sequence_warmup_steps": 2}
REPLICAS = {"optimizer": "AdamW8bit", "replicated_tensor_sharding": True, "early_stopping": 20, "eval_steps": 2}
PIPELINE = {
    "optimizer": "Adafactor",
    "replication_factor": 1,
    "layers_per_ipu": "1 1",
    "gradient_accumulation": 12,
    "gradient_clipping": 1.0,
}
CLIPPED = {**PIPELINE, "optimizer": "Adam", "gradient_clipping": None, "tensor_gradient_clipping": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model of test_processes: its token embedding and MLP are large enough for states to be shared out."""
    folder = tmp_path_factory.mktemp("recipes")
    write_config(folder, n_embd=64, **NO_DROPOUT)
    write_corpus(folder / "corpus.pkl", articles=26, length=40)
    return folder


def losses(save):
    with (save / "curves.csv").open(newline="") as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file) if row["loss"]}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(REPLICAS, id="replicas"),
        pytest.param(PIPELINE, id="pipeline", marks=pytest.mark.long),
        pytest.param(CLIPPED, id="clipped pipeline", marks=pytest.mark.long),
    ],
)
def test_two_processes_and_then_one_make_the_curve_of_one(folder, tmp_path, words):
    words = {**SCHEDULE, **words}
    alone, save = tmp_path / "alone", tmp_path / "two"
    expected = run_here(run_flags(folder, alone, training_steps=9, **words))
    assert expected.status == 0, expected.err
    run_together(2, run_flags(folder, save, training_steps=5, save_per_steps=3, **words))
    resumed = run_here([*run_flags(folder, save, training_steps=9, **words), "--resume", str(save / "step_3")])
    assert resumed.status == 0 and "3 of 9 steps are done" in resumed.out, resumed.err
    assert losses(save) == pytest.approx(losses(alone), rel=1e-4)
