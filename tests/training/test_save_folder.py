"""The folder of --save-model-path: whose checkpoints are in it, the newest one, and what is pruned."""

import argparse
import json
import os
import re
import shlex
import shutil
import stat
from pathlib import Path

import pytest
import torch
from tiny_run import flags, run_here, saved_in, write_config, write_corpus

from model import disk_space
from model.checkpoint import save_pretrained, tensor_bytes
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from training import save_folder
from training.save_folder import SaveFolder, checkpoints, find_latest


@pytest.fixture
def folder(tmp_path):
    write_config(tmp_path)
    return tmp_path


def run(folder, *words, **changes):
    """A step a checkpoint, 8 steps at most, 4 an epoch."""
    values = {"save_model_path": folder / "save", "save_per_steps": 1, "save_per_epochs": 0, "epochs": 2, **changes}
    return run_here([*flags(folder, **values), *words])


def steps(folder):
    return sorted(int(name[len("step_") :]) for name in saved_in(folder) if name.startswith("step_"))


def losses(out):
    return [line.split(", throughput")[0] for line in out.splitlines() if line.startswith("step ")]


def contents(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


# ---- Starting over -----------------------------------------------------------------------------------------------


def test_starting_over_where_a_run_saved_is_refused_with_two_commands_that_work(folder):
    whole = run(folder, training_steps=3)
    assert whole.status == 0, whole.err
    before = contents(folder / "save")
    done = run(folder, keep_checkpoints=1, training_steps=4)
    assert done.status == 2 and losses(done.out) == []
    assert "has checkpoints of an earlier run (step_1 … step_3), which this one would replace" in done.err
    assert contents(folder / "save") == before
    _, _, resume, elsewhere, over = done.err.splitlines()
    assert over.strip().startswith("to start over here:  --overwrite")
    argv = shlex.split(elsewhere.split(":  ")[1])[2:]
    assert argv[-2:] == ["--save-model-path", str(folder / "save-2")]
    other = run_here(argv)
    assert other.status == 0, other.err
    assert steps(folder / "save-2") == [4] and steps(folder / "save") == [1, 2, 3]
    again = run_here(shlex.split(resume.split(":  ")[1])[2:])
    assert again.status == 0, again.err
    assert (
        f"resuming from {folder / 'save' / 'step_3'}: 3 of 4 steps are done; on with sample 6 of epoch 0" in again.out
    )
    assert losses(again.out) == losses(other.out)[3:]
    assert steps(folder / "save") == [4], "--keep-checkpoints 1 of one run"


def test_overwrite_starts_over_and_prunes_what_it_wrote_alone(folder):
    assert run(folder, training_steps=4).status == 0
    done = run(folder, "--overwrite", keep_checkpoints=1, training_steps=2)
    assert done.status == 0 and len(losses(done.out)) == 2
    assert steps(folder / "save") == [2, 3, 4], "step_1 was replaced, and pruned; steps 3 and 4 are the earlier run's"
    # A run that is resumed knows what it wrote before, and what the other one did.
    done = run(folder, "--resume", "latest", keep_checkpoints=1, training_steps=3)
    assert f"resuming from {folder / 'save' / 'step_2'}: 2 of 3" in done.out, done.out
    assert steps(folder / "save") == [3, 4]


def test_the_earlier_run_resumed_leaves_the_later_one_alone(folder):
    assert run(folder, training_steps=4).status == 0
    assert run(folder, "--overwrite", training_steps=2).status == 0
    done = run(folder, "--resume", str(folder / "save" / "step_4"), keep_checkpoints=1, training_steps=5)
    assert done.status == 0 and "step 5 of epoch 1" in done.out
    assert steps(folder / "save") == [1, 2, 3, 4, 5]


def test_resuming_into_the_folder_of_another_run_is_refused_too(folder):
    assert run(folder, training_steps=2).status == 0
    assert run(folder, training_steps=4, save_model_path=folder / "other").status == 0
    resume = ["--resume", str(folder / "save" / "step_1")]
    done = run(folder, *resume, save_model_path=folder / "other")
    assert done.status == 2 and "an earlier run (step_1 … step_4)" in done.err
    assert run(folder, *resume, save_model_path=f"{folder}/save/../save/").status == 0


def test_compile_only_does_not_mind(folder):
    assert run(folder, training_steps=1).status == 0
    assert run(folder, compile_only=True).status == 0


def latest(folder):
    """What --resume latest takes in a folder."""
    args = argparse.Namespace(resume="latest", save_model_path=str(folder), overwrite=False, pretrained_checkpoint="")
    find_latest(args)
    return Path(args.pretrained_checkpoint) if args.pretrained_checkpoint else None


# ---- The newest one ----------------------------------------------------------------------------------------------


def test_resume_latest_starts_where_there_is_none_and_goes_on_where_there_is(folder):
    whole = run(folder, save_model_path=folder / "whole")
    first = run(folder, "--resume", "latest", training_steps=3)
    assert first.status == 0 and f"no checkpoint in {folder / 'save'}, the run starts from the beginning" in first.out
    second = run(folder, "--resume=latest")
    assert second.status == 0, second.err
    assert losses(first.out) + losses(second.out) == losses(whole.out)
    third = run(folder, "--resume", "latest")
    assert third.status == 0 and "all 8 steps are done already" in third.out


def test_the_newest_whole_checkpoint(folder, capsys):
    assert run(folder, training_steps=4).status == 0
    save = folder / "save"
    assert latest(save) == save / "step_4"
    for name, file in (("step_4", "model.safetensors"), ("step_3", "training_state.pt")):
        whole = (save / name / file).read_bytes()
        (save / name / file).write_bytes(whole[: len(whole) // 2])
    assert latest(save) == save / "step_2"
    said = capsys.readouterr().out.splitlines()
    assert [re.search("passed over (step_.), for", line).group(1) for line in said] == ["step_4", "step_3"]
    (save / "step_2").rename(save / ".step_2.old")  # a save of step_2 was killed between its two renames
    (save / ".step_5.new").mkdir()
    assert latest(save) == save / "step_2"
    assert latest(folder / "none") is None and latest(folder) is None


def test_a_damaged_checkpoint_is_passed_over_and_the_run_goes_on_before_it(folder):
    """Bytes that changed while the lengths are right, in each of the files; nothing is done where no other is whole."""
    whole = run(folder, training_steps=4)
    save = folder / "save"
    for name, file in {"step_4": "training_state.pt", "step_3": "model.safetensors"}.items():
        content = bytearray((save / name / file).read_bytes())
        content[len(content) // 2] ^= 1
        (save / name / file).write_bytes(content)
    done = run(folder, "--resume", "latest", training_steps=4)
    assert done.status == 0 and losses(done.out) == losses(whole.out)[2:], done.err
    said = [line for line in done.out.splitlines() if "passed over" in line]
    assert f"passed over step_4, for {save / 'step_4' / 'training_state.pt'}: the bytes of " in said[0]
    assert f"passed over step_3, for the bytes of {save / 'step_3' / 'model.safetensors'} are not those" in said[1]
    assert latest(save) == save / "step_4", "it was written anew"
    for step in range(1, 5):
        (save / f"step_{step}" / "config.json").write_text('{"n_layer": 2,')
    before = contents(save)
    refused = run(folder, "--resume", "latest")
    assert refused.status == 2 and f"of the checkpoints in {save} none is whole" in refused.err
    assert contents(save) == before and all(f"{save / f'step_{step}'} is not a whole" in refused.err for step in (1, 4))


def test_a_state_whose_archive_ends_as_one_of_two_disks_is_not_whole(folder):
    """Python's zipfile raises there instead of saying that it is no archive."""
    assert run(folder, training_steps=2).status == 0
    state = folder / "save" / "step_2" / "training_state.pt"
    content = bytearray(state.read_bytes())
    place = content.rindex(b"PK\6\7")  # where the end of a zip64 archive is, and in how many disks
    content[place + 16] = 2
    state.write_bytes(content)
    assert latest(folder / "save") == folder / "save" / "step_1"


def test_copying_a_folder_does_not_change_the_order(folder):
    assert run(folder, training_steps=3).status == 0
    for age, name in enumerate(["step_3", "step_1", "step_2"]):
        os.utime(str(folder / "save" / name), (1000 + age, 1000 + age))
    assert latest(folder / "save") == folder / "save" / "step_3"
    (folder / "save" / "run.json").unlink()  # by their age then
    assert [path.name for path in checkpoints(folder / "save")] == ["step_3", "step_1", "step_2"]


def test_only_the_newest_of_a_run_stay(tmp_path):
    save = SaveFolder(tmp_path, None, False, [])
    for name in ["step_9", "best", "epoch_0", "step_10", "step_11", "other"]:
        (tmp_path / name).mkdir()
    (tmp_path / ".step_2.pruned").mkdir()
    save.written = ["epoch_0", "best", "step_10", "gone", "step_11"]
    assert save.prune(0) == []
    assert save.prune(2) == ["epoch_0"]
    assert {path.name for path in tmp_path.iterdir()} == {"step_9", "best", "step_10", "step_11", "other"}
    assert save.prune(1) == ["step_10"] and save.written == ["best", "gone", "step_11"]


# ---- The best one ------------------------------------------------------------------------------------------------


def held_out(out):
    lines = [line for line in out.splitlines() if line.startswith("validation after step ")]
    return {int(line.split(",")[0].split()[-1]): float(line.split("held-out loss: ")[1]) for line in lines}


def test_keep_best_keeps_the_checkpoint_of_the_lowest_held_out_loss(folder, monkeypatch):
    from training.validation import Validator

    course = [1.0, 3.0, 2.0, 2.5]
    monkeypatch.setattr(Validator, "loss", lambda self: course.pop(0))
    corpus = write_corpus(folder / "corpus.pkl")
    words = {"train_path": corpus, "stride": 16, "val_num": 2, "eval_steps": 1, "epochs": 20, "save_per_steps": 3}
    done = run(folder, "--keep-best", **words, keep_checkpoints=1, training_steps=3)
    assert done.status == 0, done.err
    assert held_out(done.out) == {0: 1.0, 1: 3.0, 2: 2.0, 3: 2.5}, "that before training is no checkpoint's"
    assert saved_in(folder / "save") == {"best", "step_3"}
    state = torch.load(str(folder / "save" / "best" / "training_state.pt"), weights_only=True)
    assert state["position"]["step"] == 2 and state["held_out_loss"] == 2.0
    # A resumed run knows how good it is.
    course += [2.5, 2.2, 1.9]
    done = run(folder, "--keep-best", "--resume", "latest", **words, training_steps=5)
    assert done.status == 0, done.err
    assert done.out.splitlines().count(f"saved {folder / 'save' / 'best'}") == 1
    state = torch.load(str(folder / "save" / "best" / "training_state.pt"), weights_only=True)
    assert state["position"]["step"] == 5
    # best is a checkpoint like the others
    course += [1.9, 1.9]
    done = run(folder, "--keep-best", "--resume", str(folder / "save" / "best"), **words, training_steps=6)
    assert "step 6 of epoch" in done.out and done.status == 0, done.err


# ---- A full disk -------------------------------------------------------------------------------------------------


def fill(monkeypatch, after):
    """From the checkpoint `after` on there is no room."""
    asked = []

    def free(directory):
        asked.append(directory)
        return 1000 if len(asked) > after else 10**12

    monkeypatch.setattr(disk_space, "free_bytes", free)


def test_a_full_disk_ends_a_run_with_what_it_needed_and_the_command_that_goes_on(folder, monkeypatch):
    fill(monkeypatch, after=2)
    done = run(folder)
    assert done.status == 1 and "Traceback" not in done.err
    line = next(line for line in done.err.splitlines() if "not saved" in line)
    assert line.startswith(f"train_gpt2.py: {folder / 'save' / 'step_3'}: not saved: takes ")
    needed = int(line.split("takes ")[1].split(" bytes")[0].replace(",", ""))
    size = sum(path.stat().st_size for path in (folder / "save" / "step_2").iterdir())
    assert size <= needed < size + 300_000 and line.endswith("bytes, 1,000 are free there")
    assert (
        f"Stopped after step 3; the last checkpoint is {folder / 'save' / 'step_2'}, lost: 1 step. To go on:"
        in done.err
    )
    assert saved_in(folder / "save") == {"step_1", "step_2"}
    assert json.loads((folder / "save" / "run.json").read_text())["end"]["step"] == 3


def test_a_disk_without_room_for_any_checkpoint_is_told_before_the_first_step(folder, monkeypatch):
    monkeypatch.setattr(save_folder, "free_bytes", lambda directory: 1000)
    done = run(folder)
    assert done.status == 2 and "a checkpoint of this model takes" in done.err and "1,000 are free there" in done.err
    assert "step 1 " not in done.out


def test_or_the_run_goes_on_by_flag(folder, monkeypatch):
    fill(monkeypatch, after=2)
    done = run(folder, "--on-save-error", "continue", training_steps=4)
    assert done.status == 1, "its last checkpoint is missing"
    assert len(losses(done.out)) == 4 and done.err.count("step_3: not saved: takes") == 1
    assert "the last checkpoint is" in done.err and "lost: 2 steps" in done.err
    monkeypatch.undo()
    shutil.rmtree(folder / "save")
    monkeypatch.setattr(torch, "save", failing_once(torch.save))
    done = run(folder, "--on-save-error", "continue", training_steps=4)
    assert done.status == 0 and steps(folder / "save") == [2, 3, 4], done.err


def failing_once(save):
    """A disk that fills up while torch writes: half a file, and the error of torch's writer."""
    calls = []

    def half_a_file(state, path):
        calls.append(path)
        if len(calls) > 1:
            save(state, path)
        else:
            path.write_bytes(b"PK")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0: …")

    return half_a_file


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_leaves_nothing_half_written(folder, monkeypatch):
    monkeypatch.setattr(torch, "save", failing_once(torch.save))
    done = run(folder)
    assert done.status == 1 and "Traceback" not in done.err and "frame #0" not in done.err
    assert f"{folder / 'save' / 'step_1'}: not saved ([enforce fail" in done.err and "bytes, " in done.err
    assert saved_in(folder / "save") == set()


def test_a_full_disk_costs_the_log_and_not_the_run(folder, monkeypatch):
    from training.log.curves import CurveFile

    add = CurveFile.add

    def full(self, row):
        if row.get("step") in (2, 3):
            raise OSError(28, "No space left on device")
        add(self, row)

    monkeypatch.setattr(CurveFile, "add", full)
    done = run(folder, training_steps=4)
    assert done.status == 0, done.err
    said = f"{folder / 'save' / 'curves.csv'}: cannot be written (No space left on device), the run goes on"
    assert done.out.count(said) == 1 and steps(folder / "save") == [1, 2, 3, 4]


def test_the_bytes_of_tensors():
    weight = torch.zeros(3, 5)
    values = {"a": [weight, (weight[:1], {"b": torch.zeros(2, dtype=torch.float16)})], "c": 1}
    assert tensor_bytes(values) == 3 * 5 * 4 + 2 * 2


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_files_of_a_checkpoint_follow_the_umask(folder, mask, mode):
    before = os.umask(mask)
    try:
        save_pretrained(GPT2LMHeadModel(GPT2Config.from_json(folder / "tiny.json")), folder / "checkpoint")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder / "checkpoint").iterdir()}
    assert modes == {"config.json": mode, "model.safetensors": mode}
