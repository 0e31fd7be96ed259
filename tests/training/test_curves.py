"""python -m training.log.curves: one run's picture drawn anew, several over each other, and a line for each."""

from __future__ import annotations

import json
import sys

import pytest

from training.log import curves


def run_folder(path, losses, held_out, speed=2.0):
    """A folder with the curves of a run of 100 tokens a step."""
    path.mkdir(parents=True)
    file = curves.CurveFile(path / "curves.csv", 0)
    file.add({"step": 0, "tokens": 0, "validation_loss": held_out[0]})
    for step, loss in enumerate(losses, 1):
        file.add({"step": step, "tokens": 100 * step, "loss": loss, "samples_per_second": speed})
    file.add({"step": len(losses), "tokens": 100 * len(losses), "validation_loss": held_out[1]})
    file.close()
    (path / "run.json").write_text(json.dumps({"flags": {"max_len": 128}}))
    return path


@pytest.fixture
def plotted(monkeypatch):
    """What is drawn above: (label, points)."""
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    found = []
    plot, axhline = Axes.plot, Axes.axhline

    def noted(self, x, y, **rest):
        if "label" in rest:
            found.append((rest["label"], list(zip(x, y))))
        return plot(self, x, y, **rest)

    def level(self, y, **rest):
        found.append((rest["label"], y))
        return axhline(self, y, **rest)

    monkeypatch.setattr(Axes, "plot", noted)
    monkeypatch.setattr(Axes, "axhline", level)
    return found


def test_one_run(tmp_path, capsys, plotted):
    run = run_folder(tmp_path / "run", [4.0, 3.5, 3.0], (4.5, 3.25))
    assert curves.main([str(run), "--line", "unigram=3.75"]) == 0
    assert plotted == [
        ("training", [(1, 4.0), (2, 3.5), (3, 3.0)]),
        ("held out", [(0, 4.5), (3, 3.25)]),
        ("unigram (3.7500)", 3.75),
    ]
    said = capsys.readouterr().out.splitlines()
    told = "3 steps, 300 tokens, 256 tokens/sec, held-out loss 4.5000 before, 3.2500 after"
    assert said == [f"{run / 'curves.csv'}: {told}", f"curves: {run / 'curves.png'}"]
    assert (run / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(run.glob(".*"))


def test_several_runs_over_each_other(tmp_path, capsys, plotted):
    runs = [run_folder(tmp_path / name / "save", [4.0 - n, 3.0 - n], (5.0, 3.0)) for n, name in enumerate("ab")]
    assert curves.main([*map(str, runs), "--output", str(tmp_path / "both.png")]) == 0
    labels = [label for label, _ in plotted]
    assert labels == ["a/save, training", "a/save, held out", "b/save, training", "b/save, held out"]
    assert (tmp_path / "both.png").exists() and not (runs[0] / "curves.png").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none"], "RUN none: cannot be read (No such file or directory)"),
        (["run", "bad.csv", "--output", "x.png"], "RUN bad.csv:1: needs the columns step and loss"),
        (["run", "run"], "--output: name the picture of several runs"),
        (["run", "--line", "seven"], "--line seven: give NAME=LOSS"),
        (["run", "--output", "no/such/folder.png"], "--output no/such/folder.png: cannot be written"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, arguments, told):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "run", [1.0], (1.0, 1.0))
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        curves.main(arguments)
    assert stop.value.code == 2 and told in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_without_matplotlib_the_figures_are_told_and_a_picture_asked_for_is_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = str(run_folder(tmp_path / "run", [1.0], (1.0, 1.0)))
    for words, status in (([], 0), (["--output", str(tmp_path / "a.png")], 2)):
        assert curves.main([run, *words]) == status
        said = capsys.readouterr()
        assert said.out.startswith(f"{run}/curves.csv: 1 step") and said.out.count("\n") == 1
        picture = words[1] if words else f"{run}/curves.png"
        assert f"no picture {picture}: matplotlib is not installed; pip install -r requirements-plots.txt" in said.err
