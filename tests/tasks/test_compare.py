"""tasks/compare.py: several checkpoints side by side."""

import sys
from pathlib import Path

import pytest
import tiny_checkpoint
import torch
import transformers

from model.checkpoint import save_pretrained
from model.convert.__main__ import main as convert
from tasks import compare


def test_two_checkpoints_side_by_side(tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 1)):
        tiny_checkpoint.write(tmp_path / name, layers=1 + seed, seed=seed)
    checkpoints = [str(tmp_path / name / "checkpoint") for name in ("a", "b")]
    data = tmp_path / "a" / "data" / "wikitext-103" / "wiki.test.tokens"
    picture = tmp_path / "compared.png"
    words = [*checkpoints, "--valid-data", str(data), "--protocols", "token", "--batch-size", "4"]
    try:
        import matplotlib  # noqa: F401

        words += ["--png", str(picture)]
    except ModuleNotFoundError:
        picture = None
    assert compare.main(words) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "ppl (token, wiki.test.tokens, T 32)" in head
    values = [float(row.split()[-1]) for row in rows[:2]]
    assert sorted(row.split()[0] for row in rows[:2]) == checkpoints and values == sorted(values)
    exported = [transformers.GPT2LMHeadModel.from_pretrained(checkpoint) for checkpoint in checkpoints]
    assert sorted(row.split()[1] for row in rows[:2]) == sorted(f"{model.num_parameters():,}" for model in exported)
    assert picture is None or picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
def test_a_picture_without_room_is_told_as_such(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    tiny_checkpoint.write(tmp_path, layers=1)
    checkpoint, data = str(tmp_path / "checkpoint"), tmp_path / "data" / "wikitext-103" / "wiki.test.tokens"
    with pytest.raises(SystemExit) as stop:
        compare.main([checkpoint, checkpoint, "--valid-data", str(data), "--protocols", "token", "--png", "/dev/full"])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out.count(f"{checkpoint} ") == 2
    told = "--png /dev/full: cannot be written (No space left on device); the figures are those above"
    assert said.err.splitlines()[-1] == f"tasks/compare.py: {told}" and "nothing was started" not in said.err


def test_windows_of_different_lengths_are_told(tmp_path, capsys):
    for name, positions in (("a", 32), ("b", 16)):
        tiny_checkpoint.write(tmp_path / name, positions, layers=1)
    data = tmp_path / "a" / "data" / "wikitext-103" / "wiki.test.tokens"
    words = [*(str(tmp_path / name / "checkpoint") for name in ("a", "b")), "--valid-data", str(data)]
    assert compare.main([*words, "--protocols", "token"]) == 0
    assert "wiki.test.tokens, T 32, 16: --seq-length N compares at one)" in capsys.readouterr().out
    assert compare.main([*words, "--protocols", "token", "--seq-length", "16"]) == 0
    assert "wiki.test.tokens, T 16)" in capsys.readouterr().out


def test_files_and_runs_of_other_formats(tmp_path, capsys):
    """A GGUF file, the folder of a run and a Hugging Face folder of one model have one figure."""
    tiny_checkpoint.write(tmp_path / "run", layers=1)
    folder = tmp_path / "run" / "checkpoint"
    file = tmp_path / "model.gguf"
    assert convert([str(folder), str(file), "--to", "gguf"]) == 0
    capsys.readouterr()
    named = [str(folder), str(file), str(tmp_path / "run")]
    data = tmp_path / "run" / "data" / "wikitext-103" / "wiki.test.tokens"
    words = ["--valid-data", str(data), "--protocols", "token", "--batch-size", "4"]
    assert compare.main([*named, *words]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()[1:]]
    assert sorted(row[0] for row in rows) == sorted(named) and len({tuple(row[1:]) for row in rows}) == 1
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SystemExit) as end:
        compare.main([*named, *words])
    said = capsys.readouterr()
    assert end.value.code == 2 and f"{file}: ends within the tensor" in said.err and said.out == ""


def test_steps_of_one_run_are_drawn_over_their_steps():
    points = [compare.Point(f"save/step_{n}", 10, compare.step_of(f"save/step_{n}"), 2.0) for n in (5, 10)]
    assert compare.axis(points) == "step" and [point.step for point in points] == [5, 10]
    assert (
        compare.axis([*points, compare.Point("save/epoch_0", 10, compare.step_of("save/epoch_0"), 1.0)]) == "parameters"
    )


def test_one_checkpoint_is_not_compared(capsys):
    with pytest.raises(SystemExit) as end:
        compare.main(["one"])
    assert end.value.code == 2 and "name two checkpoints" in capsys.readouterr().err


def test_every_checkpoint_and_the_picture_are_looked_at_before_anything_is_done(tmp_path, capsys):
    tiny_checkpoint.write(tmp_path / "a")
    there, absent = str(tmp_path / "a" / "checkpoint"), str(tmp_path / "absent" / "checkpoint")
    for words, said in (
        ([there, absent], f"--pretrained-checkpoint {absent}: there is no such folder"),
        ([there, there, "--png", str(tmp_path / "no" / "a.png")], "its folder does not exist"),
        ([there, there, "--all"], "--all: one task is compared"),
    ):
        with pytest.raises(SystemExit) as end:
            compare.main([*words, "--data-dir", str(tmp_path / "a" / "data")])
        captured = capsys.readouterr()
        assert end.value.code == 2 and said in captured.err and captured.out == "", captured.err


@pytest.mark.parametrize(
    ("words", "measure"),
    [(["--task", "ENWIK8"], "bits per byte (bits-per-byte"), (["--task", "LAMBADA"], "ppl (last-bpe")],
)
def test_a_task_without_the_adjusted_protocol(tmp_path, capsys, words, measure):
    tiny_checkpoint.write(tmp_path, layers=1)
    name = "lambada_test.jsonl" if "LAMBADA" in words else "wikitext-103/wiki.test.raw"
    checkpoint = str(tmp_path / "checkpoint")
    assert compare.main([checkpoint, checkpoint, *words, "--valid-data", str(tmp_path / "data" / name)]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert measure in head and first == second


def test_a_picture_that_cannot_be_drawn_is_told_before_anything_is_evaluated(tmp_path, monkeypatch, capsys):
    tiny_checkpoint.write(tmp_path, layers=1)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(compare, "evaluate", None)
    words = ["--data-dir", str(tmp_path / "data"), "--png", str(tmp_path / "a.png")]
    with pytest.raises(SystemExit) as end:
        compare.main([str(tmp_path / "checkpoint")] * 2 + words)
    assert end.value.code == 2 and "pip install -r requirements-plots.txt, or leave" in capsys.readouterr().err


def test_what_is_not_looked_at_is_told_once(tmp_path, capsys):
    tiny_checkpoint.write(tmp_path, layers=1)
    checkpoint, file = str(tmp_path / "checkpoint"), str(tmp_path / "data" / "lambada_test.jsonl")
    words = ["--task", "LAMBADA", "--valid-data", file, "--protocols", "last-word", "last-bpe", "--json", "a.json"]
    assert compare.main([checkpoint, checkpoint, *words]) == 0
    written, protocols, head, *_ = capsys.readouterr().out.splitlines()
    assert written == "--json a.json has no effect in tasks/compare.py"
    assert protocols == "--protocols last-word last-bpe: the first one is compared" and "(last-word" in head


def test_names_in_the_picture_differ():
    assert compare.short_names(["a/step_1", "a/step_2"]) == ["step_1", "step_2"]
    assert compare.short_names(["runs/a/step_1", "runs/b/step_1"]) == ["a/step_1", "b/step_1"]
    assert compare.short_names(["a", "a"]) == ["a", "a"]


def test_a_checkpoint_that_is_not_finite_comes_last_and_is_named(tmp_path, capsys):
    gpt2 = tiny_checkpoint.write(tmp_path)
    broken = tmp_path / "broken"
    with torch.no_grad():
        gpt2.transformer.h[0].ln_1.bias[0] = float("nan")
    save_pretrained(gpt2, broken)
    (broken / "tokenizer.json").write_bytes((tmp_path / "checkpoint" / "tokenizer.json").read_bytes())
    data = tmp_path / "data" / "wikitext-103" / "wiki.test.tokens"
    words = [str(broken), str(tmp_path / "checkpoint"), "--valid-data", str(data), "--protocols", "token"]
    assert compare.main(words) == 1
    captured = capsys.readouterr()
    _, first, last = captured.out.splitlines()
    assert first.startswith(str(tmp_path / "checkpoint")) and last.startswith(str(broken)) and last.endswith(" nan")
    assert f"{broken}: " in captured.err and "transformer.h.0.ln_1" in captured.err
