"""train_gpt2.py under torchrun: several processes share the replicas of one, and what happens when one of them dies."""

import contextlib
import csv
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import poptorch
import psutil
import pytest
import safetensors.torch
import torch
import warm_process
from launch import free_port
from tiny_run import (
    NO_DROPOUT,
    ROOT,
    environment,
    flags,
    run_here,
    run_together,
    saved_in,
    write_config,
    write_corpus,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model and corpus: 78 samples, of which 72 are trained on, 6 calls of 12 an epoch.

    Some of its weights have the 8192 elements from which on optimizer states are shared out.
    """
    folder = tmp_path_factory.mktemp("processes")
    write_config(folder, n_embd=64, **NO_DROPOUT)
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


def torchrun(processes, argv, *launcher, meeting=("--standalone",)):
    command = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(processes)]
    return [*command, *launcher, str(ROOT / "train_gpt2.py"), *map(str, argv)]


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
    assert done.out.count("step 1 of epoch 0") == 1 and "x replicas 4 = 12 samples" in done.out
    assert done.err.count("no effect off-IPU") == 1, "one process speaks"
    assert saved_in(save) == {"epoch_0"}
    resumed = run_here([*run_flags(folder, save, **schedule), "--resume", "latest"])
    assert resumed.status == 0 and "6 of 12 steps are done" in resumed.out, resumed.err
    assert curve(save) == pytest.approx(alone, rel=1e-5)


def test_processes_pass_over_a_damaged_checkpoint_together(folder, alone):
    """One of them compares the bytes; the other one follows it."""
    save = folder / "damaged"
    argv = run_flags(folder, save, save_per_steps=1, save_per_epochs=0)
    schedule = ["--lr-warmup-steps", "1", "--lr-decay-steps", "12"]
    assert run_here([*argv, "--training-steps", "4", *schedule]).status == 0
    state = save / "step_4" / "training_state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    done = run_together(2, [*argv, *schedule, "--resume", "latest"])
    assert done.out.count("passed over step_4") == 1 and f"resuming from {save / 'step_3'}:" in done.out
    assert curve(save) == pytest.approx(alone, rel=1e-5)


def test_two_processes_of_poprun(folder, alone):
    """Which says by the variables of Open MPI who they are, and how many replicas there are in place of the flag."""
    save = folder / "poprun"
    schedule = {"lr_warmup_steps": 1, "lr_decay_steps": 12}
    argv = run_flags(folder, save, replication_factor=1, epochs=1, save_per_epochs=None, **schedule)
    common = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    common.update(MASTER_PORT=str(free_port()), POPDIST_NUM_TOTAL_REPLICAS="4", POPDIST_NUM_LOCAL_REPLICAS="2")
    processes = []
    for rank in ("0", "1"):
        own = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        words = [ROOT / "train_gpt2.py", *argv]
        processes.append(warm_process.PipedProcess(words, {**environment(), **common, **own}))
    (out, errors), (other, _) = [process.communicate(300) for process in processes]
    assert [process.wait() for process in processes] == [0, 0], errors
    assert "4 replicas in all, as the launcher says" in out and other == ""
    found = {key: value for key, value in curve(save).items() if key[0] == "loss"}
    assert found == pytest.approx({key: alone[key] for key in found}, rel=1e-5) and len(found) == 6


@pytest.mark.long
def test_four_processes_resume_what_one_began(folder, alone):
    save, schedule = folder / "four", {"lr_warmup_steps": 1, "lr_decay_steps": 12}
    assert run_here(run_flags(folder, save, epochs=1, **schedule)).status == 0
    run_together(4, [*run_flags(folder, save, **schedule), "--resume", "latest"])
    assert curve(save) == pytest.approx(alone, rel=1e-5)


def workers(launcher):
    """The processes that a launcher has started, by rank."""
    found = {}
    for process in psutil.Process(launcher.pid).children():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("rank "):  # forked_program.py names them
                found[int(process.name().split()[1])] = process
    return found


def started(argv, processes, log, *launcher, meeting=("--standalone",), **variables):
    """torchrun and its processes, all of which begin with everything imported."""
    words = [*warm_process.TORCHRUN, *meeting, "--nproc-per-node", processes, *launcher]
    words += [*warm_process.FORKED, ROOT / "train_gpt2.py", *argv]
    with log.open("w") as out, open(os.devnull) as nothing:
        streams = nothing.fileno(), out.fileno(), out.fileno()
        return warm_process.WarmProcess(words, *streams, {**environment(), **variables}, str(ROOT))


def wait_for(log, pattern, launcher):
    wait_for_any([log], pattern, [launcher])


def wait_for_any(logs, pattern, launchers):
    """Number of the log that says it first."""
    while True:
        for number, (log, launcher) in enumerate(zip(logs, launchers)):
            if re.search(pattern, log.read_text(), re.MULTILINE):
                return number
            assert launcher.poll() is None, log.read_text()
        time.sleep(0.05)


def listens(port):
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_to_torchrun_leaves_one_checkpoint_and_no_process(folder, number):
    save, log = folder / f"ended_{number.name}", folder / f"ended_{number.name}.log"
    launcher = started(run_flags(folder, save, epochs=5000, save_per_epochs=None), 2, log)
    wait_for(log, r"^step 3 ", launcher)
    left = workers(launcher)
    assert sorted(left) == [0, 1]
    launcher.send_signal(number)
    assert launcher.wait(timeout=100) != 0
    psutil.wait_procs(left.values(), timeout=10)
    assert not any(process.is_running() for process in left.values())
    text = log.read_text()
    (name,) = saved_in(save)
    assert text.count("Stopped after step") == 1 and f"the last checkpoint is {save / name}, lost: nothing" in text
    assert "-m torch.distributed.run --standalone --nproc-per-node 2 " in text.split("To go on:\n")[1]
    said = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert text.count(f"{said}: the run ends after the current call") == 1
    safetensors.torch.load_file(str(save / name / "model.safetensors"))


def killed_at(folder, name, rank, pattern, pause=0.0, **layout):
    """A run of 12 steps and a checkpoint after each in two processes, of which one is killed. Its log and folder.

    Without a pause that is while the next checkpoint is written.
    """
    save, log = folder / name, folder / f"{name}.log"
    saves = {"save_per_epochs": None, "save_per_steps": 1, "keep_checkpoints": 2, "num_workers": 0}
    argv = run_flags(folder, save, **saves, **layout)
    launcher = started(argv, 2, log, "--max-restarts", "1")
    wait_for(log, pattern, launcher)
    processes = workers(launcher)
    while pause is None and not any(path.name.endswith(".new") for path in save.iterdir()):
        assert launcher.poll() is None, log.read_text()
    time.sleep(pause or 0.0)
    for process in [worker for number, worker in processes.items() if number == rank]:
        process.kill()
    assert launcher.wait(timeout=200) == 0, log.read_text()
    return log.read_text(), save


def test_a_killed_process_is_started_again_and_the_run_goes_on(folder, alone):
    text, save = killed_at(folder, "killed", 1, r"^saved .*step_4$")
    assert "resuming from" in text and "step_12" in saved_in(save)
    assert curve(save) == pytest.approx(alone, rel=1e-5)


def test_a_run_that_was_killed_before_its_last_validation_makes_up_for_it(folder, alone):
    """The last checkpoint is there, the held-out loss behind it is not: nor is --keep-best's then."""
    save = folder / "unvalidated"
    argv = run_flags(folder, save, keep_best="")
    assert run_here(argv).status == 0
    rows = (save / "curves.csv").read_text().splitlines(keepends=True)
    assert rows[-1].startswith("12,,")
    (save / "curves.csv").write_text("".join(rows[:-1]))
    before = saved_in(save)
    best = torch.load(str(save / "best" / "training_state.pt"))
    shutil.rmtree(save / "best")
    again = run_here([*argv, "--resume", "latest"])
    assert again.status == 0 and "validation after step 12" in again.out and "done already" not in again.out
    assert saved_in(save) == before and curve(save) == pytest.approx(alone, rel=1e-5)
    made_up = torch.load(str(save / "best" / "training_state.pt"))
    assert made_up.pop("held_out_loss") == pytest.approx(best.pop("held_out_loss"), rel=1e-6)
    assert made_up["optimizer"].pop("ipu_numerics") == best["optimizer"].pop("ipu_numerics")
    torch.testing.assert_close(made_up["optimizer"], best["optimizer"], rtol=0, atol=0)
    assert made_up["position"] == best["position"] and torch.equal(made_up["rng_state"], best["rng_state"])
    assert "done already" in run_here([*argv, "--resume", "latest"]).out


def test_a_process_that_hangs_ends_the_run(folder):
    """It is named once, by a process that does not, and nothing is left."""
    save, log = folder / "hangs", folder / "hangs.log"
    launcher = started(run_flags(folder, save, epochs=5000), 2, log, POPTORCH_PORTABLE_HEARTBEAT="3")
    wait_for(log, r"^step 3 ", launcher)
    left = workers(launcher)
    left[1].suspend()
    assert launcher.wait(timeout=100) == 1
    psutil.wait_procs(left.values(), timeout=10)
    assert not any(process.is_running() for process in left.values())
    text = log.read_text()
    named = (
        rf"process 1 of 2 (replicas 2 to 3; host {socket.gethostname()}, pid {left[1].pid}) has given no sign of life"
    )
    assert sum(named in line for line in text.splitlines() if "[ERROR]" in line) == 1, text
    assert text.count("train_gpt2.py: ") == 1 and text.count("Stopped after step") == 1, text


@pytest.mark.long
def test_processes_end_with_their_launcher(folder):
    save, log = folder / "orphans", folder / "orphans.log"
    launcher = started(run_flags(folder, save, epochs=5000), 2, log, POPTORCH_PORTABLE_HEARTBEAT="3")
    wait_for(log, r"^step 3 ", launcher)
    left = workers(launcher)
    launcher.kill()
    launcher.wait()
    gone, alive = psutil.wait_procs(left.values(), timeout=100)
    assert not alive and "the launcher does not answer any more" in log.read_text()


def by_hand(argvs, folders, **variables):
    """Each process with flags and a folder of its own, as on machines of their own. Status and errors of the first."""
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **variables}
    first, *others = [
        warm_process.PipedProcess(
            argv if argv[0] == "-c" else [ROOT / "train_gpt2.py", *argv],
            {**environment(), **where, "RANK": str(rank)},
            str(here),
        )
        for rank, (argv, here) in enumerate(zip(argvs, folders))
    ]
    _, errors = first.communicate(timeout=200)
    for process in others:  # torchrun would end them
        process.kill()
        process.communicate(timeout=200)
    return first.returncode, errors


@pytest.fixture
def machines(folder, tmp_path):
    """Two folders with a corpus each, and the flags of a run there."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for there in folders:
        there.mkdir()
        write_corpus(there / "corpus.pkl", articles=26, length=40)
    return folders, run_flags(folder, tmp_path / "save", train_path="corpus.pkl", epochs=1)


def test_data_that_one_process_cannot_read(machines, tmp_path):
    folders, argv = machines
    (folders[1] / "corpus.pkl").write_bytes(b"no corpus")
    status, errors = by_hand([argv, argv], folders)
    assert status == 2 and errors.startswith("train_gpt2.py: 1 problem, nothing was started or written\n"), errors
    assert errors.count("process 1: ") == 1 and "corpus.pkl" in errors and not (tmp_path / "save").exists(), errors


OTHER_VERSION = """
import sys
import poptorch
import train_gpt2
poptorch.__version__ = "3.3.0"
sys.exit(train_gpt2.main(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.parametrize("what", ["data", "flags", "checkpoint", "resumed", "version"])
def test_a_process_with_something_else_is_named(machines, what):
    folders, argv = machines
    other, named = argv, "--train-path: process 1 has "
    if what == "data":
        write_corpus(folders[1] / "corpus.pkl", articles=26, length=44)
    elif what == "flags":
        other, named = [*argv, "--seed", "5"], "--seed: process 1 has 5, process 0 1234"
    elif what == "checkpoint":  # of one name, and other weights
        for seed, there in enumerate(folders):
            begun = ["--save-model-path", there, "--train-path", "generated", "--seed", seed, "--training-steps", 1]
            assert run_here(list(map(str, [*argv, *begun]))).status == 0
        argv = other = [*argv, "--pretrained-checkpoint", "step_1"]
        named = "process 1 has another weight "
    elif what == "resumed":
        run = [*argv, "--train-path", "generated", "--lr-warmup-steps", "1", "--lr-decay-steps", "12"]
        for there in folders:
            begun = ["--save-model-path", str(there), "--save-per-steps", "1", "--training-steps", "2"]
            assert run_here([*run, *begun]).status == 0
        argv, other = ([*run, "--resume", f"step_{step}"] for step in (2, 1))
        named = "the checkpoint to resume: process 1 has step_1, process 0 step_2;"
    else:
        other = ["-c", OTHER_VERSION, *argv]
        named = f"poptorch: process 1 has 3.3.0, process 0 {poptorch.__version__};"
    status, errors = by_hand([argv, other], folders)
    assert status == 2 and errors.count(named) == 1 and "Traceback" not in errors, errors


def test_processes_that_do_not_meet(machines):
    folders, argv = machines
    status, errors = by_hand([argv], folders[:1], POPTORCH_PORTABLE_TIMEOUT="1")
    assert status == 1 and errors.startswith("train_gpt2.py: process 0 of 2 cannot meet the others at 127.0.0.1:")
    assert errors.count("HINT: ") == 1 and "Traceback" not in errors, errors


@pytest.mark.long
def test_a_disk_that_is_full_while_the_first_process_saves(folder):
    save, log = folder / "full", folder / "full.log"
    command = torchrun(2, run_flags(folder, save, save_per_steps=2, epochs=1))
    with log.open("w") as out:  # no file may have more than 32 blocks of 1,024 bytes
        done = subprocess.run(
            ["bash", "-c", 'ulimit -f 32; exec "$@"', "-", *command], stdout=out, stderr=out, env=environment()
        )
    text = log.read_text()
    assert done.returncode == 1 and text.count("train_gpt2.py: ") == 1 and "Stopped after step 2" in text, text
    assert f"{save / 'step_2'}: not saved (" in text and saved_in(save) == set(), text


@pytest.mark.long
def test_one_machine_of_two_goes_and_the_other_goes_on(folder, alone):
    """Two launchers with a process each; one is killed with its own: the other starts again as one of one."""
    save, port = folder / "elastic", free_port()
    where = (
        "--nnodes",
        "1:2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"127.0.0.1:{port}",
        "--rdzv-id",
        "elastic",
    )
    where += ("--rdzv-conf", "last_call_timeout=10", "--max-restarts", "3")
    argv = run_flags(folder, save, save_per_epochs=None, save_per_steps=1, num_workers=0, epochs=40)
    argv += ["--lr-warmup-steps", "1", "--lr-decay-steps", "12"]
    logs = [folder / f"elastic_{number}.log" for number in range(2)]
    stays = started(argv, 1, logs[0], *where, meeting=())
    while not listens(port):  # it keeps what launchers tell each other
        time.sleep(0.1)
    goes = started(argv, 1, logs[1], *where, meeting=())
    wait_for_any(logs, r"^saved .*step_4$", [stays, goes])
    for process in [*workers(goes).values(), psutil.Process(goes.pid)]:
        process.kill()
    goes.wait()
    wait_for(logs[0], r"^resuming from (.|\n)*^step 14 ", stays)
    stays.send_signal(signal.SIGTERM)
    stays.wait(timeout=100)
    first = {key: value for key, value in curve(save).items() if key[1] <= 6 and key[0] == "loss"}
    assert first == pytest.approx({key: alone[key] for key in first}, rel=1e-5) and len(first) == 6


@pytest.mark.long
@pytest.mark.parametrize("number", range(30))
def test_killed_at_any_moment(folder, alone, number):
    """From the start of the processes to the last checkpoint; some while one is written, every third in a pipeline."""
    moments = random.Random(number)
    writing = number % 5 == 1
    pattern = f"^saved .*step_{moments.randrange(1, 9 if writing else 12)}$" if number % 5 else "^batch"
    pause = None if writing else moments.random() * 0.5
    layout = {} if number % 3 else {"replication_factor": 1, "layers_per_ipu": "1 1", "gradient_accumulation": 12}
    _, save = killed_at(folder, f"moment_{number}", moments.randrange(2), pattern, pause, **layout)
    assert {name for name in saved_in(save) if name.startswith(".")} == set(), "no part of a checkpoint is left"
    assert "step_12" in saved_in(save)
    assert curve(save) == pytest.approx(alone, rel=1e-5)
