"""Programs beside train_gpt2.py: every problem of a command line in a line, no usage; what to run without libraries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from corpora.program import ProgramParser, reported

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("data.prepare", "data.preprocess_megatron", "data.wikipedia_preprocess", "data.write_into_tfrecord")
MODULES += ("data.baseline", "tokenizer.train")


@pytest.fixture
def parser():
    made = ProgramParser("x.py", "About.")
    made.add_argument("--input", nargs="+", required=True, type=Path, help="files")
    made.add_argument("--output", required=True)
    group = made.add_argument_group("more")
    group.add_argument("--kind", choices=("jsonl", "text"), default="text", help="what")
    group.add_argument("--count", type=int, default=3)
    group.add_argument("--share", nargs="*", type=float, default=[])
    return made


def test_a_default_of_several_choices_is_not_one_word(parser):
    both = ("float32", "bfloat16")
    parser.add_argument("--precisions", nargs="+", choices=both, default=both)
    words = ["--input", "a", "--output", "b"]
    assert parser.parse_args(words).precisions == both
    assert parser.parse_args([*words, "--precisions", "float32"]).precisions == ["float32"]


def problems(parser, capsys, *words):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(list(words))
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and "usage" not in said.err
    return said.err.splitlines()


def test_values(parser):
    args = parser.parse_args("--input a b --output c --count -4 --share 1 2.5 --kind jsonl".split())
    assert vars(args) == {
        "input": [Path("a"), Path("b")], "output": "c", "count": -4, "share": [1.0, 2.5], "kind": "jsonl",
    }  # fmt: skip
    assert parser.parse_args("--input a --output c".split()).kind == "text"


def test_all_problems_at_once(parser, capsys):
    words = "--count many --share 1 half --kind txt --ouput c --input".split()
    assert problems(parser, capsys, *words[:-1], "-9", "loose") == [
        "x.py: 6 problems, nothing was started or written",
        "  --ouput: unknown flag; did you mean --output?",
        "  --input: is needed (files)",
        "  --output: is needed",
        "  --kind: 'txt' must be one of jsonl, text (did you mean text?)",
        "  --count: 'many' must be a whole number",
        "  --share: 'half' must be a number",
    ]
    assert problems(parser, capsys, *words)[1:] == ["  --input: expected at least one argument"]


def test_an_empty_path_is_not_the_current_folder(parser, capsys):
    """As `--output "$OUT"` is where OUT is not set: files came to lie where one stood."""
    told = "  --input: '' must be a path; an empty one may come of a variable that is not set"
    assert problems(parser, capsys, "--input", "a", "", "--output", "b")[1:] == [told]


def test_help_shows_the_choices(parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    assert end.value.code == 0 and "--kind {jsonl,text}" in capsys.readouterr().out


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("as_module", [True, False])
def test_without_the_environment(tmp_path, module, as_module):
    """An interpreter without any library, as before `make setup`: from the flags on, the next command is said."""
    out = tmp_path / "out"
    flags = {
        "data.prepare": ["--input", "README.md", "--source", "text", "--output", out],
        "data.preprocess_megatron": ["--input", "README.md", "--output-prefix", out],
        "data.wikipedia_preprocess": ["--input-file-path", ".", "--output-file-path", out],
        "data.baseline": "--train-path x.pkl --max-len 8 --stride 8 --val-num 1".split(),
        "tokenizer.train": ["--input", "README.md", "--source", "text", "--output", out],
    }.get(module, [])
    program = ["-m", module] if as_module else [module.replace(".", "/") + ".py"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", *program]
    bad = subprocess.run([*command, "--wrong"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert bad.returncode == 2 and "--wrong: unknown flag" in bad.stderr and "usage" not in bad.stderr, bad.stderr
    done = subprocess.run(
        [*command, *map(str, flags)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Run `make setup`" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not out.exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("wikipedia_download.sh", ["out", "--sample"]),
        ("wikipedia_extract.sh", ["dump.xml", "out"]),
        ("evaluation_download.sh", ["out"]),
    ],
)
def test_scripts_without_the_environment(tmp_path, script, words):
    (tmp_path / "dump.xml").write_text("<mediawiki/>", encoding="utf-8")
    python = tmp_path / "python"  # one that has no module and starts nothing
    python.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    name = "none-such" if script == "evaluation_download.sh" else str(python)
    done = subprocess.run(
        ["bash", str(ROOT / "data" / script), *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "Run `make setup`" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    bad = subprocess.run(
        ["bash", str(ROOT / "data" / script), "--wrong"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert bad.returncode == 2 and bad.stderr.startswith(f"{script}: --wrong: unknown flag"), bad.stderr


def test_an_import_that_fails_is_told_by_what_installs_it(capsys):
    def missing(name):
        def work():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return work

    assert reported("x.py", missing("ftfy")) == 2
    assert "pip install -r requirements-corpora.txt" in capsys.readouterr().err
    assert reported("x.py", missing("numpy")) == 2
    assert "Run `make setup`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)]
)
def test_what_a_signal_interrupts_is_told_in_a_line(capsys, number, name, status):
    def work():
        os.kill(os.getpid(), number)

    def with_something_kept():
        try:
            work()
        except KeyboardInterrupt as stop:
            stop.args = ("half is kept in x",)
            raise

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert reported("x.py", work) == reported("x.py", with_something_kept) == reported("x.py", work, False) == status
    assert capsys.readouterr().err.splitlines() == [
        f"x.py: {name}: interrupted; the same command goes on",
        f"x.py: {name}: interrupted; half is kept in x; the same command goes on",
        f"x.py: {name}: interrupted, nothing written; the same command begins again",
    ]
    signal.signal(signal.SIGTERM, handlers[1])
    assert signal.getsignal(signal.SIGINT) == handlers[0]
