"""Runs that overflow late: the scale and what is lost are told."""

import poptorch
import pytest
import torch
from tiny_run import flags, run_here, write_config

from training.log.gradient_norm import GradientNorm, loss_scale
from training.log.loss_scale import FallingScale


@pytest.fixture
def folder(tmp_path):
    write_config(tmp_path)
    return tmp_path


def test_ups_and_downs_are_no_fall():
    falling = FallingScale()
    assert [falling.line(step, scale) for step, scale in enumerate([1, 2, 4, 2, 4, 64, 32, 8, 128, 16, 128])] == [
        None
    ] * 11


def test_a_fall_is_told_with_both_scales_and_once():
    falling = FallingScale()
    scales = [1024.0, 4096.0, 512.0, 256.0, 128.0, 64.0, 16.0, 8.0]
    lines = {step: line for step, scale in enumerate(scales) if (line := falling.line(step, scale))}
    assert list(lines) == [3, 6]
    assert "fell from 4096 (step 1) to 256 (step 3)" in lines[3] and "No update is skipped" in lines[3]
    assert "fell from 256 (step 3) to 16 (step 6)" in lines[6]


def test_the_log_of_a_run_has_it(folder, monkeypatch):
    read, scales = GradientNorm.read, iter([4096.0, 128.0, 64.0, 128.0])
    monkeypatch.setattr(GradientNorm, "read", lambda self, calls: (read(self, calls)[0], next(scales)))
    words = {
        "auto_loss_scaling": True,
        "loss_scaling": None,
        "log_gradient_norm": True,
        "save_model_path": folder / "a",
    }
    done = run_here(flags(folder, **words))
    assert done.status == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith(("step ", "WARNING: the loss scale"))]
    assert [line.split(" (step")[0].split(" of ")[0] for line in lines] == [
        "step 1", "step 2", "WARNING: the loss scale fell from 4096", "step 3", "step 4",
    ]  # fmt: skip


def test_the_scale_before_the_first_call_is_the_optimizers():
    optimizer = poptorch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], loss_scaling=8.0)
    assert loss_scale(optimizer) == 8.0


@pytest.mark.parametrize("automatic", [False, True])
def test_a_run_that_overflows_tells_its_scale_and_what_is_lost(folder, automatic):
    """Weights beyond the range of half after the first update: the loss of the second call is not finite."""
    words = {"learning_rate": 1e30, "lr_warmup": 0, "optimizer": "AdamW", "loss_scaling": 64}
    if automatic:
        words.update(auto_loss_scaling=True, loss_scaling=None)
    done = run_here(flags(folder, **words))
    assert done.status == 1
    message = done.err[done.err.index("train_gpt2.py: ") :]
    step = int(message.split("step ")[1].split(":")[0])
    scale = float(message.split("(loss scale ")[1].split(")")[0])
    assert scale == 64 if not automatic else scale > 0
    assert f"Nothing more is saved, {step} step{'s'[: step != 1]} lost; no update was skipped" in message
    assert ("--auto-loss-scaling" in message) is not automatic
