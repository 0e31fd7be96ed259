"""tasks/compare.py: several checkpoints side by side."""

import pytest
import tiny_checkpoint

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
    assert picture is None or picture.read_bytes()[:4] == b"\x89PNG"


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
