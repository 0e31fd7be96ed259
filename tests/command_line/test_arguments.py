"""The command line of train_gpt2.py and text_generate_gpt2.py: every flag, every refusal, no side effect."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import arguments
from command_line import checks, training_checks
from command_line.flags import select
from command_line.training_flags import BATCH
from model import pipeline
from training import arithmetic

ROOT = Path(__file__).resolve().parents[2]

# attribute, spellings, default, a value to type, what it becomes, further flags it needs
FLAGS = [
    ("model", "--model", "gpt2", "gpt2-medium", "gpt2-medium", ""),
    ("max_len", "--max-len", 128, "64", 64, ""),
    ("pretrained_checkpoint", "--pretrained-checkpoint --checkpoint-input-dir", "", "gpt2-xl", "gpt2-xl", ""),
    ("save_model_path", "--save-model-path --checkpoint-output-dir", None, "out", "out", ""),
    ("save_per_epochs", "--save-per-epochs", 1, "3", 3, "--save-model-path out"),
    ("save_per_steps", "--save-per-steps", None, "100", 100, "--save-model-path out"),
    ("keep_checkpoints", "--keep-checkpoints", 0, "2", 2, "--save-model-path out"),
    (
        "resume_training_from_checkpoint",
        "--resume-training-from-checkpoint",
        False,
        "true",
        True,
        f"--pretrained-checkpoint {shlex.quote(str(ROOT))}",
    ),
    ("keep_best", "--keep-best", False, "true", True, "--save-model-path out --val-num 4"),
    ("on_save_error", "--on-save-error", "stop", "continue", "continue", "--save-model-path out"),
    ("resume", "--resume", None, "latest", "latest", "--save-model-path out"),
    ("overwrite", "--overwrite", False, "True", True, "--save-model-path out"),
    ("train_path", "--train-path --dataset", "generated", "generated", "generated", ""),
    ("sample_order", "--sample-order", "megatron", "reference", "reference", ""),
    ("enable_sequence_serialized", "--enable-sequence-serialized", False, "True", True, ""),
    ("serialized_seq_len", "--serialized-seq-len", 128, "32", 32, "--enable-sequence-serialized"),
    ("stride", "--stride", 128, "1024", 1024, ""),
    ("document_boundaries", "--document-boundaries", "stream", "isolated", "isolated", ""),
    ("val_num", "--val-num", 0, "50", 50, ""),
    ("seed", "--seed", 1234, "7", 7, ""),
    ("num_workers", "--num-workers", 4, "0", 0, ""),
    ("async_dataloader", "--async-dataloader", False, "false", False, ""),
    ("epochs", "--epochs", 1, "20", 20, ""),
    ("training_steps", "--training-steps", 10000, "5", 5, ""),
    ("time_limit", "--time-limit", None, "4h", 14400.0, "--save-model-path out"),
    ("batch_size", "--batch-size", 1, "8", 8, ""),
    ("gradient_accumulation", "--gradient-accumulation", 1, "2048", 2048, ""),
    ("device_iterations", "--device-iterations", 4, "1", 1, ""),
    ("replication_factor", "--replication-factor", 1, "16", 16, ""),
    ("optimizer", "--optimizer", "AdamW", "LAMBNoBiasCorrection", "LAMBNoBiasCorrection", ""),
    ("weight_decay", "--weight-decay", 0.0, "0.01", 0.01, ""),
    ("learning_rate", "--learning-rate", 1e-5, "1.5e-4", 0.00015, ""),
    ("global_batch_size", "--global-batch-size", None, "64", 64, "--batch-size 4 --replication-factor 2"),
    ("min_learning_rate", "--min-learning-rate", 0.0, "1e-6", 1e-6, "--lr-schedule cosine"),
    ("adam_betas", "--adam-betas", [0.9, 0.999], "0.9 0.95", [0.9, 0.95], ""),
    ("adam_epsilon", "--adam-epsilon", 1e-6, "1e-8", 1e-8, ""),
    ("gradient_clipping", "--gradient-clipping", None, "1.0", 1.0, ""),
    ("tensor_gradient_clipping", "--tensor-gradient-clipping", None, "1.0", 1.0, ""),
    ("sgd_momentum", "--sgd-momentum", 0.9, "0.5", 0.5, "--optimizer SGD"),
    ("weight_decay_groups", "--weight-decay-groups", "matrices", "gpt-star", "gpt-star", ""),
    ("sequence_warmup", "--sequence-warmup", None, "32 64", [32, 64], "--sequence-warmup-steps 5"),
    ("sequence_warmup_steps", "--sequence-warmup-steps", None, "5", 5, "--sequence-warmup 32"),
    ("early_stopping", "--early-stopping", None, "2", 2, "--val-num 8"),
    ("dropout", "--dropout", None, "0.2", [0.2, 0.2, 0.2], ""),
    ("loss_scaling", "--loss-scaling", 50000.0, "1024", 1024.0, ""),
    ("auto_loss_scaling", "--auto-loss-scaling", False, "no", False, ""),
    ("lr_schedule", "--lr-schedule", "constant", "cosine", "cosine", ""),
    ("lr_warmup", "--lr-warmup", 0.1, "0.01", 0.01, ""),
    ("lr_warmup_steps", "--lr-warmup-steps", None, "10", 10, ""),
    ("lr_decay_steps", "--lr-decay-steps", None, "1000", 1000, ""),
    ("eval_steps", "--eval-steps", None, "5", 5, "--val-num 8"),
    ("log_steps", "--log-steps", 1, "10", 10, ""),
    ("log_dir", "--log-dir", None, "runs", "runs", ""),
    ("use_wandb", "--use-wandb", False, "on", True, ""),
    ("log_gradient_norm", "--log-gradient-norm", False, "on", True, "--save-model-path out"),
    ("reference_curve", "--reference-curve", None, str(ROOT / "README.md"), str(ROOT / "README.md"), ""),
    ("peak_tflops", "--peak-tflops", None, "989", 989.0, ""),
    ("profile", "--profile", None, "runs", "runs/train_gpt2_profile", ""),
    ("layers_per_ipu", "--layers-per-ipu", [12], "0 6 6", [0, 6, 6], "--gradient-accumulation 64"),
    ("ipus_per_replica", "--ipus-per-replica", 1, "2", 2, "--layers-per-ipu 6 --gradient-accumulation 64"),
    ("matmul_proportion", "--matmul-proportion", None, "0.15", [0.15], ""),
    ("recompute_checkpoint_every_layer", "--recompute-checkpoint-every-layer", False, "True", True, ""),
    ("recompute_checkpoint_layers", "--recompute-checkpoint-layers", [], "3 1", [1, 3], ""),
    ("embedding_serialization_factor", "--embedding-serialization-factor", 1, "4", 4, ""),
    ("remap_logit", "--remap-logit", False, "True", True, ""),
    ("optimizer_state_offchip", "--optimizer-state-offchip", True, "False", False, ""),
    ("replicated_tensor_sharding", "--replicated-tensor-sharding", False, "True", True, ""),
    ("enable_half_partials", "--enable-half-partials", False, "True", True, ""),
    ("custom_ops", "--custom-ops", True, "False", False, ""),
    ("executable_cache_dir", "--executable-cache-dir", None, "cache", "cache", ""),
    ("compile_only", "--compile-only", False, "True", True, ""),
    ("plan_processes", "--plan-processes", None, "4", 4, "--compile-only --replication-factor 8"),
    ("plan_device", "--plan-device", None, "ipu", "ipu", "--compile-only"),
]
SPELLINGS = [
    pytest.param(spelling, flag, id=spelling)
    for flag in FLAGS
    for old_or_new in flag[1].split()
    for spelling in (old_or_new, "--" + old_or_new[2:].replace("-", "_"))
]
BOOLEANS = [flag[0] for flag in FLAGS if isinstance(flag[2], bool)]


@pytest.fixture(autouse=True)
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard and W&B need not be there for these tests."""
    monkeypatch.setattr(training_checks, "installed", lambda package: True)


def parse(line: str = "") -> object:
    return arguments.parse_train_args(shlex.split(line))


def refusal(capsys: pytest.CaptureFixture[str], line: str, parse=arguments.parse_train_args) -> list[str]:
    """The problems reported for a command line, one an entry."""
    with pytest.raises(SystemExit) as end:
        parse(shlex.split(line))
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    head, *problems = captured.err.splitlines()
    assert f"{len(problems)} problem" in head
    assert all(problem.startswith("  --") or problem.startswith("  '") for problem in problems), captured.err
    return [problem.strip() for problem in problems]


# ---- What is accepted --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spelling", "flag"), SPELLINGS)
def test_every_flag_in_both_spellings_and_with_underscores(spelling: str, flag: tuple) -> None:
    dest, _, default, typed, expected, further = flag
    for line in [f"{spelling} {typed}"] + ([f"{spelling}={typed}"] if " " not in typed else []):
        args = parse(f"{further} {line}")
        assert getattr(args, dest) == expected
        assert type(getattr(args, dest)) is type(expected)
        assert dest in args.typed
    assert getattr(parse(), dest) == default
    assert dest not in parse().typed


def test_megatron_s_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = tmp_path / "my-gpt2_text_document"
    for line in (f"--train-path dynamic --data-prefix {prefix}", f"--dataset mmap --input-files {prefix}"):
        (missing,) = refusal(capsys, line)
        assert missing.startswith(
            f"{line.split()[2]} {prefix}: there is no {prefix}.bin and no {prefix}.idx; data/prep"
        )
    for ending in (".bin", ".idx"):
        prefix.with_name(prefix.name + ending).touch()
    for line in (f"--train-path dynamic --data-prefix {prefix}", f"--dataset mmap --input-files {prefix}"):
        args = parse(line + " --stride 64")
        assert (args.train_path, args.data_prefix) == ("dynamic", [str(prefix)])
        assert "--stride 64 has no effect: samples follow one another without overlap" in args.notes
    notes = parse("--sample-order reference").notes
    assert "--sample-order reference has no effect: it is for --train-path dynamic" in notes
    for line, message in [
        ("--train-path dynamic", "--train-path dynamic: name the data with --data-prefix"),
        (f"--train-path dynamic --data-prefix {prefix}.bin", f".bin: leave the ending out: {prefix}"),
        (f"--train-path mmap --data-prefix {prefix} {prefix}", "takes one prefix"),
        (f"--data-prefix {prefix}", "is read with --train-path dynamic"),
        (f"--train-path dynamic --data-prefix {prefix} --sample-order other", "one of megatron, reference"),
    ]:
        (problem,) = refusal(capsys, line)
        assert message in problem


def test_the_parser_has_these_flags_and_no_others() -> None:
    parser = arguments.Parser("train_gpt2.py", "", arguments.TRAIN_GROUPS)
    known = {dest: set(flag.names) for dest, flag in parser.flags.items()}
    expected = {flag[0]: set(flag[1].split()) for flag in FLAGS}
    expected.update(config={"--config"}, tfrecord_path={"--tfrecord-path"}, flags={"--flags"})
    expected.update(data_prefix={"--data-prefix", "--input-files"})
    # test_data_flags.py has those that need a file
    for dest in ("windows", "short_articles", "last_window", "control_codes", "validation_files"):
        expected[dest] = {"--" + dest.replace("_", "-")}
    assert known == expected


@pytest.mark.parametrize("dest", [d for d in BOOLEANS if d != "log_gradient_norm"])
def test_booleans(dest: str) -> None:
    flag = "--" + dest.replace("_", "-")
    further = f"--pretrained-checkpoint {shlex.quote(str(ROOT))} --save-model-path out --val-num 1 "
    for text in ("True", "true", "1", "yes", "on", "TRUE"):
        assert getattr(parse(f"{further} {flag} {text}"), dest) is True
    for text in ("False", "false", "0", "no", "off"):
        assert getattr(parse(f"{further} {flag} {text}"), dest) is False
    assert getattr(parse(further + flag), dest) is True
    assert getattr(parse(f"{further} {flag} --max-len 256"), dest) is True


def test_the_last_one_wins() -> None:
    args = parse("--epochs 3 --layers-per-ipu 0 4 4 4 --dataset a.pkl --epochs 5 --layers-per-ipu 12 "
                 "--ipus_per_replica 1 --train-path generated --epochs=7 --batch-size x --batch-size 2")  # fmt: skip
    assert (args.epochs, args.layers_per_ipu, args.train_path, args.batch_size) == (7, [12], "generated", 2)


def test_model_stands_for_a_file_in_config_and_config_wins(tmp_path: Path) -> None:
    for model in ("gpt2-test", "gpt2-tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        args = parse(f"--model {model}")
        assert sum(args.layers_per_ipu) == json.loads(Path(args.config).read_text())["n_layer"]
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"n_layer": 3, "n_embd": 12, "n_head": 3, "vocab_size": 96}))
    args = parse(f"--model gpt2-xl --config {mine} --embedding-serialization-factor 3")
    assert (args.config, args.layers_per_ipu) == (str(mine), [3])
    assert not any(str(mine) in note for note in args.notes if "has no effect" not in note)
    mine.write_text(json.dumps({"n_layer": 3, "comment": "the model of a test"}))
    notes = parse(f"--config {mine}").notes
    assert f"--config {mine}: comment is no field of the model, which passes over what it does not know" in notes


def test_an_empty_path_is_told(capsys) -> None:
    """As `--config "$CONFIG"` is where CONFIG is not set: another model was trained than the one that was meant."""
    assert parse("--pretrained-checkpoint ''").pretrained_checkpoint == ""  # the reference application's for none
    told = "--config: '' must be a path; an empty one may come of a variable that is not set"
    assert told in refusal(capsys, "--config ''")


def test_a_config_with_a_misspelt_field_is_refused(tmp_path: Path, capsys) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"n_layers": 3, "n_embd": 12}))
    with pytest.raises(SystemExit) as ended:
        parse(f"--config {mine}")
    told = f"  --config: {mine}: n_layers: the model has no such field; did you mean n_layer?"
    assert ended.value.code == 2 and told in capsys.readouterr().err.splitlines()


def test_bytes_that_are_no_text_are_one_problem(capsys) -> None:
    """They were five, one of which was all of the bytes."""
    with pytest.raises(UnicodeDecodeError) as caught:
        (b"a" * 1000 + b"\xff").decode()
    with pytest.raises(SystemExit) as ended:
        checks.give_up("program.py", caught.value)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.splitlines() == [
        "program.py: 1 problem, nothing was started or written",
        "  'utf-8' codec can't decode byte 0xff in position 1000: invalid start byte",
    ]


def test_one_number_means_the_same_on_each_ipu() -> None:
    args = parse("--layers-per-ipu 3 --matmul-proportion 0.2 --gradient-accumulation 16")
    assert (args.layers_per_ipu, args.ipus_per_replica) == ([3, 3, 3, 3], 4)
    assert args.matmul_proportion == [0.2] * 4


def test_without_layers_everything_is_on_ipu_0() -> None:
    args = parse("--ipus-per-replica 4 --matmul-proportion 0.2")
    assert (args.layers_per_ipu, args.ipus_per_replica, args.matmul_proportion) == ([12], 1, [0.2])
    assert any("--ipus-per-replica 4" in note for note in args.notes)


def test_recompute_layers() -> None:
    assert parse("--recompute-checkpoint-every-layer").recompute_checkpoint_layers == list(range(12))
    assert parse("--recompute-checkpoint-layers 5 2 5").recompute_checkpoint_layers == [2, 5]
    both = parse("--recompute-checkpoint-every-layer --recompute-checkpoint-layers 11")
    assert both.recompute_checkpoint_layers == [11]


def test_a_global_batch_decides_the_accumulation() -> None:
    args = parse("--global-batch-size 96 --batch-size 4 --replication-factor 3")
    assert (args.batch_size, args.gradient_accumulation) == (4, 8)
    args = parse("--global-batch-size 96 --batch-size auto --replication-factor 3")
    assert (args.batch_size, args.gradient_accumulation) == ("auto", 32)


def test_notes_say_what_has_no_effect() -> None:
    assert any("nothing will be saved" in note for note in parse().notes)
    assert parse("--save-model-path out").notes == []
    assert any("--serialized-seq-len 32" in note for note in parse("--serialized-seq-len 32").notes)


def test_data_and_checkpoint_paths(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.pkl"
    corpus.write_bytes(b"")
    assert parse(f"--train-path {corpus}").train_path == str(corpus)
    assert parse(f"--dataset pickle --input-files {corpus}").train_path == str(corpus)
    for name in ("a.tfrecord", "b.tfrecord"):
        (tmp_path / name).write_bytes(b"")
    for paths in ([f"{tmp_path}/*.tfrecord"], [f"{tmp_path}/a.tfrecord", f"{tmp_path}/b.tfrecord"], [str(tmp_path)]):
        for flags in ("--train-path tfrecord --tfrecord-path", "--dataset tfrecord --input-files"):
            args = parse(f"{flags} {shlex.join(paths)}")
            assert (args.train_path, args.tfrecord_path) == ("tfrecord", paths)
    assert any("--stride 64 has no effect" in note for note in parse(f"{flags} {tmp_path} --stride 64").notes)
    assert parse(f"--checkpoint-input-dir {tmp_path}").pretrained_checkpoint == str(tmp_path)
    assert parse("--pretrained-checkpoint openai-community/gpt2").pretrained_checkpoint == "openai-community/gpt2"
    parse(f"--save-model-path {tmp_path}/new/deeper")
    assert not (tmp_path / "new").exists()


# ---- The pipeline and the arithmetic -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "stages"),
    [
        ([12], 1),
        ([0, 4], 3),  # 0 1 0
        ([4, 0], 3),  # wpe keeps IPU 1 in use: 0 1 0
        ([0, 4, 4, 4], 5),  # 0 1 2 3 0
        ([1, 5, 5, 5, 5, 5, 5, 5], 11),  # 0 1 0 1 2 3 4 5 6 7 0
        ([0, 3, 0, 3], 4),  # 0 1 3 0
    ],
)
def test_forward_stages(layers: list[int], stages: int) -> None:
    assert pipeline.forward_stages(layers) == stages


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_forward_stages_are_the_runs_of_one_ipu(layers: list[int]) -> None:
    walk = "0" + ("1" if len(layers) > 1 else "") + "".join(str(i) * n for i, n in enumerate(layers)) + "0"
    assert pipeline.forward_stages(layers) == sum(1 for _ in groupby(walk))


def test_accumulation_must_fill_the_training_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("--layers-per-ipu 0 4 4 4 --gradient-accumulation 9").gradient_accumulation == 9
    (problem,) = refusal(capsys, "--layers-per-ipu 0 4 4 4 --gradient-accumulation 8")
    assert problem.startswith("--gradient-accumulation 8:") and "2 x 5 - 1 = 9" in problem
    forward = arguments.parse_train_args(["--layers-per-ipu", "0", "4", "4", "4"], "inference_gpt2.py", trains=False)
    assert forward.gradient_accumulation == 1


def test_the_arithmetic_of_a_call() -> None:
    args = parse("--max-len 1024 --layers-per-ipu 0 4 4 4 --gradient-accumulation 2048 --device-iterations 8 "
                 "--replication-factor 4")  # fmt: skip
    first, second = arithmetic.arithmetic(args)
    assert first == "batch 1 x accumulation 2048 x iterations 8 x replicas 4 = 65,536 samples, 67.1 M tokens a call"
    assert second == (
        "smaller calls: lower --gradient-accumulation 2048, --device-iterations 8, --replication-factor 4, "
        "--max-len 1024 (--gradient-accumulation at least 9 for this pipeline)"
    )
    assert arithmetic.arithmetic(parse("--device-iterations 1"))[1] == "smaller calls: lower --max-len 128"
    assert "= 4 samples, 512 tokens a call" in arithmetic.arithmetic(parse())[0]


@given(*[st.integers(1, 999)] * 4)
def test_samples_per_call(batch: int, accumulation: int, iterations: int, replicas: int) -> None:
    args = parse(f"--batch-size {batch} --gradient-accumulation {accumulation} --device-iterations {iterations} "
                 f"--replication-factor {replicas}")  # fmt: skip
    assert arithmetic.samples_per_call(args) == batch * accumulation * iterations * replicas


# ---- What is refused ---------------------------------------------------------------------------------------------

# a command line, and what the message must name
WRONG = [
    ("--layers-per-ipu 1 2", ["--layers-per-ipu 1 2", "3 blocks", "12"]),
    ("--layers-per-ipu 12", ["--layers-per-ipu 12", "48 blocks (12 on each of 4 IPUs)", "has 12"]),
    ("--layers-per-ipu 0 6 6 --ipus-per-replica 4 --gradient-accumulation 64", ["0 6 6", "--ipus-per-replica 4"]),
    ("--layers-per-ipu 0 6 six", ["--layers-per-ipu", "'six'"]),
    ("--layers-per-ipu -1 13", ["--layers-per-ipu", "'-1'"]),
    ("--layers-per-ipu", ["--layers-per-ipu", "needs a value"]),
    ("--layers-per-ipu auto 4", ["--layers-per-ipu auto 4", "auto stands for all numbers"]),
    ("--layers-per-ipu automatic", ["--layers-per-ipu", "'automatic'", "or auto"]),
    ("--layers-per-ipu auto --ipus-per-replica 14", ["12 blocks", "IPUs 1 to 13", "lower --ipus-per-replica 14"]),
    ("--layers-per-ipu auto", ["5 forward stages", "--layers-per-ipu 0 4 4 4", "raise it to 9"]),
    ("--plan-processes 2 --replication-factor 2", ["--plan-processes 2", "--compile-only; add it"]),
    ("--plan-device cpu", ["--plan-device cpu", "--compile-only; add it"]),
    ("--plan-device gpu --compile-only", ["--plan-device", "'gpu'", "cuda"]),
    ("--plan-processes 0 --compile-only", ["--plan-processes", "at least 1"]),
    ("--profile README.md", ["--profile README.md/train_gpt2_profile", "README.md is a file; name a folder"]),
    ("--profile=", ["--profile: ''", "must be a folder"]),
    (
        "--profile x --plan-processes 2 --compile-only --replication-factor 2",
        ["--plan-processes 2", "leave --profile out"],
    ),
    ("--plan-processes 5 --compile-only --replication-factor 4", ["--plan-processes 5", "4 replicas", "1, 2 or 4"]),
    ("--matmul-proportion 0.2 0.2 --layers-per-ipu 3 --gradient-accumulation 64", ["0.2 0.2", "4 IPUs"]),
    ("--matmul-proportion 0", ["--matmul-proportion", "'0'"]),
    ("--matmul-proportion 1.01", ["--matmul-proportion", "'1.01'"]),
    ("--batch-size 0", ["--batch-size", "'0'"]),
    ("--epochs 1.5", ["--epochs", "'1.5'"]),
    ("--replication-factor -2", ["--replication-factor", "'-2'"]),
    ("--max-len 1", ["--max-len", "at least 2"]),
    ("--max-len", ["--max-len", "needs a value"]),
    ("--val-num -1", ["--val-num", "at least 0"]),
    ("--stride 0", ["--stride", "at least 1"]),
    ("--learning-rate nan", ["--learning-rate", "'nan'"]),
    ("--learning-rate inf", ["--learning-rate", "'inf'"]),
    ("--loss-scaling 0", ["--loss-scaling", "above 0"]),
    ("--batch-size auto", ["--batch-size auto", "--global-batch-size N"]),
    ("--batch-size some", ["--batch-size", "'some'", "or auto"]),
    ("--batch-size auto --global-batch-size 8 --compile-only", ["--batch-size auto", "--compile-only"]),
    ("--global-batch-size 10 --batch-size 4", ["--global-batch-size 10", "--batch-size 4", "the next is 8"]),
    ("--global-batch-size 8 --gradient-accumulation 2", ["--global-batch-size 8", "--gradient-accumulation"]),
    ("--global-batch-size 8 --batch-size 2 --layers-per-ipu 3", ["--global-batch-size 8", "13", "raise it to 26"]),
    ("--adam-betas 0.9", ["--adam-betas 0.9", "two numbers"]),
    ("--adam-betas 0.9 1", ["--adam-betas 0.9 1.0", "below 1"]),
    ("--adam-betas 0.9 1.1", ["--adam-betas", "'1.1'"]),
    ("--adam-epsilon 0", ["--adam-epsilon", "above 0"]),
    ("--gradient-clipping 0", ["--gradient-clipping", "above 0"]),
    ("--optimizer LAMB --gradient-clipping 1", ["--gradient-clipping 1.0", "max_grad_norm", "AdamW or Adam"]),
    ("--min-learning-rate 1e-3", ["--min-learning-rate 0.001", "--learning-rate 1e-05 (default)"]),
    ("--dropout 1", ["--dropout 1.0", "below 1"]),
    ("--dropout 0.1 0.2", ["--dropout 0.1 0.2", "residual, embedding, attention"]),
    ("--lr-warmup 1.5", ["--lr-warmup", "at most 1"]),
    ("--lr-warmup 0.1 --lr-warmup-steps 10", ["--lr-warmup", "--lr-warmup-steps", "contradict"]),
    ("--lr-warmup-steps 11 --lr-decay-steps 10", ["--lr-warmup-steps 11", "--lr-decay-steps 10"]),
    ("--lr-schedule cosin", ["--lr-schedule", "did you mean cosine?"]),
    ("--optimizer adamw", ["--optimizer", "did you mean AdamW?"]),
    ("--model gpt3", ["--model", "gpt2-medium"]),
    ("--config no/such.json", ["--config", "no/such.json"]),
    ("--compile-only maybe", ["--compile-only", "'maybe'"]),
    ("--enable-sequence-serialized --max-len 200", ["--serialized-seq-len 128 (default)", "--max-len 200", "as 100"]),
    ("--enable-sequence-serialized --serialized-seq-len 48 --max-len 128", ["--serialized-seq-len 48", "such as 32"]),
    ("--embedding-serialization-factor 3", ["--embedding-serialization-factor 3", "50272", "1, 2, 4, 8, 16, 32"]),
    ("--recompute-checkpoint-layers 0 12", ["--recompute-checkpoint-layers 0 12", "no block 12", "0 to 11"]),
    ("--recompute-checkpoint-layers 0 --recompute-checkpoint-every-layer no", ["contradicts", "every-layer False"]),
    ("--resume-training-from-checkpoint", ["--resume-training-from-checkpoint", "--pretrained-checkpoint"]),
    ("--resume-training-from-checkpoint --pretrained-checkpoint gpt2", ["--pretrained-checkpoint gpt2", "state"]),
    ("--save-per-steps 5", ["--save-per-steps 5", "--save-model-path"]),
    ("--save-per-epochs 5", ["--save-per-epochs 5", "--save-model-path"]),
    ("--keep-checkpoints 5", ["--keep-checkpoints 5", "--save-model-path"]),
    ("--on-save-error stop", ["--on-save-error stop", "--save-model-path"]),
    ("--overwrite", ["--overwrite True", "--save-model-path"]),
    ("--time-limit 60", ["--time-limit", "--save-model-path"]),
    ("--time-limit soon --save-model-path out", ["--time-limit", "'soon'", "90m, 4h"]),
    ("--time-limit 0 --save-model-path out", ["--time-limit", "'0'", "above 0"]),
    ("--resume latest", ["--resume latest", "--save-model-path"]),
    ("--resume ./no-such", ["--resume ./no-such", "no such folder"]),
    ("--resume missing/step_4", ["--resume missing/step_4", "holds no training state"]),
    ("--keep-best --save-model-path out", ["--keep-best True", "--val-num"]),
    ("--keep-best --val-num 4", ["--keep-best True", "--save-model-path"]),
    ("--learning-rate -1e-4", ["--learning-rate", "'-1e-4' must be a number of at least 0"]),
    ("--learning-rate -inf", ["--learning-rate", "'-inf'"]),
    ("--matmul-proportion 0.2 -.1e0", ["--matmul-proportion", "'-.1e0'"]),
    ("-1e-4", ["'-1e-4'", "belongs to no flag"]),
    ("--flags no/such", ["--flags no/such", "cannot be read"]),
    ("--train-path no-such.pkl", ["--train-path no-such.pkl", "no such file"]),
    ("--dataset wiki.csv", ["--dataset wiki.csv", "neither generated nor a .pkl"]),
    ("--dataset wiki.txt", ["--dataset wiki.txt", "there is no such file"]),
    ("--dataset pickle", ["--dataset pickle", "--input-files"]),
    ("--dataset pickle --input-files no-such.pkl", ["--input-files no-such.pkl", "no such file"]),
    ("--train-path tfrecord", ["--train-path tfrecord", "--tfrecord-path '<path>/*.tfrecord'"]),
    ("--train-path tfrecord --tfrecord-path 'x/*.tfrecord'", ["--tfrecord-path x/*.tfrecord", "no such file"]),
    ("--dataset tfrecord --input-files none.tfrecord", ["--input-files none.tfrecord", "no such file"]),
    ("--dataset tfrecord --input-files a --tfrecord-path b", ["--input-files a", "contradicts --tfrecord-path"]),
    ("--tfrecord-path a.tfrecord b.tfrecord", ["--tfrecord-path a.tfrecord b.tfrecord", "--train-path tfrecord"]),
    ("--dataset pickle --input-files generated", ["--input-files generated", ".pkl"]),
    ("--pretrained-checkpoint ./no-such", ["--pretrained-checkpoint ./no-such", "no such folder"]),
    ("--pretrained-checkpoint /no/such", ["--pretrained-checkpoint /no/such", "no such folder"]),
    ("--checkpoint-input-dir tests/no-such", ["--checkpoint-input-dir tests/no-such", "no such folder"]),
    ("--pretrained-checkpoint arguments.py", ["--pretrained-checkpoint arguments.py", "not a folder"]),
    ("--save-model-path arguments.py/out", ["--save-model-path", "is a file"]),
    ("--executable-cache-dir arguments.py", ["--executable-cache-dir", "is a file"]),
    ("--bogus 3", ["--bogus", "unknown flag"]),
    ("--learning-rat 3", ["--learning-rat", "did you mean --learning-rate?"]),
    ("--gradient-a 3", ["--gradient-a:", "did you mean --gradient-accumulation?"]),
    ("--grad 3", ["--grad:", "did you mean --gradient-clipping or --gradient-accumulation?"]),
    ("--lernign_rate 3", ["--lernign-rate", "did you mean --learning-rate?"]),
    ("stray", ["'stray'", "no flag"]),
]


@pytest.mark.parametrize(("line", "named"), WRONG, ids=[line for line, _ in WRONG])
def test_refused_by_name(
    line: str, named: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (problem,) = refusal(capsys, line)
    for part in named:
        assert part in problem


def test_unreadable_paths_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, folder = tmp_path / "corpus.pkl", tmp_path / "step_1"
    corpus.touch()
    folder.mkdir()
    line = f"--train-path {corpus} --pretrained-checkpoint {folder} --save-model-path {folder}/x"
    parse(line)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permissions themselves do not bind a superuser
    problems = refusal(capsys, line)
    assert [p.split()[0] for p in problems] == ["--train-path", "--pretrained-checkpoint", "--save-model-path"]


# faults that do not hide one another: any set of them must be reported whole
FAULTS = {
    "--layers-per-ipu": "5 5",
    "--matmul-proportion": "0.1 0.1 0.1",
    "--batch-size": "none",
    "--bogus-flag": "1",
    "--embedding-serialization-factor": "7",
    "--lr-warmup": "2",
    "--train-path": "missing.pkl",
    "--pretrained-checkpoint": "./missing",
    "--save-per-steps": "4",
    "--recompute-checkpoint-layers": "99",
}


@pytest.mark.parametrize("flag, package", [("--log-dir x", "tensorboard"), ("--use-wandb", "wandb")])
def test_a_package_that_is_missing(
    flag: str, package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_checks, "installed", lambda name: name != package)
    remedy = f"{package} is not installed; pip install -r requirements-{package}.txt, or leave the flag out"
    assert remedy in refusal(capsys, flag)[0]
    assert (ROOT / f"requirements-{package}.txt").is_file()


def test_flags_about_the_log(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = f"--log-dir {tmp_path}/file/x --reference-curve {tmp_path}/none.csv"
    problems = refusal(capsys, line)
    assert len(problems) == 2 and "is a file; name a folder" in problems[0] and "no such file" in problems[1]
    assert "nothing keeps it; add --log-dir DIR" in refusal(capsys, "--log-gradient-norm")[0]


@given(st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, unique=True))
def test_all_problems_are_reported_at_once(flags: list[str]) -> None:
    reported: list[str] = []

    def refuse(program: str, problems: list[str]) -> None:
        reported.extend(problems)
        raise SystemExit(2)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(checks, "refuse", refuse)
        arguments.parse_train_args([word for flag in flags for word in [flag, *FAULTS[flag].split()]])
    assert sorted(problem.split()[0].rstrip(":") for problem in reported) == sorted(flags)


def test_a_doubtful_hub_name_is_listed_with_other_problems(capsys: pytest.CaptureFixture[str]) -> None:
    problems = refusal(capsys, "--pretrained-checkpoint missing/step_4 --batch-size 0")
    assert [p.split()[0].rstrip(":") for p in problems] == ["--batch-size", "--pretrained-checkpoint"]
    assert parse("--pretrained-checkpoint missing/step_4").pretrained_checkpoint == "missing/step_4"


def run_parser(line: str, folder: Path, program: str = "parse_train_args") -> subprocess.CompletedProcess[str]:
    code = f"import sys, arguments; arguments.{program}(); print('parsed')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *shlex.split(line)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_as_a_program_it_exits_2_without_traceback_and_writes_nothing(tmp_path: Path) -> None:
    line = (
        "--layers-per-ipu 1 2 --matmul-proportion 0.1 0.2 0.3 --train-path missing.pkl --save-model-path new/out "
        "--resume-training-from-checkpoint --executable-cache-dir cache --epochs zero --no-such-flag"
    )
    done = run_parser(line, tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("train_gpt2.py: 6 problems, nothing was started or written\n")
    for name in ("--layers-per-ipu", "--matmul-proportion", "--train-path", "--resume-", "--epochs", "--no-such-flag"):
        assert name in done.stderr
    assert list(tmp_path.iterdir()) == []
    good = run_parser("--save-model-path new/out --executable-cache-dir cache", tmp_path)
    assert (good.returncode, good.stdout, good.stderr) == (0, "parsed\n", "")
    assert list(tmp_path.iterdir()) == []


# ---- Bare and quick ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["parse_train_args", "parse_generate_args"])
def test_help_shows_every_spelling(program: str, tmp_path: Path) -> None:
    done = run_parser("--help", tmp_path, program)
    assert done.returncode == 0 and done.stderr == ""
    groups = arguments.TRAIN_GROUPS if program == "parse_train_args" else arguments.GENERATE_GROUPS
    for flag in (flag for group in groups.values() for flag in group):
        assert ", ".join(flag.names) in done.stdout


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, arguments; arguments.parse_train_args([]); print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr  # -S: no site-packages, so the standard library was enough
    heavy = {"torch", "numpy", "poptorch", "popart", "popdist", "transformers", "tqdm", "wandb", "tokenizers"}
    assert not heavy & set(done.stdout.split())


PARSING = [ROOT / "arguments.py", *ROOT.glob("command_line/*.py"), ROOT / "tasks/checks.py", ROOT / "tasks/flags.py"]


@pytest.mark.parametrize("path", PARSING, ids=lambda path: path.stem)
def test_python_3_8_syntax(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    "words, folder",
    [
        ("--profile", "./train_gpt2_profile"),
        ("--profile True", "./train_gpt2_profile"),
        ("--profile False", None),
        ("--profile my_profile", "my_profile"),
        ("--profile my_profile/", "my_profile/"),
        ("--profile --profile deep/er", "deep/er/train_gpt2_profile"),
    ],
)
def test_the_folder_of_a_report(words: str, folder: str) -> None:
    assert parse(words).profile == folder


# ---- text_generate_gpt2.py ---------------------------------------------------------------------------------------

GENERATE_DEFAULTS = {
    "compile_only": False,
    "profile": None,
    "model_name_or_path": "gpt2",
    "tokenizer_type": 0,
    "temperature": 1.2,
    "repetition_penalty": 2.0,
    "topk": 4,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "eta_cutoff": 0.0,
    "keep_last": None,
    "save_samples_path": None,
    "prompt": None,
    "prompt_file": None,
    "num_samples": 1,
    "log_probabilities": False,
    "input_len": 64,
    "output_len": 128,
    "batch_size": 1,
    "device_iterations": 1,
    "single_ipu": False,
    "layers_per_ipu": None,
    "matmul_proportion": None,
    "custom_ops": True,
    "fp16": False,
    "int8": False,
    "stop_token": ["<|endoftext|>"],
    "stop_string": [],
    "poptorch_loop": False,
    "seed": 1234,
}


def test_generate_defaults() -> None:
    args = vars(arguments.parse_generate_args([]))
    assert {name: args[name] for name in args if name not in ("typed", "notes")} == GENERATE_DEFAULTS


def test_generate_flags() -> None:
    line = (
        "--model-name-or-path . --prompt 'My name is ' --fp16 true --single-ipu true --output-len 256 --topk 0 "
        "--temperature 0.7 --repetition_penalty 1 --seed 3 --stop-token . ! --poptorch_loop true "
        "--matmul-proportion 0.3"
    )
    args = arguments.parse_generate_args(shlex.split(line))
    assert (args.prompt, args.fp16, args.single_ipu, args.output_len) == ("My name is ", True, True, 256)
    assert (args.topk, args.temperature, args.repetition_penalty, args.seed) == (0, 0.7, 1.0, 3)
    assert (args.stop_token, args.poptorch_loop, args.matmul_proportion) == ([".", "!"], True, [0.3])


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--poptorch-loop true", [["--poptorch-loop True", "needs --single-ipu true"]]),
        ("--profile x --compile-only", [["--profile x/text_generate_gpt2_profile", "leave one of the two out"]]),
        ("--profile README.md", [["--profile README.md/text_generate_gpt2_profile", "README.md is a file"]]),
        ("--device-iterations 2", [["--device-iterations 2", "--batch-size"]]),
        ("--poptorch-loop --single-ipu --keep-last 128", [["--keep-last 128", "cannot go beyond the model's context"]]),
        ("--eta-cutoff 1.5", [["--eta-cutoff", "at least 0 and at most 1"]]),
        ("--int8 --fp16", [["--int8 True", "contradicts --fp16"]]),
        ("--int8 --custom-ops false", [["--int8 True", "--custom-ops False"]]),
        ("--prompt a --prompt-file b", [["--prompt-file b", "contradicts --prompt"]]),
        ("--top-p 0 --min-p 2", [["--top-p", "above 0"], ["--min-p", "at most 1"]]),
        ("--single-ipu --layers-per-ipu 1 7", [["--layers-per-ipu 1 7", "contradicts --single-ipu true"]]),
        ("--tokenizer-type 2", [["--tokenizer-type", "from 0 to 1"]]),
        ("--matmul-proportion 0.1 0.2", [["--matmul-proportion 0.1 0.2", "1 IPU;"]]),
        ("--layers-per-ipu 1 7 8 8 --matmul-proportion 0.1 0.2", [["2 fractions for 4 IPUs"]]),
        ("--temperature 0", [["--temperature", "above 0"]]),
        ("--model-name-or-path ./none", [["--model-name-or-path ./none", "no such folder"]]),
        ("--save-samples-path no/such/file.txt", [["--save-samples-path no/such/file.txt", "folder"]]),
        ("--promt hello", [["--promt", "did you mean --prompt?"]]),
        ("--epochs 3 --topk x", [["--epochs", "unknown flag"], ["--topk", "'x'"]]),
    ],
)
def test_generate_refusals(line: str, named: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    problems = refusal(capsys, line, arguments.parse_generate_args)
    assert len(problems) == len(named)
    for problem, parts in zip(problems, named):
        for part in parts:
            assert part in problem


def test_select_refuses_a_flag_that_is_not_in_the_group() -> None:
    with pytest.raises(ValueError, match="epochs"):
        select(BATCH, "batch_size", "epochs")
