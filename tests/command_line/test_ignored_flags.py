"""Flags that have no effect beside others are told, each once and with the reason."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest
import tiny_checkpoint
from tiny_run import flags, write_config, write_corpus

import arguments
import inference_gpt2
from command_line import training_checks
from command_line.training_flags import FORWARD, TRAIN_GROUPS
from tasks import harness, parsing
from training import forward_run

CONFIG = Path(__file__).resolve().parents[2] / "config" / "config_tiny.json"

# What is typed -> the note, and what is typed without one: what the flag is for, or its value that changes nothing.
TRAINING = [
    (
        f"--model gpt2 --config {CONFIG}",
        f"--model gpt2 has no effect beside --config {CONFIG}, which is the model",
        f"--config {CONFIG}",
    ),
    (
        "--auto-loss-scaling True --loss-scaling 1024",
        "--loss-scaling 1024.0 has no effect beside --auto-loss-scaling True, which begins at 1",
        "--auto-loss-scaling False --loss-scaling 1024",
    ),
    (
        "--stride 64",
        "--stride 64 has no effect with --train-path generated, whose samples are drawn one by one",
        "--train-path generated",
    ),
    (
        "--weight-decay-groups gpt-star",
        "--weight-decay-groups gpt-star has no effect with --weight-decay 0.0 (default)",
        "--weight-decay-groups gpt-star --weight-decay 0.1",
    ),
    (
        "--lr-decay-steps 9 --lr-warmup-steps 3",
        "--lr-decay-steps 9 has no effect with --lr-schedule constant and --lr-warmup-steps",
        "--lr-decay-steps 9 --lr-warmup 0.5",  # half of them
    ),
    (
        "--lr-schedule constant --min-learning-rate 1e-6",
        "--min-learning-rate 1e-06 has no effect with --lr-schedule constant, which does not fall",
        "--lr-schedule linear --min-learning-rate 1e-6",
    ),
    (
        "--overwrite --resume latest --save-model-path out",
        "--overwrite True has no effect where --resume latest finds a checkpoint",
        "--overwrite False --resume latest --save-model-path out",
    ),
    (
        "--serialized-seq-len 32",
        "--serialized-seq-len 32 has no effect without --enable-sequence-serialized True",
        "--serialized-seq-len 32 --enable-sequence-serialized",
    ),
]
GENERATION = [
    (f"--topk 1 {flag}", f"{shown} has no effect with --topk 1, which takes the likeliest token", f"--topk 2 {flag}")
    for flag, shown in (
        ("--temperature 0.5", "--temperature 0.5"),
        ("--top-p 0.9", "--top-p 0.9"),
        ("--min-p 0.1", "--min-p 0.1"),
        ("--typical-p 0.9", "--typical-p 0.9"),
        ("--eta-cutoff 0.01", "--eta-cutoff 0.01"),
    )
]
GENERATION.append(
    (
        "--topk 1 --num-samples 3",
        "--num-samples 3 with --topk 1: the texts of a prompt are all the same",
        "--topk 2 --num-samples 3",
    )
)
NO_SLIDING = (
    "has no effect: it is of adjusted, bits-per-byte, bits-per-character, and none of these protocols is computed"
)
EVALUATION = [
    ("--all --task PTB", "--task PTB has no effect beside --all, which takes every task", "--all"),
    (
        "--task PTB --valid-data ptb.txt --data-dir here",
        "--data-dir here has no effect beside --valid-data, which is the file that is read",
        "--task PTB --data-dir here",
    ),
    (
        "--text a.txt --data-dir here",
        "--data-dir here has no effect beside --text, which is the file that is read",
        "--text a.txt",
    ),
    (
        "--protocols token --overlapping-eval 8",
        f"--overlapping-eval 8 {NO_SLIDING}",
        "--protocols token adjusted --overlapping-eval 8",
    ),
    ("--task LAMBADA --eod-mask-loss", f"--eod-mask-loss True {NO_SLIDING}", "--task TEXT8 --eod-mask-loss"),
    (
        "--task PTB --strict-lambada",
        "--strict-lambada True has no effect: it is of LAMBADA's protocol last-word, which is not computed",
        "--task LAMBADA --strict-lambada",
    ),
    (
        "--task LAMBADA --protocols last-bpe --strict-lambada",
        "--strict-lambada True has no effect: it is of LAMBADA's protocol last-word, which is not computed",
        "--all --strict-lambada",
    ),
]


def told(args: argparse.Namespace) -> list[str]:
    return [note for note in args.notes if "no --save-model-path" not in note]


@pytest.mark.parametrize(("typed", "note", "without"), TRAINING)
def test_of_training(typed: str, note: str, without: str) -> None:
    assert told(arguments.parse_train_args(shlex.split(typed))) == [note]
    assert told(arguments.parse_train_args(shlex.split(without))) == []


def test_a_resumed_checkpoint_is_the_one_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here, there = tmp_path / "here", tmp_path / "there"
    args = arguments.parse_train_args(["--pretrained-checkpoint", str(here), "--resume", str(there)])
    assert args.pretrained_checkpoint == str(there)
    assert told(args) == [f"--pretrained-checkpoint {here} has no effect beside --resume {there}"]
    args = arguments.parse_train_args(
        ["--pretrained-checkpoint", str(here), "--resume", "latest", "--save-model-path", str(there)]
    )
    assert told(args) == [], "the weights that the first job of a chain starts from"


@pytest.mark.parametrize(("typed", "note", "without"), GENERATION)
def test_of_generation(typed: str, note: str, without: str) -> None:
    assert arguments.parse_generate_args(shlex.split(typed)).notes == [note]
    assert arguments.parse_generate_args(shlex.split(without)).notes == []
    assert arguments.parse_generate_args(["--topk", "1"]).notes == []


@pytest.mark.parametrize(("typed", "note", "without"), EVALUATION)
def test_of_evaluation(tmp_path: Path, typed: str, note: str, without: str) -> None:
    tiny_checkpoint.write(tmp_path, layers=1)

    def notes(words: str) -> list[str]:
        argv = ["--pretrained-checkpoint", str(tmp_path / "checkpoint"), *shlex.split(words)]
        return parsing.parse_evaluate_args(argv, "tasks/evaluate_wiki.py", "WIKITEXT103").notes

    assert notes(typed) == [note]
    assert notes(without) == []


def test_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It has tasks of its own; whether it is installed is asked for after the flags."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tiny_checkpoint.write(tmp_path, layers=1)
    words = "--tasks piqa --task PTB --overlapping-eval 8 --seq-length 8"
    with pytest.raises(SystemExit):
        harness.main(["--pretrained-checkpoint", str(tmp_path / "checkpoint"), *shlex.split(words)])
    told = capsys.readouterr().out.splitlines()
    assert told == [f"{flag} has no effect in tasks/harness.py" for flag in ("--task PTB", "--overlapping-eval 8")]


def test_of_a_program_without_training() -> None:
    words = "--model gpt2-tiny --max-len 16 --batch-size 2 --learning-rate 0.1 --save-model-path out --dropout 0 "
    words += "--keep-checkpoints 2 --optimizer-state-offchip False --use-wandb False --val-num 0"
    assert told(arguments.parse_train_args(shlex.split(words), "inference_gpt2.py", trains=False)) == [
        f"{flag} has no effect: nothing is trained or saved"
        for flag in ("--save-model-path out", "--keep-checkpoints 2", "--learning-rate 0.1", "--dropout 0.0 0.0 0.0")
    ]


def test_a_program_without_training_reads_no_flag_of_which_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run over a corpus, watched: which attributes it asks for."""
    read = set()

    class Watched(argparse.Namespace):
        def __getattribute__(self, name: str):
            read.add(name)
            return super().__getattribute__(name)

    made = forward_run.ForwardRun
    monkeypatch.setattr(forward_run, "ForwardRun", lambda args: made(Watched(**vars(args))))
    write_config(tmp_path)
    corpus = write_corpus(tmp_path / "corpus.pkl")
    words = flags(tmp_path, train_path=corpus, training_steps=1, gradient_accumulation=None)
    assert inference_gpt2.main([*words, "--global-batch-size", "8"]) == 0
    told = capsys.readouterr().out
    assert "--global-batch-size 8 has no effect: nothing is trained or saved" in told
    flagged = {flag.dest for group in TRAIN_GROUPS.values() for flag in group}
    # Validation files are looked at like the corpora, dropout is set in the model and does nothing there, and the
    # number of processes is held against the batch of a weight update, which is none.
    assert read & flagged - set(FORWARD) <= {"validation_files", "dropout", "global_batch_size"}
    assert {"stride", "seed", "replication_factor", "custom_ops"} <= read


@pytest.fixture(autouse=True)
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_checks, "installed", lambda package: True)
