"""train_gpt2.py with the layers of a replica over several processes: the run of one process, in other places."""

import json

import pytest
import safetensors.torch
import warm_process
from test_processes import curve, run_flags
from tiny_run import NO_DROPOUT, ROOT, environment, run_here, run_together, saved_in, write_config, write_corpus

SCHEDULE = {"lr_warmup_steps": 1, "lr_decay_steps": 8}
NOTES_WHAT_IT_READS = """
import os
from pathlib import Path
from data.batches import SampleDataset
import train_gpt2

notes = Path(__file__).with_suffix("." + os.environ["RANK"]).open("w")
read = SampleDataset.__getitems__

def noted(samples, indices):
    print(*indices, file=notes, flush=True)
    return read(samples, indices)

SampleDataset.__getitems__ = noted
raise SystemExit(train_gpt2.main())
"""


def make_folder(path, layers, **config):
    """Model and corpus: 208 samples to train on, 4 calls of 52 an epoch for four replicas."""
    write_config(path, n_layer=layers, **config)
    write_corpus(path / "corpus.pkl", articles=72, length=40)
    return path


def pipeline_flags(folder, save, replicas, **changes):
    layers = json.loads((folder / "tiny.json").read_text())["n_layer"]
    values = {
        "layers_per_ipu": " ".join(["1"] * layers),
        "gradient_accumulation": 52 // replicas,
        "replication_factor": replicas,
        "val_num": 6,
        "training_steps": 8,
        "save_per_epochs": 1,
        **SCHEDULE,
    }
    return run_flags(folder, save, **{**values, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pipeline"), 2, **NO_DROPOUT)


def same_weights(found, expected):
    """By norm: the program keeps first moments in half, whose rounding a last bit of a sum turns.

    portable/tests/processes holds programs in float32 to 1e-5.
    """
    found, expected = (safetensors.torch.load_file(str(path / "model.safetensors")) for path in (found, expected))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference, norm = (found[name].float() - tensor.float()).norm(), tensor.float().norm()
        assert difference <= 0.02 * norm, (name, float(difference / norm))


def losses(save):
    """By step, training's and held-out. A resumed run validates once more, before its first step."""
    return {key: value for key, value in curve(save).items() if key[0] == "loss"}


def test_a_replica_over_two_processes_and_then_in_one(folder):
    alone, save = folder / "alone", folder / "two"
    assert run_here(pipeline_flags(folder, alone, 1)).status == 0
    done = run_together(2, pipeline_flags(folder, save, 1, training_steps=4, save_per_epochs=0))
    assert done.out.count("step 1 of epoch 0") == 1 and "x replicas 1 = 52 samples" in done.out
    assert done.err.count("no effect off-IPU") == 1, "one process speaks"
    assert saved_in(save) == {"step_4"}
    resumed = run_here([*pipeline_flags(folder, save, 1), "--resume", "latest"])
    assert resumed.status == 0 and "4 of 8 steps are done" in resumed.out, resumed.err
    assert losses(save) == pytest.approx(losses(alone), rel=1e-5)
    same_weights(save / "epoch_1", alone / "epoch_1")


def test_a_sample_is_read_once_for_a_replica(folder):
    """4 calls of 52 samples, and 6 held-out ones before the first, after the second and after the last."""
    program = folder / "noting.py"
    program.write_text(NOTES_WHAT_IT_READS)
    argv = pipeline_flags(folder, folder / "noted", 1, training_steps=4, save_per_epochs=0, eval_steps=2)
    done = run_together(2, argv, program=program)
    assert done.out.count("validation after step") == 3
    first, second = (program.with_suffix(f".{rank}").read_text().split() for rank in range(2))
    assert len(second) == 64 and second == first[:64], "each looks at 64 of them beforehand, for their largest id"
    assert len(first) - len(second) == 4 * 52 + 3 * 6


def test_processes_that_do_not_fit_are_told_what_does(folder):
    words = [ROOT / "train_gpt2.py", *pipeline_flags(folder, folder / "refused", 1)]
    done = warm_process.run(words, {**environment(), "RANK": "0", "WORLD_SIZE": "3"})
    (line,) = (line for line in done.stderr.splitlines() if "--replication-factor" in line)
    assert done.returncode == 2
    assert "3 processes cannot share 1 replica of 2 IPUs: start 1 or 2, or choose a multiple of 3 replicas" in line
    assert not (folder / "refused").exists()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_layout_has_the_curve_and_the_weights_of_one_process(tmp_path):
    """20 steps with (processes, replicas, flags): a replica over four, two over two each, four, and these sharded.

    Then a run that changes its layout at each resumption.
    """
    folder = make_folder(tmp_path, 4, **NO_DROPOUT)
    sharded = {"replicated_tensor_sharding": True}
    layouts = [(4, 1, {}), (4, 2, {}), (4, 2, sharded), (4, 4, {}), (4, 4, sharded), (2, 2, {})]
    steps = {"training_steps": 20, "epochs": 5, "lr_decay_steps": 20}
    one = {}
    for replicas in (1, 2, 4):
        one[replicas] = folder / f"one_{replicas}"
        assert run_here(pipeline_flags(folder, one[replicas], replicas, **steps)).status == 0
    for number, (processes, replicas, how) in enumerate(layouts):
        save = folder / f"layout_{number}"
        run_together(processes, pipeline_flags(folder, save, replicas, **steps, **how))
        assert losses(save) == pytest.approx(losses(one[replicas]), rel=1e-5), (processes, replicas, how)
        same_weights(save / "epoch_4", one[replicas] / "epoch_4")
    save = folder / "changing"
    for last, processes in ((5, 4), (10, 1), (15, 2), (20, 4)):
        argv = pipeline_flags(folder, save, 2, **{**steps, "training_steps": last, "save_per_epochs": 0})
        argv += ["--resume", "latest"]
        if processes > 1:
            run_together(processes, argv)
        else:
            assert run_here(argv).status == 0
    assert losses(save) == pytest.approx(losses(one[2]), rel=1e-5)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_layout_repeats_itself_bit_for_bit_with_dropout(tmp_path):
    folder = make_folder(tmp_path, 2)
    found = []
    for name in ("once", "again"):
        run_together(2, pipeline_flags(folder, folder / name, 1))
        found.append((losses(folder / name), (folder / name / "epoch_1" / "model.safetensors").read_bytes()))
    assert found[0] == found[1]
    assert run_here(pipeline_flags(folder, folder / "alone", 1)).status == 0
    assert losses(folder / "alone") == pytest.approx(found[0][0], rel=1e-4), "the streams are those of one process"
