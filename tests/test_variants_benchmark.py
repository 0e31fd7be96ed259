"""benchmarks/variants.py: variants in the size of the plain model, and their operations a second within a round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from poptorch.openmp import DECIDED

from benchmarks import variants
from model.config import MODELS
from training.log.machine import flops_per_token

TINY = ["--model", "tiny", "--length", "64"]


class Side:
    """In place of a process: a step takes so many seconds."""

    asked: list[str] = []

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds

    def ask(self, request: str) -> dict[str, Any]:
        if request == "memory":
            return {"peak_gb": 1.0, "loss": 2.0}
        self.asked.append(self.name)
        return {"seconds": self.seconds, "processor_seconds": 3 * self.seconds}

    def close(self) -> None:
        self.asked.append(f"{self.name} ended")


def test_a_variant_has_the_size_of_the_plain_model():
    args = variants.parse(["--dropout", "0.1"])
    plain = variants.plain_model(args)
    for name in variants.SYSTEMS:
        config = variants.variant_of(plain, name)
        for field in ("n_layer", "n_embd", "n_head", "inner_size", "vocab_size", "real_vocab_size", "attn_pdrop"):
            assert getattr(config, field) == getattr(plain, field), (name, field)
        named = json.loads(MODELS[name].read_text(encoding="utf-8"))
        assert set(config.variant) >= set(named.get("variant", {})) - {"activation_function"}
    changed = variants.variant_of(plain, "parallel_residual=true,n_head=6,position_embedding=alibi")
    assert (changed.parallel_residual, changed.n_head, changed.position_embedding) == (True, 6, "alibi")


def test_all_kinds_of_the_documentation_are_among_them():
    plain = variants.plain_model(variants.parse(TINY))
    fields = {name for each in variants.SYSTEMS for name in variants.variant_of(plain, each).variant}
    assert fields == {
        *("norm_position", "final_norm", "attention_bias", "parallel_residual", "share_layers", "position_embedding"),
        *("embedding_size", "embedding_norm", "scale_embedding", "padding_id"),
    }


def test_the_figure_counts_operations_within_a_round(monkeypatch, tmp_path, capsys):
    seconds = {"plain": 1.0, "algpt2": 0.5, "parallel_residual=true": 1.25}
    monkeypatch.setattr(variants, "start", lambda name, config, args: Side(name, seconds[name]))
    Side.asked = []
    words = [*TINY, "--variants", "algpt2", "parallel_residual=true", "--rounds", "2", "--batch", "1"]
    assert variants.main([*words, "--json", str(tmp_path / "r.json")]) == 0
    expected = []
    for name in ("algpt2", "parallel_residual=true"):
        expected += [name, "plain", "plain", name, f"{name} ended"]
    assert Side.asked == [*expected, "plain ended"]
    plain = variants.plain_model(variants.parse(words))
    share = flops_per_token(variants.variant_of(plain, "algpt2"), 64) / flops_per_token(plain, 64)
    written = json.loads((tmp_path / "r.json").read_text())
    found, parallel = written["results"]
    assert share < 1 and found["operations_a_token_to_plain"] == share and found["tokens_to_plain"] == 2.0
    assert found["operations_a_second_to_plain"] == pytest.approx(2 * share)
    assert found["by_processor_time"] == pytest.approx(2 * share)
    assert found["tokens_per_second"] == {"variant": 128.0, "plain": 64.0}
    assert parallel["operations_a_second_to_plain"] == 0.8 and written["settings"]["rounds"] == 2
    told = capsys.readouterr().out.splitlines()
    assert told[-2].endswith("parallel_residual=true (0.800)") and told[-2].startswith("below 97% of the plain model's")


def test_what_is_no_variant_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        variants.parse([*TINY, "--variants", "algpt9", "embedding_size=65", "parallel=true", "--rounds", "0"])
    assert end.value.code == 2 and "--rounds must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        variants.parse([*TINY, "--variants", "algpt9", "embedding_size=65", "parallel=true"])
    told = capsys.readouterr().err
    assert "--variants algpt9: is no name of --model" in told and "--variants parallel=true: is no name" in told
    assert "--variants embedding_size=65: the model configuration is not valid" in told


def test_the_threads_of_all_sides_wait_alike():
    """How OpenMP's threads wait at barriers is told to sides by their environment."""
    code = """
import os
from benchmarks import variants

class Side:
    def __init__(self, name, config, args):
        print(name, os.environ.get("GOMP_SPINCOUNT"), flush=True)

    def ask(self, request):
        return {"peak_gb": 1.0, "loss": 2.0} if request == "memory" else {"seconds": 1.0, "processor_seconds": 1.0}

    def close(self):
        pass

variants.start = Side
variants.main(["--model", "tiny", "--rounds", "1", "--variants", "algpt2", "tfchat-preln"])
"""
    environment = {name: value for name, value in os.environ.items() if name not in DECIDED}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    told = [line.split() for line in done.stdout.splitlines() if len(line.split()) == 2]
    assert told == [["plain", "1000"], ["algpt2", "1000"], ["tfchat-preln", "1000"]]
