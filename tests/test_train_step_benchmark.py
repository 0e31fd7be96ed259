"""benchmarks/train_step.py and micro_batches.py: updates of several micro-batches, and what sides are started with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import micro_batches, train_step, train_step_sides

SIZES = dict(layers=1, width=32, heads=2, vocabulary=64, length=16, dropout=0.0, device="cpu", threads=1)

# A runtime and an application that know nothing of label counts, as the sides use them: a loss is the number of inputs.
OTHER = {
    "portable/poptorch/__init__.py": """
from unittest.mock import MagicMock
import torch
Options, OutputMode, optim = MagicMock(), MagicMock(), MagicMock()
def trainingModel(model, options, optimizer):
    return lambda *inputs: (torch.full((2,), float(len(inputs))), None)
""",
    "model/__init__.py": "",
    "model/config.py": "GPT2Config = dict",
    "model/gpt2.py": "GPT2LMHeadModel = dict",
    "model/pretraining.py": """
class PretrainingModel:
    def __init__(self, gpt2): pass
    def train(self): return self
    def parameters(self): return []
    def forward(self, input_ids, labels): pass
""",
    "benchmarks/train_step_sides.py": "raise SystemExit('it knows nothing of the settings')",
}


class Side:
    """In place of a process: a step takes a second."""

    started: list[tuple[str, dict[str, Any], dict[str, str]]] = []

    def __init__(self, program: str, name: str, settings: Any, device: str, variables: Any = None) -> None:
        self.seconds = 2.0 if name == "other" else 1.0
        self.started.append((name, settings, variables or {}))

    def ask(self, request: str) -> dict[str, Any]:
        return {"seconds": self.seconds, "gflops": 100.0, "type": "bfloat16", "peak_gb": 1.0, "loss": 2.0}

    def close(self) -> None:
        pass


def losses(side: str, half: bool, batch: int, accumulation: int) -> list[float]:
    """Of three updates with the same samples."""
    settings = dict(SIZES, side=side, half=half, batch=batch, accumulation=accumulation)
    answers = train_step_sides.requests(settings)
    return [answers["step"]() and answers["memory"]()["loss"] for _ in range(3)]


@pytest.mark.parametrize("side", ["ours", "transformers"])
@pytest.mark.parametrize("half", [False, True])
def test_an_update_of_micro_batches_is_that_of_their_batch(side, half, monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_DEVICE", "cpu")
    apart, together, first = (losses(side, half, *sizes) for sizes in ((1, 3), (3, 1), (1, 1)))
    assert apart == pytest.approx(together, rel=1e-3 if half else 1e-6)
    assert apart[0] > apart[1] > apart[2] and abs(apart[0] - first[0]) > 1e-3  # all samples count


def test_another_checkout_brings_its_own_modules(tmp_path):
    for name, text in OTHER.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    args = train_step.parse(["--model", "tiny", "--accumulation", "2", "--threads", "1", "--other", str(tmp_path)])
    side = train_step.start("other", args, 0.0)
    try:
        side.ask("step")
        assert side.ask("memory")["loss"] == 2.0
    finally:
        side.close()


def test_modules_from_elsewhere_are_no_other_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(RuntimeError, match="poptorch is that of .*, not of"):
        train_step_sides.use_checkout(tmp_path)


def test_tokens_of_all_micro_batches_count(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train_step, "SideProcess", Side)
    Side.started = []
    root = str(Path(train_step.__file__).resolve().parents[1])
    words = ["--batch", "2", "--length", "8", "--accumulation", "3", "--rounds", "2", "--dropout", "0.1", "--half"]
    assert train_step.main([*words, "--other", root, "--json", str(tmp_path / "r.json")]) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    (result,) = record["results"]
    assert result["tokens_per_second"] == {"ours": 48.0, "other": 24.0, "transformers": 48.0}
    assert result["times_faster_than"] == {"other": 2.0, "transformers": 1.0} and result["times_faster"] == 1.0
    assert record["settings"]["accumulation"] == 3
    for name, settings, _ in Side.started:
        assert (settings["accumulation"], settings["half"]) == (3, True)
        assert settings.get("checkout") == (root if name == "other" else None)
        assert settings["side"] == ("transformers" if name == "transformers" else "ours")
    assert "gpt2, 3 x 2 x 8 tokens, dropout 0.1: ours, other, transformers" in capsys.readouterr().out


def test_two_checkouts_without_transformers(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train_step, "SideProcess", Side)
    other = ["--sides", "other", "--other", str(Path(train_step.__file__).parents[1]), "--dropout", "0"]
    assert train_step.main([*other, "--json", str(tmp_path / "r.json")]) == 0
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert "times_faster" not in result and result["times_faster_than"] == {"other": 2.0}
    shown = [line.split()[1::4] for line in capsys.readouterr().out.splitlines() if line.startswith("    0.0 ")]
    assert shown == [["ours"], ["other", "2.00"]]


def test_sides_are_left_out():
    there = ["--compile", "--other", str(Path(train_step.__file__).parents[1])]
    assert train_step.sides_of(train_step.parse(there)) == ["ours", "other", "transformers", "compiled"]
    assert train_step.sides_of(train_step.parse([*there, "--sides", "compiled", "ours"])) == ["ours", "compiled"]
    assert train_step.sides_of(train_step.parse(["--sides", "ours"])) == ["ours"]


def test_sides_that_are_not_there_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_step.parse(["--sides", "other", "compiled", "--accumulation", "0"])
    told = capsys.readouterr().err
    assert "--accumulation must be at least 1; --sides other: there is none without --other DIR" in told
    assert "--sides compiled: there is none without --compile" in told
    with pytest.raises(SystemExit):
        train_step.parse(["--other", str(tmp_path)])
    assert "name a checkout of this tree" in capsys.readouterr().err


def test_micro_batches_in_half(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(micro_batches, "SideProcess", Side)
    Side.started = []
    words = ["--half", "--samples", "4", "--length", "8", "--rounds", "1", "--json", str(tmp_path / "r.json")]
    assert micro_batches.main(words) == 0
    found = {name: (row["batch"], row["accumulation"], row["half"], more) for name, row, more in Side.started}
    assert found == {
        "as chosen": (1, 4, True, {}),
        "one at a time": (1, 4, True, {micro_batches.VARIABLE: "1"}),
        "one batch": (4, 1, True, {}),
    }
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["settings"]["half"] and record["results"][0]["tokens_per_second"]["one batch"] == 32.0
    assert "4 samples of 8 tokens, dropout 0.0, half" in capsys.readouterr().out
