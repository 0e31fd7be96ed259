"""--flags FILE: words of a command line, JSON, and what run.json holds of an earlier run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import flags, run_here, write_config

import arguments


def refused(capsys: pytest.CaptureFixture[str], argv: list) -> str:
    with pytest.raises(SystemExit) as end:
        arguments.parse_train_args([str(word) for word in argv])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "--max-len 64 --layers-per-ipu 0 6 6  # the pipeline\n--gradient_accumulation=64\n--learning-rate '1e-3'\n",
        '{"max_len": 64, "layers-per-ipu": [0, 6, 6], "gradient_accumulation": 64, "learning_rate": 1e-3}',
    ],
    ids=["words", "json"],
)
def test_a_file_of_flags(tmp_path: Path, text: str) -> None:
    path = tmp_path / "flags"
    path.write_text(text)
    for argv in (["--flags", str(path)], [f"--flags={path}"], ["--epochs", "1", "--flags", str(path)]):
        args = arguments.parse_train_args(argv)
        assert (args.max_len, args.layers_per_ipu, args.gradient_accumulation) == (64, [0, 6, 6], 64)
        assert args.learning_rate == 1e-3 and {"max_len", "learning_rate"} <= args.typed
    assert arguments.parse_train_args(["--max-len", "32", "--flags", str(path)]).max_len == 32, "what is typed wins"


def test_other_programs_take_one_too(tmp_path: Path) -> None:
    path = tmp_path / "flags"
    path.write_text('{"prompt": "--My name is", "stop_token": [".", "!"], "topk": 0, "fp16": true}')
    args = arguments.parse_generate_args(["--flags", str(path)])
    assert (args.prompt, args.stop_token, args.topk, args.fp16) == ("--My name is", [".", "!"], 0, True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("--max-lenn 3", "--max-lenn: unknown flag; did you mean --max-len? (in --flags {path})"),
        ("--max-len 0", "--max-len: '0' must be a whole number of at least 2 (in --flags {path})"),
        ('{"max_len": {"a": 1}}', "--flags {path}: max_len is neither a text, a number"),
        ("{max_len: 3}", "--flags {path}: is not JSON ("),
        ("--config 'a", "--flags {path}: is no list of flags (No closing quotation); check the quotes"),
        ("--flags other", "--flags {path}: names a further file of flags"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_name(tmp_path, capsys, text, told) -> None:
    path = tmp_path / "flags"
    path.write_text(text)
    err = refused(capsys, ["--flags", path])
    assert told.format(path=path) in err and "1 problem" in err


def test_a_slip_in_the_file_is_forgiven_where_the_flag_is_typed(tmp_path: Path) -> None:
    path = tmp_path / "flags"
    path.write_text("--max-len none")
    assert arguments.parse_train_args(["--flags", str(path), "--max-len", "8"]).max_len == 8


def test_run_json_given_back_is_the_same_run(tmp_path: Path) -> None:
    write_config(tmp_path)
    first, second = tmp_path / "first", tmp_path / "second"
    argv = flags(tmp_path, save_model_path=first, training_steps=2, layers_per_ipu="0 2", gradient_accumulation=6)
    assert run_here([*argv, "--matmul-proportion", "0.2", "--async-dataloader=no"]).status == 0
    done = run_here(["--flags", str(first / "run.json"), "--save-model-path", str(second)])
    assert done.status == 0, done.err
    weights = [(folder / "step_2" / "model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]
    before, after = (json.loads((folder / "run.json").read_text())["flags"] for folder in (first, second))
    assert {**before, "save_model_path": str(second)} == after


def test_run_json_of_a_corpus_named_by_input_files(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.pkl"
    corpus.write_bytes(b"")
    args = arguments.parse_train_args(["--dataset", "pickle", "--input-files", str(corpus)])
    path = tmp_path / "run.json"
    typed = sorted(args.typed)
    path.write_text(json.dumps({"flags": {"typed": typed, **{name: getattr(args, name) for name in typed}}}))
    again = arguments.parse_train_args(["--flags", str(path)])
    assert (again.train_path, again.data_prefix) == (str(corpus), [str(corpus)])
