"""Resuming continues a run bit for bit; a kill or Ctrl-C at any moment leaves a checkpoint that can be resumed."""

import os
import shlex
import shutil
import signal
import sys

import poptorch
import pytest
import safetensors.torch
import torch
import warm_process
from tiny_run import ROOT, Running, environment, flags, run_here, run_there, saved_in, write_config, write_corpus

from training import state
from training.state import Position

RESUME = "--resume-training-from-checkpoint"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model (dropout 0.1) and corpus of the runs: 27 samples to train on, 9 calls of 3 an epoch, 2 updates each..."""
    folder = tmp_path_factory.mktemp("resume")
    write_config(folder)
    write_corpus(folder / "corpus.pkl", articles=13, length=40)
    return folder


def run_flags(folder, save, **changes):
    """Two epochs of 5 calls of 6 samples (3 of 33 are left over), 4 loader processes, a cosine, a held-out part."""
    values = {
        "train_path": folder / "corpus.pkl",
        "stride": 16,
        "val_num": 6,
        "epochs": 2,
        "gradient_accumulation": 3,
        "device_iterations": 2,
        "num_workers": 4,
        "lr_schedule": "cosine",
        "weight_decay": 0.01,
        "save_per_steps": 1,
        "save_model_path": save,
    }
    return flags(folder, **{**values, **changes})


def contents(checkpoint):
    """Everything a checkpoint says: weights as bytes, and the training state."""
    state = torch.load(str(checkpoint / "training_state.pt"), weights_only=True)
    return (checkpoint / "model.safetensors").read_bytes(), (checkpoint / "config.json").read_bytes(), state


def assert_equal(one, other, path="state"):
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), path
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other)):
            assert_equal(*pair, f"{path}[{index}]")
    else:
        assert one == other, path


def losses(out):
    return [line.split(", throughput")[0] for line in out.splitlines() if line.startswith("step ")]


@pytest.fixture(scope="module")
def full(folder):
    """The uninterrupted run of an optimizer, made once."""
    made = {}

    def run(optimizer):
        if optimizer not in made:
            save = folder / optimizer
            done = run_here(run_flags(folder, save, optimizer=optimizer))
            assert done.status == 0, done.err
            made[optimizer] = (save, losses(done.out))
        return made[optimizer]

    return run


@pytest.mark.parametrize(
    "optimizer, step", [("AdamW", 3), ("AdamW", 5), ("AdamW", 8), ("LAMB", 4)], ids=lambda value: str(value)
)
def test_a_resumed_run_is_the_run(folder, full, tmp_path, optimizer, step):
    """In the middle of the first epoch, at its end (5 calls), in the second epoch."""
    save, lines = full(optimizer)
    again = ["--pretrained-checkpoint", str(save / f"step_{step}"), RESUME]
    done = run_here(run_flags(folder, tmp_path, optimizer=optimizer) + again)
    assert done.status == 0, done.err
    assert losses(done.out) == lines[step:]
    names = saved_in(tmp_path)
    assert names == {f"step_{n}" for n in range(step + 1, 11)} | {"epoch_1"} | ({"epoch_0"} if step < 5 else set())
    for name in ("step_10", "epoch_1"):
        expected, got = contents(save / name), contents(tmp_path / name)
        assert got[:2] == expected[:2], "weights or configuration differ"
        assert_equal(got[2], expected[2])
    weights = safetensors.torch.load_file(str(save / "step_10" / "model.safetensors"))
    start = safetensors.torch.load_file(str(save / "step_1" / "model.safetensors"))
    assert not torch.equal(weights["transformer.h.0.mlp.c_fc.weight"], start["transformer.h.0.mlp.c_fc.weight"])


def test_automatic_loss_scaling_goes_on_where_it_was(folder, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {"auto_loss_scaling": True, "epochs": 1, "save_per_steps": 2, "num_workers": 0}
    first = run_here(run_flags(folder, whole, **changes))
    assert first.status == 0, first.err
    state = contents(whole / "step_4")[2]
    # From 1 it doubles with each of the 2 updates of a call, until half gradients come near 65,504.
    factor = state["optimizer"]["ipu_state"]["lossScaleUpdateFactor"].item()
    assert 2.0**4 < factor <= 2.0**8
    again = run_here([*run_flags(folder, parts, **changes), "--pretrained-checkpoint", str(whole / "step_2"), RESUME])
    assert again.status == 0, again.err
    assert losses(again.out) == losses(first.out)[2:]
    assert_equal(contents(parts / "step_4")[2], state)


def test_the_runs_have_dropout_a_shuffled_order_and_a_varying_rate(folder, full):
    _, lines = full("AdamW")
    assert len(lines) == 10 and len({line.split("lr: ")[1] for line in lines}) == 10
    assert [line.split(",")[0] for line in lines] == [f"step {n} of epoch {(n - 1) // 5}" for n in range(1, 11)]
    for changes in ({"seed": 5}, {"config": write_config(folder.joinpath("plain"), resid_pdrop=0.0)}):
        other = run_here(run_flags(folder, None, save_per_steps=None, training_steps=1, epochs=2, **changes))
        assert other.status == 0, other.err
        assert losses(other.out)[0].split("loss")[1].split(",")[0] != lines[0].split("loss")[1].split(",")[0]


def test_a_finished_run_says_so_and_writes_nothing(folder, full, tmp_path):
    save, _ = full("AdamW")
    again = ["--pretrained-checkpoint", str(save / "epoch_1"), RESUME]
    done = run_here(run_flags(folder, tmp_path, optimizer="AdamW") + again)
    assert done.status == 0 and "all 10 steps are done already: raise --epochs" in done.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"learning_rate": 0.02}, "--learning-rate 0.01 0.02"),
        ({"seed": 3}, "--seed 1234 3"),
        ({"optimizer": "LAMB"}, "--optimizer AdamW LAMB"),
        # the same samples a call, but other updates
        ({"gradient_accumulation": 2, "device_iterations": 3}, "--gradient-accumulation 3 2"),
        ({"lr_schedule": "linear"}, "--lr-schedule cosine linear"),
        ({"epochs": 3}, "--lr-decay-steps 10 15"),
        ({"stride": 8}, "--train-path"),
        ({"weight_decay": 0.0, "loss_scaling": 1}, "--weight-decay 0.01 0.0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_other_flags_are_refused(folder, full, tmp_path, changes, named):
    save, _ = full("AdamW")
    again = ["--pretrained-checkpoint", str(save / "step_3"), RESUME]
    done = run_here(run_flags(folder, tmp_path / "new", **{"optimizer": "AdamW", **changes}) + again)
    assert done.status == 2, done.err
    head, *table = done.err.splitlines()[1:]
    assert head.strip().startswith(f"{save / 'step_3'}: a resumed run continues exactly, but these flags make it")
    assert table[0].split() == ["flag", "in", "step_3", "now"]
    assert named in [" ".join(row.split()) for row in table[1:]], done.err
    assert max(map(len, table[:-1])) < 250 and table[-1].strip().startswith("Use the flags of that run")
    for flag in changes:  # its row in the table, under the three headings
        if flag not in ("epochs", "stride"):
            (row,) = (row for row in table if row.split()[0] == f"--{flag.replace('_', '-')}")
            assert row.rindex(row.split()[-1]) == table[0].index("now")
    assert not (tmp_path / "new").exists()


def test_a_finished_run_goes_on_as_it_is_told(folder, tmp_path):
    """The warm-up of a constant rate is a part of the planned calls; it stays when there are more of them."""
    changes = {"lr_schedule": "constant", "lr_warmup": 0.3, "save_per_steps": None, "num_workers": 0}
    whole = run_here(run_flags(folder, tmp_path / "whole", **changes))
    first = run_here(run_flags(folder, tmp_path / "parts", **changes, training_steps=5))
    assert "--lr-warmup" not in first.err and first.status == 0, first.err
    rates = [[line.split("lr: ")[1] for line in losses(run.out)] for run in (whole, first)]
    assert len(set(rates[0])) == 4 and len(set(rates[1])) == 2, "3 of 10 calls, 1 of 5"
    again = run_flags(folder, tmp_path / "parts", **changes) + ["--resume", "latest"]
    for steps in ("5", "7", "9"):
        done = run_here([*again, "--training-steps", steps])
        assert done.status == 0, done.err
        if steps == "5":
            assert "raise --epochs or --training-steps to go on" in done.out.splitlines()[-1]
    assert [line.split(",")[0] for line in losses(done.out)] == ["step 8 of epoch 1", "step 9 of epoch 1"]
    assert losses(done.out)[0].split("lr: ")[1] == rates[1][-1]
    # Another warm-up is another run.
    done = run_here([*again, "--training-steps", "10", "--lr-warmup", "0.9"])
    assert done.status == 2 and "--lr-warmup-steps 1 4" in " ".join(done.err.split())


def test_what_a_finished_cosine_needs_to_go_on_is_said_and_works(folder, full, tmp_path):
    save, _ = full("AdamW")
    resume = ["--resume", str(save / "epoch_1")]
    said = run_here(run_flags(folder, tmp_path, optimizer="AdamW") + resume).out.splitlines()[-1]
    flags_said = said.split(", with ")[1].split(" (")[0].split()
    assert flags_said == ["--lr-warmup-steps", "1", "--lr-decay-steps", "10"] and "its cosine course" in said
    done = run_here(run_flags(folder, tmp_path, optimizer="AdamW", epochs=3, save_per_steps=None) + resume + flags_said)
    assert done.status == 0 and len(losses(done.out)) == 5, done.err


@pytest.mark.parametrize("kind, floor", [("linear", 0.0), ("cosine", 0.0), ("linear", 0.002)])
def test_an_extended_schedule_says_where_it_ends_and_stays_there(folder, tmp_path, kind, floor):
    """Ended after 3 of 4 planned steps, then 6 of them: the course is not stretched."""
    changes = {"lr_schedule": kind, "min_learning_rate": floor, "lr_warmup": 0, "num_workers": 0, "val_num": 0}
    first = run_here(run_flags(folder, tmp_path, **changes, training_steps=3, lr_decay_steps=4))
    assert first.status == 0 and "learning rate ends" not in first.out, first.err
    argv = [*run_flags(folder, tmp_path, **changes, training_steps=6), "--resume", "latest"]
    refused = run_here(argv)
    stays = f"{floor:g}" if floor else "0, which changes no weight"
    *_, given, said, _ = refused.err.splitlines()
    assert refused.status == 2 and given.endswith("unless given: --lr-decay-steps 4")
    assert said.endswith(f"steps after its end have a learning rate of {stays}")
    done = run_here([*argv, *given.split(": ")[-1].split()])
    assert done.status == 0, done.err
    assert f"the learning rate ends its {kind} course at step 4; after that it stays {stays}" in done.out.splitlines()
    rates = [float(line.split("lr: ")[1]) for line in losses(done.out)]
    assert len(rates) == 3 and rates[0] > floor and rates[1:] == [floor, floor]
    weights = [contents(tmp_path / f"step_{step}")[0] for step in (3, 4, 5, 6)]
    assert weights[0] != weights[1] and (weights[1] == weights[2] == weights[3]) is (floor == 0)


def test_another_corpus_of_the_same_size_is_refused(folder, full, tmp_path):
    save, _ = full("AdamW")
    other = write_corpus(tmp_path / "other.pkl", articles=13, length=40, largest_id=50)
    again = ["--pretrained-checkpoint", str(save / "step_3"), RESUME]
    done = run_here(run_flags(folder, tmp_path / "new", train_path=other, optimizer="AdamW") + again)
    assert done.status == 2
    place = [line.split()[0] for line in done.err.splitlines()].index("--train-path")
    then, now = done.err.splitlines()[place + 1 : place + 3]
    assert then.split()[:2] == ["in", "step_3:"] and now.split()[0] == "now:" and then.split()[2:] != now.split()[1:]


def test_more_epochs_with_the_schedule_of_the_run(folder, full, tmp_path):
    save, _ = full("AdamW")
    again = ["--pretrained-checkpoint", str(save / "step_9"), RESUME, "--lr-decay-steps", "10"]
    done = run_here(run_flags(folder, tmp_path, optimizer="AdamW", epochs=3, save_per_steps=None) + again)
    assert done.status == 0, done.err
    assert [line.split(",")[0] for line in losses(done.out)] == [
        f"step {n} of epoch {(n - 1) // 5}" for n in range(10, 16)
    ]


KILLED_WHILE_SAVING = """
import os, signal, sys, torch
save, calls = torch.save, []
def half_a_file(state, path):
    calls.append(path)
    save(state, path)
    if len(calls) == 3:
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = half_a_file
import train_gpt2
sys.exit(train_gpt2.main(sys.argv[1:]))
"""


def test_a_kill_during_a_save_leaves_the_checkpoint_before_it(folder, full, tmp_path):
    save, lines = full("AdamW")
    argv = run_flags(folder, tmp_path, optimizer="AdamW")
    killed = warm_process.run(["-c", KILLED_WHILE_SAVING, *argv], environment())
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert saved_in(tmp_path) == {"step_1", "step_2", ".step_3.new"}
    done = run_here([*argv, "--pretrained-checkpoint", str(tmp_path / "step_2"), RESUME])
    assert done.status == 0, done.err
    assert losses(done.out) == lines[2:]
    assert not list(tmp_path.glob(".*")), "what the killed save left behind must be cleaned up"
    expected, got = contents(save / "step_10"), contents(tmp_path / "step_10")
    assert got[:2] == expected[:2]
    assert_equal(got[2], expected[2])


def test_ctrl_c_ends_after_the_call_and_the_printed_command_goes_on(folder, tmp_path):
    changes = {"epochs": 8, "save_per_steps": None, "save_per_epochs": 0, "gradient_accumulation": 3}
    running = Running(run_flags(folder, tmp_path / "cut", **changes))
    running.wait_for(running.process.stdout, "step 7 ")
    running.interrupt()
    status, out, err = running.end(timeout=300)
    assert status == 130, err
    assert "Traceback" not in out + err
    assert "the run ends after the current call" in err
    (checkpoint,) = (tmp_path / "cut" / name for name in saved_in(tmp_path / "cut"))
    step = int(checkpoint.name[len("step_") :])
    assert 7 <= step < 40
    assert f"Stopped after step {step}; the last checkpoint is {checkpoint}, lost: nothing. To go on:" in err
    command = shlex.split(err.splitlines()[-1])
    assert command[:2] == [sys.executable, str(ROOT / "train_gpt2.py")]
    done = run_here(command[2:])
    assert done.status == 0, done.err
    assert f"step {step + 1} of epoch" in done.out and f"step {step} of epoch" not in done.out
    whole = run_here(run_flags(folder, tmp_path / "whole", **changes))
    assert whole.status == 0, whole.err
    assert losses(done.out) == losses(whole.out)[step:]
    expected, got = contents(tmp_path / "whole" / "step_40"), contents(tmp_path / "cut" / "step_40")
    assert got[:2] == expected[:2]
    assert_equal(got[2], expected[2])


def test_ctrl_c_twice_ends_at_once_and_the_last_checkpoint_stands(folder, tmp_path):
    # A call of 300 micro-batches is long enough to be interrupted twice.
    argv = run_flags(
        folder, tmp_path, train_path="generated", val_num=0, gradient_accumulation=300, device_iterations=1
    )
    running = Running(argv)
    running.wait_for(running.process.stdout, "saved ")
    running.interrupt()
    running.wait_for(running.process.stderr, "Ctrl-C")
    running.interrupt()
    status, out, err = running.end(timeout=300)
    assert status == 130, err
    assert "Traceback" not in out + err
    checkpoint = tmp_path / "step_1"
    assert saved_in(tmp_path) == {"step_1"}
    assert (
        f"Stopped at once after step 1; the last checkpoint is {checkpoint}, lost: the call under way. To go on" in err
    )
    state = torch.load(str(checkpoint / "training_state.pt"), weights_only=True)
    assert state["position"] == {"step": 1, "epoch": 0, "samples": 300}


@pytest.mark.parametrize("resumed", [False, True])
def test_ctrl_c_in_the_first_call_ends_it_at_once(folder, full, tmp_path, monkeypatch, resumed):
    """A call can take days, and nothing has been learnt yet that waiting for its end would keep."""
    save, _ = full("AdamW")
    argv = run_flags(folder, tmp_path, optimizer="AdamW", num_workers=0)
    argv += ["--pretrained-checkpoint", str(save / "step_3"), RESUME] if resumed else []

    def interrupted(self, *inputs, **named):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the call went on")

    monkeypatch.setattr(poptorch.PoplarExecutor, "__call__", interrupted)
    done = run_here([*argv, "--val-num", "0"] if not resumed else argv)
    assert done.status == 130
    if resumed:
        assert f"Stopped at once after step 3; the last checkpoint is {save / 'step_3'}, lost: the call" in done.err
    else:
        assert "Stopped at once after step 0; no checkpoint was written, only the call under way is lost." in done.err
        assert "A call is shorter with a smaller --device-iterations or --gradient-accumulation." in done.err
    assert not saved_in(tmp_path)


def test_ctrl_c_while_starting_is_no_traceback(folder):
    running = Running(run_flags(folder, None, save_per_steps=None, val_num=0), cold=True)
    running.wait_for(running.process.stdout, "samples")  # the arithmetic, before torch is imported
    running.interrupt()
    status, out, err = running.end(timeout=300)
    assert (status, out.count("step ")) == (130, 0)
    assert err.splitlines()[-1] == "Stopped before the first step; nothing is lost."
    assert "Traceback" not in err


def test_a_missing_or_damaged_training_state_is_named(folder, full, tmp_path):
    save, _ = full("AdamW")
    checkpoint = tmp_path / "step_1"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).write_bytes((save / "step_1" / name).read_bytes())
    argv = run_flags(folder, tmp_path / "new") + ["--pretrained-checkpoint", str(checkpoint), RESUME]
    missing = run_here(argv)
    assert missing.status == 2 and f"{checkpoint / 'training_state.pt'} does not exist" in missing.err
    whole = (save / "step_1" / "training_state.pt").read_bytes()
    (checkpoint / "training_state.pt").write_bytes(whole[: len(whole) // 2])
    damaged = run_here(argv)
    assert damaged.status == 2 and f"nothing can be resumed, for {checkpoint / 'training_state.pt'}:" in damaged.err
    torch.save({"format": 0}, str(checkpoint / "training_state.pt"))
    other = run_here(argv)
    assert other.status == 2 and "is no training state of this program" in other.err
    assert not (tmp_path / "new").exists()


MOMENT = "Accl2___gpt2.transformer.wte.weight"


def damage(checkpoint):
    """Changes a bit in the middle of a second moment; returns the file."""
    file = checkpoint / "training_state.pt"
    moment = torch.load(str(file), weights_only=True)["optimizer"]["ipu_state"][MOMENT]
    content = bytearray(file.read_bytes())
    place = content.index(moment.numpy().tobytes())
    content[place + moment.nbytes // 2] ^= 1
    file.write_bytes(content)
    return file


def test_a_byte_that_changed_in_a_training_state_is_told_and_nothing_is_resumed(folder, full, tmp_path):
    save, _ = full("AdamW")
    shutil.copytree(save / "step_3", tmp_path / "save" / "step_3")
    file = damage(tmp_path / "save" / "step_3")
    content = file.read_bytes()
    for how in (["--resume", str(file.parent)], ["--resume", "latest"]):
        done = run_here(run_flags(folder, tmp_path / "save") + how)
        assert done.status == 2 and not losses(done.out)
        assert f"{file}: the bytes of optimizer.ipu_state.{MOMENT} are not those that were written" in done.err
        remedy = (
            "none is whole; copy one there again" if "latest" in how else f"--resume {tmp_path / 'save' / 'step_N'}"
        )
        assert remedy in done.err and "Traceback" not in done.err
    assert file.read_bytes() == content and saved_in(tmp_path / "save") == {"step_3"}


def test_weights_that_are_not_those_of_the_training_state_are_told(folder, full, tmp_path):
    """A checkpoint that was saved before they were compared goes on without."""
    save, lines = full("AdamW")
    checkpoint = shutil.copytree(save / "step_3", tmp_path / "step_3")
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    argv = run_flags(folder, tmp_path / "new", training_steps=4) + ["--resume", str(checkpoint)]
    done = run_here(argv)
    assert done.status == 2 and f"the bytes of {weights} are not those that were saved" in done.err
    assert f"--resume {tmp_path / 'step_N'}" in done.err and not (tmp_path / "new").exists()
    older = torch.load(str(checkpoint / "training_state.pt"), weights_only=True)
    del older["weights_crc32"]
    torch.save(older, str(checkpoint / "training_state.pt"))
    weights.write_bytes((save / "step_3" / "model.safetensors").read_bytes())
    changed = ["--lr-warmup-steps", "1", "--lr-decay-steps", "10"]
    assert losses(run_here([*argv, *changed]).out) == lines[3:4]


def test_the_bytes_of_a_training_state_are_compared_once_a_machine_and_where_they_are_used(
    folder, full, tmp_path, monkeypatch
):
    save, _ = full("AdamW")
    shutil.copytree(save / "step_3", tmp_path / "step_3")
    damage(tmp_path / "step_3")
    with pytest.raises(ValueError, match=MOMENT):
        state.read(tmp_path / "step_3")
    assert state.read(tmp_path / "step_3", ("facts",))["facts"]["--optimizer"] == "AdamW"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")  # the process beside it refuses, and ends both
    assert state.read(tmp_path / "step_3")["position"]["step"] == 3
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match=MOMENT):
        state.read(tmp_path / "step_3")


def test_without_the_flag_only_the_weights_are_taken(folder, full):
    save, lines = full("AdamW")
    argv = run_flags(folder, None, save_per_steps=None, training_steps=1)
    done = run_there([*argv, "--pretrained-checkpoint", str(save / "step_10")])
    assert done.status == 0, done.err
    assert losses(done.out)[0].startswith("step 1 of epoch 0, ")
    first, last, new = (
        float(line.split("loss: ")[1].split(",")[0]) for line in (lines[0], lines[-1], losses(done.out)[0])
    )
    assert abs(new - last) < abs(new - first)


def test_position():
    position = Position()
    walk = []
    for _ in range(5):
        position.advance(6, 17)  # two calls an epoch, five samples left over
        walk.append((position.step, position.epoch, position.samples))
    assert walk == [(1, 0, 6), (2, 1, 0), (3, 1, 6), (4, 2, 0), (5, 2, 6)]


def test_ctrl_c_while_validating_at_the_end_of_an_epoch_keeps_the_steps(folder, tmp_path, monkeypatch):
    from training.validation import Validator

    held_out_loss, calls = Validator.loss, []

    def interrupted(self):
        calls.append(None)
        if len(calls) == 2:  # the first is before training
            os.kill(os.getpid(), signal.SIGINT)
        return held_out_loss(self)

    monkeypatch.setattr(Validator, "loss", interrupted)
    run = run_here(run_flags(folder, tmp_path, num_workers=0, save_per_steps=None, save_per_epochs=0))
    assert run.status == 130
    assert "lost: nothing" in run.err
    assert (tmp_path / "step_5" / "training_state.pt").is_file()


def test_the_remedy_for_a_lost_run_is_the_flag_that_is_missing(folder, tmp_path, monkeypatch):
    import train_gpt2

    def interrupted(run, log, interruption):
        run.position.step = 2
        raise KeyboardInterrupt

    monkeypatch.setattr(train_gpt2, "train", interrupted)
    with_folder = run_here(run_flags(folder, tmp_path, num_workers=0, save_per_steps=None))
    assert "--save-per-steps N" in with_folder.err and with_folder.status == 130
    without = run_here(run_flags(folder, None, num_workers=0, save_per_steps=None))
    assert "--save-model-path DIR" in without.err


@pytest.mark.parametrize("large", [False, True])
def test_batches_of_another_process_are_the_same_run(folder, full, tmp_path, monkeypatch, large):
    """--async-dataloader, and where the batches count as large; from the start and resumed in the first epoch."""
    if large:
        monkeypatch.setattr("training.loader._LARGE_BATCH", 64)  # workers make batches of one sample
    save, lines = full("AdamW")
    for again in ([], ["--pretrained-checkpoint", str(save / "step_3"), RESUME, "--overwrite"]):
        argv = run_flags(folder, tmp_path, optimizer="AdamW", async_dataloader=True, num_workers=1) + again
        done = run_here(argv)
        assert done.status == 0, done.err
        assert losses(done.out) == lines[3 if again else 0 :]
    assert contents(tmp_path / "step_10")[:2] == contents(save / "step_10")[:2]
