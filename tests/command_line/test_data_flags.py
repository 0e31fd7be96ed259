"""The flags about corpora, what they must satisfy together and what is refused."""

from __future__ import annotations

import shlex

import pytest

import arguments


@pytest.fixture
def corpora(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.pkl", "b.pkl", "va.pkl", "vb.pkl", "t.txt", "x.json"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def parse(line):
    return arguments.parse_train_args(shlex.split(line))


def test_several_corpora_each_with_a_code_and_a_validation_file(corpora):
    line = "--dataset pickle --input-files a.pkl b.pkl --control-codes Wiki Review --validation-files va.pkl vb.pkl"
    args = parse(f"{line} --eval-steps 5 --keep-best --save-model-path out")
    assert (args.train_path, args.further_paths) == ("a.pkl", ["b.pkl"])
    assert (args.control_codes, args.validation_files) == (["Wiki", "Review"], ["va.pkl", "vb.pkl"])
    one = parse("--train-path t.txt --validation-files va.pkl vb.pkl --early-stopping 1")
    assert (one.train_path, one.further_paths, one.validation_files) == ("t.txt", [], ["va.pkl", "vb.pkl"])


@pytest.mark.parametrize(
    ("line", "stride"), [("", 128), ("--windows stream", None), ("--windows stream --stride 64", 64)]
)
def test_the_stride_of_a_stream_is_left_to_the_data_set(corpora, line, stride):
    args = parse(f"--train-path a.pkl {line}")
    assert args.stride == stride
    assert (args.windows, args.short_articles, args.last_window) == (
        line.split()[1] if line else "article",
        "half",
        "drop",
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--windows stream", "--windows stream: is for --train-path with a .pkl or .txt file, not generated"),
        ("--control-codes a", "--control-codes a: is for --train-path with a .pkl or .txt file"),
        (
            "--train-path a.pkl --short-articles skip --windows stream",
            "--short-articles skip: is for --windows article",
        ),
        ("--train-path a.pkl --last-window pad", "--last-window pad: is for --windows stream, not article"),
        ("--train-path a.pkl --windows lines", "--windows: 'lines' must be one of article, stream, first"),
        ("--train-path a.pkl --control-codes a b", "2 control codes for one data set; give one"),
        ("--dataset pickle --input-files a.pkl b.pkl --control-codes a", "1 control codes for 2 data sets"),
        ("--dataset pickle --input-files a.pkl b.pkl --validation-files va.pkl", "1 validation files for 2 data sets"),
        ("--train-path a.pkl --control-codes a --validation-files va.pkl vb.pkl", "2 validation files for 1 data sets"),
        ("--train-path a.pkl --validation-files va.pkl --val-num 3", "contradicts --val-num 3"),
        ("--train-path a.pkl --validation-files gone.pkl", "--validation-files gone.pkl: there is no such file"),
        ("--train-path a.pkl --validation-files x.json", "--validation-files x.json: neither generated nor a .pkl"),
        ("--dataset pickle --input-files a.pkl gone.pkl", "--input-files gone.pkl: there is no such file"),
        ("--dataset pickle --input-files a.pkl x.json", "must be .pkl files"),
        ("--dataset webdataset", "--dataset webdataset: name the files with --input-files"),
        ("--dataset webdataset --input-files gone.tar", "--input-files gone.tar: there is no such file"),
        (
            "--dataset webdataset --input-files a.pkl --windows first",
            "--windows first: is for --train-path with a .pkl",
        ),
        ("--train-path a.pkl --eval-steps 3", "without --val-num N or --validation-files"),
    ],
)
def test_what_does_not_go_together_is_told_with_the_flag(corpora, capsys, line, told):
    with pytest.raises(SystemExit) as end:
        parse(line)
    assert end.value.code == 2
    assert told in capsys.readouterr().err
