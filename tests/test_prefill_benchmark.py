"""benchmarks/prefill.py: what a prompt takes, in float32 and half, and its share of a matrix product's speed."""

from __future__ import annotations

import json
from typing import Any

import pytest

import custom_ops
from benchmarks import generate_sides, prefill
from benchmarks.generate import write_checkpoint


class Side:
    """In place of a process: a prompt takes a tenth of a second."""

    started: dict[str, Any] = {}

    def __init__(self, program: str, name: str, settings: Any, device: str) -> None:
        self.half = settings["precision"] == "float16"
        self.started[name] = settings

    def ask(self, request: str) -> dict[str, Any]:
        if request == "product":
            return {"gflops": 400.0 if self.half else 100.0, "type": "bfloat16" if self.half else "float32"}
        return {"seconds": 0.1}

    def close(self) -> None:
        pass


def test_the_figures(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(prefill, "SideProcess", Side)
    Side.started = {}
    words = ["--model", "tiny", "--tokens", "100", "--rounds", "2", "--json", str(tmp_path / "r.json")]
    assert prefill.main(words) == 0
    # 2 layers of 12 x 64^2 weights for each token, 2 products with the 50 positions that are seen on average, a head
    operations = 2 * 2 * 12 * 64 * 64 * 100 + 2 * 2 * 2 * 64 * 100 * 50 + 2 * 64 * 50257
    assert set(Side.started) == {"float32", "half"} and Side.started["half"]["prompt"] == 100
    sides = json.loads((tmp_path / "r.json").read_text())["results"]["sides"]
    for name, product in (("float32", 100.0), ("half", 400.0)):
        assert sides[name]["gflops"] == pytest.approx(operations / 0.1 / 1e9)
        assert sides[name]["share_of_matrix_product"] == pytest.approx(operations / 0.1 / 1e9 / product)
        assert sides[name]["milliseconds"] == 100.0
    assert capsys.readouterr().out.splitlines()[-2].split()[-2:] == ["400.0", "bfloat16"]


def test_the_loop_is_a_side_when_asked_for(monkeypatch):
    monkeypatch.setattr(prefill, "SideProcess", Side)
    Side.started = {}
    assert prefill.main(["--model", "tiny", "--rounds", "1", "--poptorch-loop"]) == 0
    assert [each["way"] for each in Side.started.values()] == ["steps", "steps", "loop", "loop"]


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("way", ["steps", "loop"])
def test_the_sides_read_a_prompt(precision, way, tmp_path):
    write_checkpoint(tmp_path, "tiny")
    settings = dict(side="ours", folder=str(tmp_path), precision=precision, way=way, batch=1, tokens=1, prompt=20)
    answers = generate_sides.requests(settings)
    if way == "steps" and custom_ops.load() != "native":
        with pytest.raises(RuntimeError, match="HINT: run `make`"):
            answers["prefill"]()
    else:
        assert answers["prefill"]()["seconds"] > 0


def test_prompts_that_cannot_be_are_refused(capsys):
    for words in (["--tokens", "1024"], ["--tokens", "0"]):
        with pytest.raises(SystemExit):
            prefill.parse(words)
    assert "--tokens must be at most 1023" in capsys.readouterr().err
