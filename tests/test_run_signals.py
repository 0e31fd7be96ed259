"""SIGTERM to a script alone, or to make, ends what it runs as well; Ctrl-C is left to the command. Nothing stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stubbed_checkout import ROOT, checkout  # noqa: F401

# Stands for a program at work: it ends by a signal with a word, or when its input ends. Other commands succeed at once.
PROGRAM = """
import signal, sys

def terminated(number, frame):
    print("saved", flush=True)
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, terminated)
try:
    print("at work", flush=True)
    sys.stdin.read()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
print("input ended", flush=True)
"""
PYTHON = """#!/bin/sh
case "$*" in
    *"{works}"*) exec "{python}" "{program}" ;;
esac
"""
CORPUS = "demo/corpus/wikicorpus_en_one_article_per_line.pkl"
# The script with its flags, the command that is under way, and files that are there.
SCRIPTS = {
    "demo": ("run/demo.sh", "train_gpt2.py", [CORPUS]),
    "the demo's sample": ("run/demo.sh", "text_generate_gpt2.py", [CORPUS, "demo/checkpoints/epoch_0/config.json"]),
    "the demo's corpus": ("run/demo.sh", "wikipedia_preprocess.py", []),
    "finetune's demo": ("run/finetune.sh --sample", "train_gpt2.py", [CORPUS]),
    "the sample of a recipe": ("run/gpt_star.sh --sample", "train_gpt2.py", [CORPUS]),
    "the data of a recipe": ("run/gpt_star.sh", "data.prepare", ["webtext.jsonl"]),
    "a recipe": ("run/gpt_star.sh --dataset webdataset --input-files a.tar", "train_gpt2.py", []),
    "pretraining": ("run/pretraining_test.sh", "train_gpt2.py", []),
    "evaluation": ("tasks/run_evaluate.sh wiki", "evaluate_wiki.py", []),
    "contexts": ("benchmark.sh --pretrained-checkpoint here", "evaluate_wiki.py", ["here/config.json"]),
    "a download": ("data/wikipedia_download.sh out --sample", "pip download", []),
}


class Started:
    """A command in `root` whose program is at work; what it printed, once it and all that it ran are over."""

    def __init__(self, root: Path, words: list[str], works: str, python: Path) -> None:
        program = root / "program.py"
        program.write_text(PROGRAM)
        python.write_text(PYTHON.format(works=works, python=sys.executable, program=program))
        self.process = subprocess.Popen(
            words,
            cwd=root,
            env={**os.environ, "PYTHON": str(python), "INPUT": "webtext.jsonl"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
        )
        assert any(line == "at work\n" for line in self.process.stdout), "it ended before"

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()  # which ends a program that was left behind
        self.process.stdout.close()

    def over(self) -> tuple[int, list[str]]:
        """The exit status and what was printed since. A program that is left behind says nothing more."""
        status = self.process.wait()
        os.set_blocking(self.process.stdout.fileno(), False)
        return status, (self.process.stdout.read() or "").splitlines()


@pytest.fixture()
def root(checkout: Path) -> Path:  # noqa: F811
    for folder in ("tasks", "data"):
        (checkout / folder).mkdir()
        for script in (ROOT / folder).glob("*.sh"):
            shutil.copy(script, checkout / folder)
    shutil.copy(ROOT / "benchmark.sh", checkout)
    (checkout / "data" / "wikipedia_extract.sh").write_text("true\n")  # has its own way with signals
    return checkout


def start(root: Path, name: str, *before: str) -> Started:
    words, works, files = SCRIPTS[name]
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    if name == "the demo's corpus":
        (root / "data" / "wikipedia_download.sh").write_text("true\n")
    return Started(root, [*before, "bash", *words.split()], works, root / "bin" / "python3")


@pytest.mark.parametrize("name", SCRIPTS)
def test_sigterm_to_a_script_is_its_program_s(root: Path, name: str) -> None:
    with start(root, name) as started:
        started.process.send_signal(signal.SIGTERM)
        status, printed = started.over()
    assert (status, printed[0]) == (143, "saved")
    assert len(printed) == 1, "nothing is begun after that"


@pytest.mark.parametrize("name", ["demo", "finetune's demo", "a recipe", "contexts"])
def test_ctrl_c_is_the_program_s_to_answer(root: Path, name: str) -> None:
    with start(root, name) as started:
        os.killpg(started.process.pid, signal.SIGINT)
        status, printed = started.over()
    assert status != 0 and printed[0] == "interrupted"


def test_sigterm_to_make_ends_the_training_of_the_demo(root: Path) -> None:
    (root / "Makefile").write_text(".PHONY: demo\ndemo:\n\tbash run/demo.sh\n")
    (root / CORPUS).parent.mkdir(parents=True)
    (root / CORPUS).touch()
    with Started(root, ["make", "demo"], "train_gpt2.py", root / "bin" / "python3") as started:
        started.process.send_signal(signal.SIGTERM)
        status, printed = started.over()
    assert status != 0 and "saved" in printed and "== Summary" not in printed


def test_input_reaches_the_program_and_the_script_goes_on(root: Path) -> None:
    with start(root, "demo") as started:
        started.process.stdin.close()
        status, printed = started.over()
    assert status == 0 and printed[0] == "input ended" and "== Summary" in printed
