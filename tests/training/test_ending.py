"""Runs that a scheduler ends: SIGTERM, a second signal during a save, --time-limit."""

import json
import shlex
import signal
import sys
import time

import pytest
import torch
import warm_process
from tiny_run import ROOT, Running, environment, flags, run_here, saved_in, write_config, write_corpus

from training import time_limit
from training.run import TrainingRun
from training.time_limit import TimeLimit


@pytest.fixture
def folder(tmp_path):
    write_config(tmp_path)
    write_corpus(tmp_path / "corpus.pkl", articles=13, length=40)
    return tmp_path


def losses(out):
    return [line.split(", throughput")[0] for line in out.splitlines() if line.startswith("step ")]


def whole(checkpoint):
    state = torch.load(str(checkpoint / "training_state.pt"), weights_only=True)
    return state["position"]["step"]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["loader", "async"])
def test_sigterm_to_all_processes_ends_a_run_like_ctrl_c(folder, asynchronous):
    argv = flags(
        folder,
        train_path=folder / "corpus.pkl",
        stride=16,
        epochs=500,
        num_workers=2,
        save_model_path=folder / "save",
        save_per_epochs=0,
        async_dataloader=asynchronous,
    )
    running = Running(argv)
    running.wait_for(running.process.stdout, "step 7 ")
    running.interrupt(signal.SIGTERM)
    status, out, err = running.end(timeout=300)
    assert status == 143 and "Traceback" not in out + err, err
    assert "SIGTERM: the run ends after the current call" in err
    (name,) = saved_in(folder / "save")
    step = whole(folder / "save" / name)
    assert f"Stopped after step {step}; the last checkpoint is {folder / 'save' / name}, lost: nothing" in err
    end = json.loads((folder / "save" / "run.json").read_text())["end"]
    assert end["step"] == step and end["finished"] is False
    command = shlex.split(err.splitlines()[-1])
    assert command[:2] == [sys.executable, str(ROOT / "train_gpt2.py")]
    done = run_here([*command[2:], "--training-steps", str(step + 1)])
    assert done.status == 0 and f"step {step + 1} of epoch" in done.out, done.err


PROGRAMS = ["train_gpt2.py", "inference_gpt2.py"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_sigterm_while_starting_is_no_traceback(folder, program):
    running = Running(flags(folder), program, cold=True)
    running.wait_for(running.process.stdout, "batch 1")  # the first line, before torch is imported
    running.interrupt(signal.SIGTERM)
    status, out, err = running.end(timeout=300)
    assert status == 143 and "Traceback" not in err and "step " not in out


SIGNALLED_WHILE_SAVING = """
import os, signal, sys, torch
from command_line import interruption
interruption._SAME_TERMINATION = -1.0
save, calls = torch.save, []
def signalled(state, path):
    calls.append(path)
    if len(calls) == 3:
        for number in signals:
            os.kill(os.getpid(), number)
    save(state, path)
    if len(calls) == 3:
        os.kill(os.getpid(), signals[-1])
torch.save = signalled
signals = [signal.Signals(int(number)) for number in sys.argv.pop(1).split(",")]
import train_gpt2
sys.exit(train_gpt2.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("signals", [(15, 15), (2, 2), (15, 2)], ids=["SIGTERM", "Ctrl-C", "both"])
def test_a_second_signal_within_a_save_does_not_break_it(folder, signals):
    argv = flags(folder, epochs=20, save_per_steps=1, save_model_path=folder / "save")
    done = warm_process.run(["-c", SIGNALLED_WHILE_SAVING, ",".join(map(str, signals)), *argv], environment())
    assert done.returncode == 128 + signals[1] and "Traceback" not in done.stderr, done.stderr
    assert saved_in(folder / "save") == {"step_1", "step_2", "step_3"}
    assert whole(folder / "save" / "step_3") == 3
    assert "Stopped at once after step 3; the last checkpoint is" in done.stderr and "step_3, lost: " in done.stderr
    assert json.loads((folder / "save" / "run.json").read_text())["end"]["step"] == 3


# ---- --time-limit ------------------------------------------------------------------------------------------------


class FakeTime:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(time_limit, "time", fake)
    return fake


def test_the_limit_leaves_time_for_a_call_a_validation_and_a_save(clock, monkeypatch):
    monkeypatch.setattr(time_limit, "_ENDING", 3.0)
    limit = TimeLimit(100.0, started=90.0, parameters=0)
    with limit.timing("compilation"):
        clock.now += 20.0
    for seconds in (4.0, 8.0, 2.0):
        clock.now += seconds
        limit.call_done()
    assert not limit.reached()  # 44 of 100 are over
    with limit.timing("validation"):
        clock.now += 4.0
    with limit.timing("save"):
        clock.now += 4.0
    # 48 left, needed: 1.25 x (8 + 4 + 4) + 3 = 23
    assert not limit.reached()
    clock.now += 24.0
    assert not limit.reached()
    clock.now += 1.5
    assert limit.reached()
    assert not TimeLimit(None, 0.0, 10**12).reached()


def test_before_the_first_save_its_length_is_guessed_from_the_model(clock):
    small, large = (TimeLimit(60.0, clock.now, parameters) for parameters in (1000, 10**9))
    assert not small.reached() and large.reached(), "12 GB take minutes"
    with large.timing("save"):
        clock.now += 1.0
    assert not large.reached(), "what was measured counts"


def test_a_run_that_torchrun_would_kill_before_its_checkpoint_says_so_once(clock, monkeypatch):
    def after(*calls, save=None):
        limit, notes = TimeLimit(None, 0.0, 10**9), []
        for seconds in calls:
            clock.now += seconds
            limit.call_done()
            notes.append(limit.launcher_note())
        if save is not None:
            with limit.timing("save"):
                clock.now += save
            notes.append(limit.launcher_note())
        return notes

    for name in ("TORCHELASTIC_RUN_ID", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    assert after(90.0) == [None], "without torchrun a run has the time that it takes"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert after(20.0, 25.0, save=4.0) == [None, None, None]
    quick, slow, again = after(20.0, 31.0, 40.0)
    assert quick is again is None and slow.startswith("a call took 31 s, and torchrun kills a run 30 s after Ctrl-C")
    assert "larger TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in slow
    assert after(20.0, save=15.0)[1].startswith("a call and a save took 35 s")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "100")
    assert after(90.0, save=5.0) == [None, None] and after(101.0) != [None]


def test_a_run_ends_in_time_with_a_checkpoint_and_goes_on(folder, monkeypatch):
    limits = []
    reached = TimeLimit.reached

    def after_five(self):
        limits.append(self.seconds)
        return reached(self) or (self.seconds is not None and len(limits) > 5)

    argv = flags(folder, epochs=5, save_model_path=folder / "save", save_per_epochs=0)
    complete = run_here(flags(folder, epochs=5, save_model_path=folder / "whole", save_per_epochs=0))
    with monkeypatch.context() as patch:
        patch.setattr(TimeLimit, "reached", after_five)
        done = run_here([*argv, "--time-limit", "1:00:00"])
    assert set(limits) == {3600.0}
    assert done.status == 0, done.err
    assert "--time-limit: 3,600 seconds leave no time for another call" in done.err and "lost: nothing" in done.err
    (name,) = saved_in(folder / "save")
    step = whole(folder / "save" / name)
    assert losses(done.out) == losses(complete.out)[:step] and 1 < step < 20
    again = run_here([*argv, "--resume", "latest"])
    assert again.status == 0 and losses(again.out) == losses(complete.out)[step:], again.err


def test_counted_from_the_start_of_the_program(folder, monkeypatch):
    begun = []
    make = TrainingRun.__init__
    monkeypatch.setattr(TrainingRun, "__init__", lambda self, *args: (begun.append(args[2]), make(self, *args))[1])
    before = time.monotonic()
    assert run_here(flags(folder, training_steps=1)).status == 0
    assert before <= begun[0] <= time.monotonic()
