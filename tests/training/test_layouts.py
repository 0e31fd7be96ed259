"""Checkpoints of several processes: one set of files, which any number of them resumes."""

import csv
import shutil
import subprocess

import pytest
import torch
import warm_process
from test_processes import curve, run_flags, torchrun
from test_resume import assert_equal, contents
from tiny_run import NO_DROPOUT, ROOT, environment, run_here, run_together, saved_in, write_config, write_corpus

SCHEDULE = {"lr_warmup_steps": 1, "lr_decay_steps": 12}
SHARDED = {"replicated_tensor_sharding": True}
STAGES = {"layers_per_ipu": "1 1", "ipus_per_replica": 2, "replication_factor": 1, "gradient_accumulation": 12}


def make_folder(path, **config):
    """Model and corpus: 72 samples to train on, 6 calls of 12 an epoch. Weights of 8192 elements are shared out."""
    write_config(path, n_embd=64, **config)
    write_corpus(path / "corpus.pkl", articles=26, length=40)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("layouts"))


def norms(save):
    with (save / "curves.csv").open(newline="") as file:
        return [float(row["gradient_norm"]) for row in csv.DictReader(file) if row["gradient_norm"]]


def files(checkpoint):
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


@pytest.mark.parametrize(
    "layout",
    [pytest.param(SHARDED, marks=pytest.mark.long), STAGES],
    ids=["replicas that share the optimizer out", "stages"],
)
def test_the_same_layout_goes_on_bit_for_bit(folder, layout):
    """With dropout; what a run left of an earlier save goes.

    The norms of the gradients, which are read from the optimizer's states, are those of one process.
    """
    whole, cut, alone = (folder / f"{name}_{len(layout)}" for name in ("whole", "cut", "alone"))
    run_together(2, [*run_flags(folder, whole, **layout), "--log-gradient-norm"])
    assert run_here([*run_flags(folder, alone, epochs=1, **layout, **SCHEDULE), "--log-gradient-norm"]).status == 0
    assert len(norms(alone)) == 6 and norms(whole)[:6] == pytest.approx(norms(alone), rel=1e-3)
    cut.mkdir()
    shutil.copytree(str(whole / "epoch_0"), str(cut / "epoch_0"))
    (cut / ".step_9.new").mkdir()
    checkpoint = ["--pretrained-checkpoint", cut / "epoch_0", "--resume-training-from-checkpoint"]
    run_together(2, [*run_flags(folder, cut, **layout), *checkpoint])
    assert saved_in(cut) == {"epoch_0", "epoch_1"}
    expected, found = contents(whole / "epoch_1"), contents(cut / "epoch_1")
    assert found[:2] == expected[:2]
    assert_equal(found[2], expected[2])


LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(sys.argv.pop(1)),))
{warm_process.TORCHRUN[1]}
"""


def refused_there(argv, room):
    """Two processes, started from scratch, on disks where no file gets longer than `room` bytes."""
    command = ["-c", LIMITED, room, "--standalone", "--nproc-per-node", 2, ROOT / "train_gpt2.py", *argv]
    return warm_process.run(list(map(str, command)), environment())


@pytest.mark.parametrize("where", ["the temporary folder", pytest.param("the folder", marks=pytest.mark.long)])
def test_a_full_disk_is_told_once_and_leaves_nothing_half_written(folder, where):
    save = folder / where.replace(" ", "_")
    argv = run_flags(folder, save, epochs=1, save_per_epochs=None, save_per_steps=3, training_steps=3, **SHARDED)
    assert run_here(argv).status == 0
    state = torch.load(str(save / "step_3" / "training_state.pt"), weights_only=True)["optimizer"]
    room = sum(value.numel() * value.element_size() for value in state["ipu_state"].values())
    before = files(save / "step_3")
    done = refused_there([*argv, "--overwrite"], room // 2 if where == "the temporary folder" else room + 20_000)
    ours = [line for line in done.stderr.splitlines() if line.startswith("train_gpt2.py: ")]
    assert done.returncode == 1 and len(ours) == 1, done.stderr
    assert ours[0].startswith(f"train_gpt2.py: {save / 'step_3'}: not saved (")
    assert ("let TMPDIR name a folder on a larger disk" in ours[0]) == (where == "the temporary folder"), ours
    assert saved_in(save) == {"step_3", "curves-1.csv"} and files(save / "step_3") == before


KILLED_WHILE_SAVING = """
import os, signal, sys
import torch
import training.state
saves = []
def killed_in(save, rank):
    def in_the_midst(*arguments, **named):
        saves.append(None)
        if len(saves) < 3 or os.environ["TORCHELASTIC_RESTART_COUNT"] != "0" or os.environ["RANK"] != rank:
            return save(*arguments, **named)
        if rank == "0":
            arguments[1].write_bytes(b"PK, and no more")
        os.kill(os.getpid(), signal.SIGKILL)
    return in_the_midst
if sys.argv[1] == "0":
    torch.save = killed_in(torch.save, "0")
else:
    training.state.save = killed_in(training.state.save, "1")
import train_gpt2
sys.exit(train_gpt2.main(sys.argv[2:]))
"""


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_while_it_saves(folder, rank):
    """The first one while it writes, the other one while the first waits for its shards: on from the save before."""
    program, save = folder / "killed.py", folder / f"killed_{rank}"
    program.write_text(KILLED_WHILE_SAVING)
    steps = {"epochs": 1, "training_steps": 5, "save_per_epochs": 0, "save_per_steps": 1}
    words = run_flags(folder, save, **steps, **SHARDED, **SCHEDULE)
    command = [
        str(program) if word.endswith("train_gpt2.py") else word for word in torchrun(2, [], "--max-restarts", "1")
    ]
    done = subprocess.run(
        [*command, str(rank), *map(str, words)], capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert f"resuming from {save / 'step_2'}" in done.stdout, done.stdout + done.stderr
    assert saved_in(save) == {f"step_{step}" for step in range(1, 6)}, "nothing half-written is left"


CHAINS = {
    "4 replicas": ({"replication_factor": 4}, [(4, {}), (1, {}), (2, {}), (2, SHARDED), (4, SHARDED), (1, {})]),
    "2 replicas": (
        {"replication_factor": 2, "gradient_accumulation": 6, "layers_per_ipu": "0 2", "ipus_per_replica": 2},
        [(4, {}), (1, {}), (4, SHARDED), (2, {}), (2, SHARDED), (4, {})],
    ),
    "1 replica": (STAGES, [(2, {}), (1, {}), (2, {}), (1, {}), (2, {}), (2, {})]),
}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", list(CHAINS))
def test_from_layout_to_layout(tmp_path, name):
    """Two steps on each layout, every one from the checkpoint of the one before: the curve of one process."""
    make_folder(tmp_path, **NO_DROPOUT)
    alone, save = tmp_path / "alone", tmp_path / "save"
    fixed, chain = CHAINS[name]
    assert run_here(run_flags(tmp_path, alone, **fixed, **SCHEDULE)).status == 0
    for last, (processes, how) in zip(range(2, 13, 2), chain):
        argv = run_flags(tmp_path, save, save_per_epochs=0, training_steps=last, **{**fixed, **how}, **SCHEDULE)
        if processes > 1:
            run_together(processes, [*argv, "--resume", "latest"])
        else:
            assert run_here([*argv, "--resume", "latest"]).status == 0
        assert f"step_{last}" in saved_in(save)
    assert curve(save) == pytest.approx(curve(alone), rel=1e-5)
