"""train_gpt2.py under torchrun: several processes share the replicas of one, and what happens when one of them dies."""

import csv
import random
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import safetensors.torch
from tiny_run import NO_DROPOUT, ROOT, environment, flags, run_here, saved_in, write_config, write_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model and corpus: 78 samples, of which 72 are trained on, 6 calls of 12 an epoch."""
    folder = tmp_path_factory.mktemp("processes")
    write_config(folder, **NO_DROPOUT)
    write_corpus(folder / "corpus.pkl", articles=26, length=40)
    return folder


def run_flags(folder, save, **changes):
    values = {
        "train_path": folder / "corpus.pkl",
        "stride": 16,
        "gradient_accumulation": 3,
        "replication_factor": 4,
        "epochs": 2,
        "lr_schedule": "cosine",
        "learning_rate": 0.001,
        "val_num": 6,
        "save_per_epochs": 1,
        "save_model_path": save,
    }
    return flags(folder, **{**values, **changes})


def torchrun(processes, argv, *launcher):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*command, *launcher, str(ROOT / "train_gpt2.py"), *map(str, argv)]


def run_together(processes, argv, *launcher):
    done = subprocess.run(
        torchrun(processes, argv, *launcher), capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


def curve(save):
    """Training loss and held-out loss by step. A resumed run validates once more, before its first step."""
    found = {}
    with (save / "curves.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name in ("loss", "validation_loss"):
                if row[name] and (name == "loss" or row["step"] in ("0", "6", "12")):
                    found[name, int(row["step"])] = float(row[name])
    return found


@pytest.fixture(scope="module")
def alone(folder):
    save = folder / "alone"
    assert run_here(run_flags(folder, save)).status == 0
    return curve(save)


def test_two_processes_and_then_one_make_the_curve_of_one(folder, alone):
    save = folder / "two"
    schedule = {"lr_warmup_steps": 1, "lr_decay_steps": 12}  # as --epochs 2 makes them
    argv = run_flags(folder, save, epochs=1, replicated_tensor_sharding=True, **schedule)
    done = run_together(2, argv)
    assert done.stdout.count("step 1 of epoch 0") == 1 and "x replicas 4 = 12 samples" in done.stdout
    assert done.stderr.count("no effect off-IPU") == 1, "one process speaks"
    assert saved_in(save) == {"epoch_0"}
    resumed = run_here([*run_flags(folder, save, **schedule), "--resume", "latest"])
    assert resumed.status == 0 and "6 of 12 steps are done" in resumed.out, resumed.err
    assert curve(save) == pytest.approx(alone, rel=1e-5)


@pytest.mark.long
def test_four_processes_resume_what_one_began(folder, alone):
    save, schedule = folder / "four", {"lr_warmup_steps": 1, "lr_decay_steps": 12}
    assert run_here(run_flags(folder, save, epochs=1, **schedule)).status == 0
    run_together(4, [*run_flags(folder, save, **schedule), "--resume", "latest"])
    assert curve(save) == pytest.approx(alone, rel=1e-5)


def workers(launcher):
    """The processes that a launcher has started, by rank."""
    found = {}
    for process in psutil.Process(launcher.pid).children(recursive=True):
        try:
            if any(word.endswith("train_gpt2.py") for word in process.cmdline()):
                found[int(process.environ()["RANK"])] = process
        except psutil.Error:
            continue
    return found


def started(argv, processes, log, *launcher):
    with log.open("w") as out:
        return subprocess.Popen(torchrun(processes, argv, *launcher), stdout=out, stderr=out, env=environment())


def wait_for(log, pattern, launcher):
    while not re.search(pattern, log.read_text(), re.MULTILINE):
        assert launcher.poll() is None, log.read_text()
        time.sleep(0.05)


def test_sigterm_leaves_one_checkpoint_and_no_process(folder):
    save, log = folder / "terminated", folder / "terminated.log"
    launcher = started(run_flags(folder, save, epochs=5000, save_per_epochs=None), 2, log)
    wait_for(log, r"^step 3 ", launcher)
    left = workers(launcher)
    assert sorted(left) == [0, 1]
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=100) != 0
    psutil.wait_procs(left.values(), timeout=10)
    assert not any(process.is_running() for process in left.values())
    text = log.read_text()
    (name,) = saved_in(save)
    assert text.count("Stopped after step") == 1 and f"the last checkpoint is {save / name}, lost: nothing" in text
    assert text.count("SIGTERM: the run ends after the current call") == 1
    safetensors.torch.load_file(str(save / name / "model.safetensors"))


def killed_at(folder, name, rank, pattern, pause=0.0):
    """A run of 12 steps and a checkpoint after each in two processes, of which one is killed. Its log and folder."""
    save, log = folder / name, folder / f"{name}.log"
    argv = run_flags(folder, save, save_per_epochs=None, save_per_steps=1, keep_checkpoints=2, num_workers=0)
    launcher = started(argv, 2, log, "--max-restarts", "1")
    wait_for(log, pattern, launcher)
    time.sleep(pause)
    for process in [worker for number, worker in workers(launcher).items() if number == rank]:
        process.kill()
    assert launcher.wait(timeout=200) == 0, log.read_text()
    return log.read_text(), save


def test_a_killed_process_is_started_again_and_the_run_goes_on(folder, alone):
    text, save = killed_at(folder, "killed", 1, r"^saved .*step_4$")
    assert "resuming from" in text and "step_12" in saved_in(save)
    assert curve(save) == pytest.approx(alone, rel=1e-5)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_at_any_moment(folder, alone):
    """Thirty moments, from the start of the processes to the last checkpoint."""
    moments = random.Random(0)
    for number in range(30):
        pattern = f"^saved .*step_{moments.randrange(1, 12)}$" if number % 5 else "^batch"
        name, rank = f"moment_{number}", moments.randrange(2)
        _, save = killed_at(folder, name, rank, pattern, pause=moments.random() * 0.5)
        assert "step_12" in saved_in(save)
        assert curve(save) == pytest.approx(alone, rel=1e-5)
