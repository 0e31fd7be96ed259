"""--batch-size auto: the largest micro-batch that fits, tried out in processes of their own.

A trial is one weight update of the very model with the very flags, on generated samples. A process that runs out of
memory, or that the system ends for it, harms nothing here; on a CPU it may take what is free and no more.

As a program (`python -m training.micro_batch`) it is such a process: the flags come as JSON on standard input.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from command_line.checks import BadFlags
from model.config import GPT2Config
from model.pipeline import least_micro_batches

ROOT = Path(__file__).resolve().parents[1]
_MOST_TOKENS = 8192  # in a micro-batch: larger products are no faster, and a trial takes long
_DOES_NOT_FIT = 3  # exit status of a trial
_KILLED = -9  # the same, as the system puts it
_SHARE = 0.9  # of the free memory that a trial may take: a run has batches of data beside it

# A trial in place of the run: nothing read, written or logged.
_OF_A_TRIAL: dict[str, Any] = {
    "train_path": "generated",
    "tfrecord_path": None,
    "data_prefix": None,
    "val_num": 0,
    "further_paths": [],
    "validation_files": None,
    "control_codes": None,
    "windows": "article",
    "stride": 1,
    "device_iterations": 1,
    "epochs": 1,
    "training_steps": 1,
    "num_workers": 0,
    "async_dataloader": False,
    "save_model_path": None,
    "profile": None,
    "resume": None,
    "resume_training_from_checkpoint": False,
    "keep_best": False,
    "early_stopping": None,
    "sequence_warmup": None,
    "time_limit": None,
    "global_batch_size": None,
}


def candidates(args: argparse.Namespace) -> list[int]:
    """Micro-batches to try, the largest first: divisors of a replica's share that leave enough of them in an update.

    Enough for the pipeline, that is.
    """
    share = args.global_batch_size // args.replication_factor
    most = min(share // _least(args), max(1, _MOST_TOKENS // args.max_len))
    return [size for size in range(most, 0, -1) if share % size == 0]


def _least(args: argparse.Namespace) -> int:
    return least_micro_batches(GPT2Config.from_json(args.config), args.layers_per_ipu)


def choose(args: argparse.Namespace) -> str:
    """Set args.batch_size and args.gradient_accumulation; returns a line that says what was found.

    A resumed run keeps what it began with: another split draws other dropout. Raises BadFlags if not even one sample
    fits, ValueError if there is nothing to resume.
    """
    from training.memory import next_settings

    if "WORLD_SIZE" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ:
        raise BadFlags("--batch-size auto: a micro-batch is looked for by one process, not by several; give a number")
    share = args.global_batch_size // args.replication_factor
    facts = _facts_of_the_resumed(args)
    if facts is not None:
        size, why = facts["--batch-size"], "as the run began"
    else:
        sizes = candidates(args)
        size = next((size for size in sizes if fits(args, size)), None)
        if size is None:
            args.batch_size = 1
            raise BadFlags(f"--batch-size auto: not even one sample fits into memory; try {next_settings(args)[0]}")
        larger = ", ".join(map(str, sizes[: sizes.index(size)]))
        why = f"{larger} did not fit" if larger else "the most to be tried, and it fits"
    args.batch_size, args.gradient_accumulation = size, max(1, share // size)
    return f"--batch-size auto: --batch-size {size} --gradient-accumulation {args.gradient_accumulation} ({why})"


def _facts_of_the_resumed(args: argparse.Namespace) -> dict[str, Any] | None:
    """The facts of the run that these flags resume; None if they start one. Raises ValueError if there are none."""
    from training import state
    from training.folder_lock import claim
    from training.save_folder import newest_first

    if args.resume_training_from_checkpoint:
        return state.read(Path(args.pretrained_checkpoint), ("facts",))["facts"]
    if args.resume == "latest":
        claim(Path(args.save_model_path))  # until the run is over
        for checkpoint in newest_first(Path(args.save_model_path)):  # which have them all
            with suppress(ValueError):
                return state.read(checkpoint, ("facts",))["facts"]
    return None


def fits(args: argparse.Namespace, size: int) -> bool:
    """Whether there is memory for a weight update with micro-batches of this size. Other errors the run will tell."""
    share = args.global_batch_size // args.replication_factor
    flags = {**vars(args), **_OF_A_TRIAL, "batch_size": size, "typed": sorted(args.typed)}
    flags["gradient_accumulation"] = min(share // size, max(_least(args), 8))  # off-IPU some are computed as one
    done = subprocess.run(
        [sys.executable, "-m", "training.micro_batch"],
        input=json.dumps({"flags": flags, "memory": free_memory()}),
        cwd=str(ROOT),
        capture_output=True,
        text=True,
    )
    return done.returncode not in (_DOES_NOT_FIT, _KILLED)


def free_memory() -> int | None:
    """Bytes that a process may take before the system is short of memory; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    group = Path("/sys/fs/cgroup")
    try:  # a container's limit, if it has one
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def _limit_memory(more: int) -> None:
    """Let this process take that much more memory, and then fail in the usual way."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = now + int(_SHARE * more)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def main() -> int:
    """A trial. Returns its exit status."""
    from training.log.machine import computes_on_cuda, computes_on_ipus
    from training.memory import is_out_of_memory
    from training.run import TrainingRun

    trial = json.load(sys.stdin)
    args = argparse.Namespace(**{**trial["flags"], "typed": set(trial["flags"]["typed"])})
    if trial["memory"] is not None and not computes_on_cuda() and not computes_on_ipus():
        _limit_memory(trial["memory"])
    try:
        run = TrainingRun(args)
        call = next(run.batches())
        run.compile(call)
        run.executor(**call._asdict())
    except Exception as error:
        if is_out_of_memory(error):
            return _DOES_NOT_FIT
        raise
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
