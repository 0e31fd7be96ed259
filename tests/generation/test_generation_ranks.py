"""Processes that hold one model together generate the texts of one process, and the first of them speaks."""

from __future__ import annotations

import json

import pytest
import tiny_checkpoint
from tiny_run import run_together

import text_generate_gpt2

PROGRAM = {"program": "text_generate_gpt2.py"}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Flags for eight texts of two layers on two IPUs, which outgrow the context."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_checkpoint.write(folder)
    (folder / "prompts.txt").write_text("the\na b c\n\nof the sea\n1\n", encoding="utf-8")
    words = {"layers-per-ipu": "1 1", "input-len": 12, "output-len": 40, "num-samples": 2, "batch-size": 3, "seed": 3}
    argv = [word for name, value in words.items() for word in (f"--{name}", *str(value).split())]
    return [*argv, "--model-name-or-path", str(folder / "checkpoint"), "--prompt-file", str(folder / "prompts.txt")]


@pytest.mark.parametrize("how", [[], ["--custom-ops", "false"]])
def test_two_processes_make_the_texts_of_one(asked, how, tmp_path, capsys):
    assert text_generate_gpt2.main([*asked, *how]) == 0
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(alone) == 8 and len({tuple(text["tokens"]) for text in alone}) == 8
    done = run_together(2, [*asked, *how, "--save-samples-path", tmp_path / "texts"], **PROGRAM)
    assert [json.loads(line) for line in done.out.splitlines()] == alone
    assert (tmp_path / "texts").read_text(encoding="utf-8") == done.out
    assert done.err.count("latency avg") == 3 and done.err.count("the context of 32 tokens is full") == 1


def test_what_several_processes_cannot_do_is_refused_before_they_meet(asked, monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    typed = asked[: asked.index("--prompt-file")]
    for argv, problem in (
        ([*asked, "--layers-per-ipu", "2"], "2 processes cannot hold a model on 1 IPU together: start one of 1, or"),
        (typed, "nobody can type for several processes: give --prompt or --prompt-file, or start one"),
    ):
        with pytest.raises(SystemExit) as end:
            text_generate_gpt2.main(argv)
        assert end.value.code == 2 and problem in capsys.readouterr().err
