"""What the runtime chose for a run: in run.json and in its checkpoints, and kept on resuming."""

import json

import poptorch
import pytest
import torch
from tiny_run import flags, run_here, write_config, write_corpus

CHOICE = "products of half"
HALF = "POPTORCH_PORTABLE_HALF"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numerics")
    write_config(folder)
    write_corpus(folder / "corpus.pkl")
    return folder


@pytest.fixture
def fresh(monkeypatch):
    """Lines that were said in this process already are said again."""
    monkeypatch.setattr(poptorch.notices, "_said", set())


def run_flags(folder, save, **changes):
    values = {"train_path": folder / "corpus.pkl", "epochs": 1, "training_steps": 4, "save_per_steps": 2}
    return flags(folder, **{**values, "save_model_path": save, **changes})


def resume(folder, save, checkpoint):
    words = ["--pretrained-checkpoint", str(checkpoint), "--resume-training-from-checkpoint"]
    done = run_here(run_flags(folder, save) + words)
    assert done.status == 0, done.err
    return done


def training_state(checkpoint):
    return torch.load(str(checkpoint / "training_state.pt"), weights_only=True)


def losses(done):
    return [line.split(", throughput")[0] for line in done.out.splitlines() if line.startswith("step ")]


@pytest.fixture
def bfloat16(folder, tmp_path, monkeypatch):
    """A run of 4 calls with products in bfloat16, (its folder, what it printed)."""
    monkeypatch.setenv(HALF, "bfloat16")
    done = run_here(run_flags(folder, tmp_path / "run"))
    assert done.status == 0, done.err
    return tmp_path / "run", done


def test_it_is_in_run_json_and_in_the_checkpoint(bfloat16):
    save, done = bfloat16
    assert json.loads((save / "run.json").read_text(encoding="utf-8"))["numerics"][CHOICE] == "bfloat16"
    assert training_state(save / "step_2")["optimizer"]["ipu_numerics"][CHOICE] == "bfloat16"
    assert "float32 for half, its products in bfloat16" in done.out


def test_a_resumed_run_keeps_it(folder, bfloat16, tmp_path, monkeypatch, fresh):
    """Where the machine would choose float32: to the bit, and with a line."""
    save, done = bfloat16
    from poptorch.device import policy

    monkeypatch.delenv(HALF)
    monkeypatch.setattr(policy, "type_of_products", lambda: "float32")
    again = resume(folder, tmp_path / "resumed", save / "step_2")
    assert losses(again) == losses(done)[2:]
    assert again.err.count(f"{CHOICE}: bfloat16, with which the run began. This machine would choose float32.") == 1
    one, other = (training_state(place / "step_4")["optimizer"] for place in (save, tmp_path / "resumed"))
    assert one["ipu_numerics"] == other["ipu_numerics"]
    assert all(torch.equal(value, other["ipu_state"][key]) for key, value in one["ipu_state"].items())


def test_a_setting_counts_more_than_the_run(folder, bfloat16, tmp_path, monkeypatch, fresh):
    monkeypatch.setenv(HALF, "float32")
    again = resume(folder, tmp_path / "resumed", bfloat16[0] / "step_2")
    assert f"{CHOICE}: float32, as {HALF}=float32 asks. The run began with bfloat16" in again.err
    assert training_state(tmp_path / "resumed" / "step_4")["optimizer"]["ipu_numerics"][CHOICE] == "float32"


def test_a_checkpoint_of_an_earlier_version_resumes_with_one_line(folder, bfloat16, tmp_path, fresh):
    checkpoint = bfloat16[0] / "step_2"
    state = training_state(checkpoint)
    del state["optimizer"]["ipu_numerics"]
    torch.save(state, str(checkpoint / "training_state.pt"))
    again = resume(folder, tmp_path / "resumed", checkpoint)
    assert again.err.count(f"The optimizer state has no record of {CHOICE}: bfloat16") == 1
    assert losses(again) == losses(bfloat16[1])[2:]


def test_an_unknown_precision_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(HALF, "bf16")
    done = run_here(run_flags(folder, tmp_path / "run"))
    assert done.status == 2 and len(done.err.strip().splitlines()) <= 3 and "Traceback" not in done.err
    assert f"{HALF}='bf16' must be bfloat16, float16, float32 or native" in done.err
