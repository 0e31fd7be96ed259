"""benchmarks/evaluate.py: the sides' losses agree as far as their precision goes, and how far is told."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks import evaluate

WORDS = ["--model", "tiny", "--length", "64", "--windows", "1", "--rounds", "1", "--threads", "1"]


def test_half_beside_float32_and_transformers(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "bfloat16")  # emulated, where there are no units for it
    assert evaluate.main([*WORDS, "--half", "--json", str(tmp_path / "r.json")]) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    result = record["results"]
    losses = result["losses"]
    assert record["settings"]["half"] and list(losses) == ["ours", "ours in float32", "transformers"]
    assert losses["ours"] != losses["ours in float32"] == pytest.approx(losses["transformers"], rel=1e-5)
    assert set(result["times_faster_than"]) == {"ours in float32", "transformers"}
    assert "beside ours in float32: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, off, status", [([], 5e-5, 0), ([], 2e-3, 1), (["--half"], 2e-3, 0), (["--half"], 0.01, 1)]
)
def test_sides_that_disagree_end_it(words, off, status, monkeypatch, tmp_path, capsys):
    summed = {"ours": 320.0 * (1 + off), "ours in float32": 320.0, "transformers": 320.0}
    monkeypatch.setattr(evaluate, "sides", lambda args: {name: lambda loss=loss: loss for name, loss in summed.items()})
    assert evaluate.main([*WORDS, *words, "--json", str(tmp_path / "r.json")]) == status
    told = capsys.readouterr()
    if status:
        assert "the sides do not agree" in told.err
        return
    off_by = json.loads((tmp_path / "r.json").read_text())["results"]["perplexity_off_by"]
    expected = math.exp(10 * (1 + off)) / math.exp(10) - 1  # one window of 32 tokens
    assert off_by == pytest.approx({"ours in float32": expected, "transformers": expected})
    assert f"perplexity {expected:+.4%}" in told.out
