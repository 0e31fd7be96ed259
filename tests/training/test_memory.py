"""Runs that do not fit into memory: what they say, and the micro-batch that --batch-size auto finds."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import poptorch
import pytest
import torch
import warm_process
from tiny_run import environment, flags, run_here, write_config

from arguments import parse_train_args
from command_line.checks import BadFlags
from training import memory, micro_batch
from training.arithmetic import arithmetic

WIDE = {"n_embd": 256, "n_head": 4, "n_positions": 512}  # 18 MB of activations a sample of 512 tokens, and more


@pytest.fixture
def folder(tmp_path):
    write_config(tmp_path)
    return tmp_path


def parsed(folder, **changes):
    return parse_train_args(flags(folder, **changes))


# Types and texts of PyTorch's and Poplar's errors.
@pytest.mark.parametrize(
    "error, is_one",
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (poptorch.Error("Out of memory: Cannot fit all variable data onto one or more tiles."), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_it(error, is_one):
    assert memory.is_out_of_memory(error) is is_one


def test_the_next_setting_is_the_cheapest_that_is_left(folder, monkeypatch):
    def first(**changes):
        return memory.next_settings(parsed(folder, **changes))[0]

    one_at_a_time = "POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE"
    monkeypatch.delenv(one_at_a_time, raising=False)
    assert first(batch_size=6) == f"{one_at_a_time}=1 in the environment (2 micro-batches run as one, in up to 1 GiB)"
    assert first(batch_size=6, gradient_accumulation=1).startswith("--batch-size 3 --gradient-accumulation 2 ")
    monkeypatch.setenv(one_at_a_time, "1")
    assert first(batch_size=6).startswith("--batch-size 3 --gradient-accumulation 4 ")
    assert first().startswith("--enable-sequence-serialized True")
    in_blocks = {"enable_sequence_serialized": True}
    assert first(**in_blocks).startswith("--recompute-checkpoint-every-layer True")
    least = {**in_blocks, "recompute_checkpoint_every_layer": True}
    assert first(**least).startswith("--max-len 8 ")
    assert first(**least, max_len=2) == "a smaller --model"


@pytest.mark.parametrize("while_compiling", [False, True])
def test_a_run_that_does_not_fit_says_what_to_try(folder, monkeypatch, while_compiling):
    def fail(self, *inputs, **named):
        if while_compiling:
            raise poptorch.Error("Out of memory: Cannot fit all variable data onto one or more tiles.")
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(poptorch.PoplarExecutor, "compile" if while_compiling else "__call__", fail)
    monkeypatch.setenv("POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE", "1")  # which would be the first to try
    done = run_here(flags(folder, batch_size=2))
    assert done.status == 1
    head, hint, *others = done.err[done.err.index("train_gpt2.py: ") :].splitlines()
    assert head.startswith("train_gpt2.py: out of memory: ")
    assert hint == "HINT: try next --batch-size 1 --gradient-accumulation 4 (the same batch in smaller pieces)"
    assert any("--recompute-checkpoint-every-layer True" in line for line in others)


_LIMITED = """
import sys, train_gpt2
from training import micro_batch
micro_batch._limit_memory(int(sys.argv[1]))
raise SystemExit(train_gpt2.main(sys.argv[2:]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists() or torch.cuda.is_available(), reason="Linux, on the CPU")
def test_an_allocation_that_really_fails(folder):
    """64 samples take more than a gigabyte; 400 MB are allowed, beside what a process has after its imports."""
    write_config(folder, **WIDE)
    words = flags(folder, max_len=512, batch_size=64, training_steps=1, gradient_accumulation=1)
    done = warm_process.run(["-c", _LIMITED, str(400 * 10**6), *words], environment())
    assert done.returncode == 1, done.stderr
    assert "out of memory: " in done.stderr and "HINT: try next --batch-size 32 " in done.stderr
    assert "Traceback" not in done.stderr


# ---- --batch-size auto ----


def test_candidates_divide_the_share_of_a_replica_and_fill_the_pipeline(folder):
    def sizes(**changes):
        words = {"gradient_accumulation": None, "batch_size": "auto", **changes}
        return micro_batch.candidates(parsed(folder, **words))

    assert sizes(global_batch_size=12) == [12, 6, 4, 3, 2, 1]
    assert sizes(global_batch_size=24, replication_factor=2) == [12, 6, 4, 3, 2, 1]
    pipeline = {"layers_per_ipu": "1 1", "ipus_per_replica": 2}  # IPUs 0 1 0 1 0: 5 stages, 9 micro-batches at least
    assert sizes(global_batch_size=36, **pipeline) == [4, 3, 2, 1]
    assert sizes(global_batch_size=4096) == [512, 256, 128, 64, 32, 16, 8, 4, 2, 1], "8,192 tokens"
    alibi = {"model_type": "gpt2_variant", "variant": {"position_embedding": "alibi"}}
    write_config(folder, **alibi)  # nothing between the token embedding and the first block: IPUs 0 1 0, 3 stages
    assert sizes(global_batch_size=20, **pipeline) == [4, 2, 1]
    args = parsed(folder, gradient_accumulation=5, **pipeline)
    assert "--gradient-accumulation at least 5 for this pipeline" in arithmetic(args)[1]


def auto(folder, monkeypatch, largest, **changes):
    tried = []

    def fits(args, size):
        tried.append(size)
        return size <= largest

    monkeypatch.setattr(micro_batch, "fits", fits)
    words = {"gradient_accumulation": None, "batch_size": "auto", "global_batch_size": 12, **changes}
    return flags(folder, training_steps=2, train_path="generated", **words), tried


def test_the_largest_that_fits_is_taken(folder, monkeypatch):
    argv, tried = auto(folder, monkeypatch, largest=4, save_model_path=folder / "save")
    done = run_here(argv)
    assert done.status == 0, done.err
    assert tried == [12, 6, 4]
    assert done.out.splitlines()[0] == (
        "--batch-size auto: --batch-size 4 --gradient-accumulation 3 (12, 6 did not fit)"
    )
    assert "batch 4 x accumulation 3 x iterations 1 x replicas 1 = 12 samples" in done.out
    # Resumed, it keeps to that, whatever would fit now.
    argv, tried = auto(folder, monkeypatch, largest=12, pretrained_checkpoint=folder / "save" / "step_2")
    argv += ["--resume-training-from-checkpoint", "--training-steps", "3"]
    again = run_here(argv)
    assert again.status == 0, again.err
    assert tried == [] and "--batch-size 4 --gradient-accumulation 3 (as the run began)" in again.out
    argv, tried = auto(folder, monkeypatch, largest=12, save_model_path=folder / "save", resume="latest")
    chained = run_here([*argv, "--training-steps", "3"])
    assert chained.status == 0, chained.err
    assert tried == [] and "(as the run began)" in chained.out and "step 3 of epoch" in chained.out


def test_not_even_one_sample(folder, monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE", "1")
    argv, tried = auto(folder, monkeypatch, largest=0)
    done = run_here(argv)
    assert done.status == 2 and tried == [12, 6, 4, 3, 2, 1]
    assert "not even one sample fits into memory; try --enable-sequence-serialized True" in done.err


def test_one_process_looks_for_it(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadFlags, match="by one process"):
        micro_batch.choose(parsed(folder, gradient_accumulation=None, batch_size="auto", global_batch_size=12))


@pytest.fixture
def trials(monkeypatch, tmp_path_factory):
    """The exit statuses of trials, which begin with everything imported."""
    statuses, run, python = [], subprocess.run, tmp_path_factory.mktemp("trials") / "python"
    inherited = warm_process.interpreter(python)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)

    def watched(command, **named):
        if command[0] != sys.executable:
            return run(command, **named)
        done = run([str(python), *command[1:]], pass_fds=inherited, **named)
        statuses.append(done.returncode)
        return done

    monkeypatch.setattr(micro_batch.subprocess, "run", watched)
    return statuses


@pytest.mark.skipif(not Path("/proc/self/status").exists() or torch.cuda.is_available(), reason="Linux, on the CPU")
def test_a_trial_sees_what_does_not_fit(folder, monkeypatch, trials):
    write_config(folder, **WIDE)
    words = {"gradient_accumulation": None, "batch_size": "auto", "global_batch_size": 64, "max_len": 512}
    args = parsed(folder, **words, save_model_path=folder / "save", resume="latest")
    before = dict(vars(args))
    free = iter([400 * 10**6, 16 * 10**9])
    monkeypatch.setattr(micro_batch, "free_memory", lambda: next(free))
    assert not micro_batch.fits(args, 64)
    assert micro_batch.fits(args, 1)
    assert trials == [micro_batch._DOES_NOT_FIT, 0]
    assert vars(args) == before
    assert {path.name for path in folder.iterdir()} == {"tiny.json"}, "a trial writes nothing"


def test_free_memory_is_no_more_than_the_machine_has():
    free = micro_batch.free_memory()
    assert free is None or 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY, "the limit is of the trial alone"
