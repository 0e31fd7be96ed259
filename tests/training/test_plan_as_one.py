"""The plan counts micro-batches that the runtime runs as one, and what they keep: beside the runtime's own counts."""

import argparse
import json
import re

import pytest
from poptorch.engine.as_one import number, stacking
from tiny_run import NO_DROPOUT, flags, run_here, run_together, write_config

from arguments import parse_train_args
from model.config import GPT2Config
from model.layout import Layout
from training import as_one
from training.run import TrainingRun
from training.stage_memory import CPU, GPU, IPU


def variant(**fields):
    return {"model_type": "gpt2_variant", "variant": fields}


# name -> (what the configuration has, what the command line has)
PROGRAMS = {
    "GPT-2": ({}, {}),
    "large vocabulary": ({"vocab_size": 2048, "real_vocab_size": 2040}, {"batch_size": 2}),
    "without dropout": (NO_DROPOUT, {}),
    "pipeline, recomputed": ({}, {"layers_per_ipu": "1 1", "recompute_checkpoint_every_layer": True}),
    "recomputed in part": ({"n_layer": 4}, {"recompute_checkpoint_layers": "1 2"}),
    "isolated documents": ({"eos_token_id": 7}, {"document_boundaries": "isolated"}),
    "post-norm": (variant(norm_position="post", final_norm=False), {}),
    "padding": (variant(padding_id=3), {}),
    "parallel residual, ALiBi": (variant(position_embedding="alibi", parallel_residual=True), {}),
    "parallel without dropout": ({**NO_DROPOUT, **variant(parallel_residual=True)}, {}),
    "factorised": (variant(embedding_size=8, share_layers=True, embedding_norm=True, scale_embedding=True), {}),
}


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_the_bytes_of_a_forward_pass_are_those_that_the_runtime_counts(name, tmp_path):
    config, words = PROGRAMS[name]
    write_config(tmp_path, n_embd=32, **config)
    args = parse_train_args(list(map(str, flags(tmp_path, compile_only=True, **{"gradient_accumulation": 9, **words}))))
    run = TrainingRun(args)
    run.compile_only()
    counted = stacking._bytes(run.executor._compiled.program, True)
    assert as_one.forward_bytes(run.model.gpt2.config, args, CPU) == pytest.approx(counted, rel=0.02)


TINY = GPT2Config(64, 32, 16, 2, 2)


ARGS = {
    "max_len": 16,
    "batch_size": 1,
    "gradient_accumulation": 48,
    "layers_per_ipu": [0, 2],
    "recompute_checkpoint_layers": [],
    "document_boundaries": "stream",
    "remap_logit": False,
}


def chosen(layout, device=CPU, **changes):
    return as_one.micro_batches_as_one(TINY, argparse.Namespace(**{**ARGS, **changes}), layout, device)


def test_how_many_run_as_one(monkeypatch):
    monkeypatch.delenv(as_one.VARIABLE, raising=False)
    assert chosen(Layout(1, 1, 2)) == 48 and chosen(Layout(1, 2, 2)) == chosen(Layout(2, 4, 2)) == 96, (
        "all of a process"
    )
    assert chosen(Layout(1, 1, 2), IPU) == 1 and chosen(Layout(1, 1, 2), GPU) == 48
    assert chosen(Layout(2, 1, 2)) == 4, "IPUs 0 1 0 are three spans: four times as many are left"
    # 16 tokens: 1,248 = (12 + 1) (4 x 16 + 32) with four as one, 2,352 alone. 1,024: 51,744, and 52,000 with two
    assert chosen(Layout(2, 1, 2), max_len=1024) == 1 and chosen(Layout(2, 1, 2), GPU, max_len=1024) == 4
    assert chosen(Layout(4, 2, 2)) == 4 and chosen(Layout(2, 1, 2), gradient_accumulation=11) == 1
    each = as_one.forward_bytes(TINY, argparse.Namespace(**ARGS), CPU)
    monkeypatch.setattr(as_one, "_BUDGET", 11 * each)
    assert chosen(Layout(1, 1, 2)) == 8, "a divisor of 48"
    monkeypatch.setattr(as_one, "_BUDGET", each - 1)
    assert chosen(Layout(1, 1, 2)) == 1
    for asked, found in (("5", 4), (" 16 ", 16), ("100", 48), ("0", 1), ("few", 1)):  # the last two the runtime refuses
        monkeypatch.setenv(as_one.VARIABLE, asked)
        assert chosen(Layout(1, 1, 2)) == found


def ran(argv):
    """How many micro-batches a run takes as one."""
    run = TrainingRun(parse_train_args(list(map(str, argv))))
    run.compile(next(run.batches()))
    return run.executor._session.runner.as_one.number


def test_a_plan_says_what_the_run_does(tmp_path, monkeypatch):
    """In a process that has two replicas and room for ten micro-batches, and in two processes that share one."""
    write_config(tmp_path)
    args = parse_train_args(list(map(str, flags(tmp_path))))
    each = as_one.forward_bytes(GPT2Config.from_json(args.config), args, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(as_one, "_BUDGET", 10 * each)
        patch.setattr(number, "BUDGET", 10 * each)
        words = {"replication_factor": 2, "gradient_accumulation": 8}
        planned = run_here(flags(tmp_path, compile_only=True, **words))
        assert ran(flags(tmp_path, **words)) == 8
    assert "8 micro-batches of 2 replicas run as one, 2 times a weight update" in planned.out
    words = {"layers_per_ipu": "0 2", "gradient_accumulation": 24}
    planned = run_here(flags(tmp_path, compile_only=True, plan_processes=2, **words))
    assert "2 micro-batches of a replica run as one, 12 times a weight update" in planned.out
    assert "bubble: 7.69% = (2 - 1) / (12 + 2 - 1): 12 times 2 micro-batches through 2 ranks" in planned.out
    done = run_together(2, flags(tmp_path, training_steps=1, **words))
    assert re.findall(r"(\d+) micro-batches run as one", done.err) == ["2"]


@pytest.mark.parametrize("words", [{}, {"recompute_checkpoint_every_layer": True}], ids=["kept", "recomputed"])
def test_what_they_keep_is_what_the_runtime_measures(tmp_path, words):
    """With dropout, of which a CPU keeps nothing: it draws the numbers again."""
    write_config(tmp_path, n_embd=64)
    profile = {"layers_per_ipu": "0 2", "gradient_accumulation": 8, "profile": tmp_path / "plan"}
    done = run_here(flags(tmp_path, training_steps=2, **profile, **words))
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "plan" / "train_gpt2_profile" / "training" / "report.json").read_text())
    rows = {row["what"]: row for row in found["comparison"] if row["by"] == "program"}
    kinds = ["activations", "recomputed"] if words else ["activations"]
    for name in (f"stage 1: {kind}" for kind in kinds):
        assert rows[name]["measured"] > 0
        assert rows[name]["estimated"] == pytest.approx(rows[name]["measured"], rel=0.02), name
