"""Checkpoints that a run can be resumed from: weights, optimizer, schedule, random numbers, position in the data."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List

import poptorch
import torch

from model.checkpoint import recover_interrupted, save_pretrained, write_atomically
from model.gpt2 import GPT2LMHeadModel

STATE_FILE = "training_state.pt"
_FORMAT = 1


@dataclasses.dataclass
class Position:
    """Where a run stands: calls made, the epoch, and the samples of it that were consumed."""

    step: int = 0
    epoch: int = 0
    samples: int = 0


def run_facts(args: argparse.Namespace, num_samples: int, samples_a_call: int) -> Dict[str, Any]:
    """What must be the same for a resumed run to be the run it resumes, by flag."""
    return {
        "--train-path": f"{num_samples} training samples",
        "--max-len": args.max_len,
        "--seed": args.seed,
        "--optimizer": args.optimizer,
        "--batch-size x --gradient-accumulation x --device-iterations x --replication-factor": samples_a_call,
    }


def save(
    directory: Path,
    gpt2: GPT2LMHeadModel,
    executor: poptorch.PoplarExecutor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    position: Position,
    facts: Dict[str, Any],
) -> None:
    """Write a checkpoint to `directory`, whole or not at all."""
    state = {
        "format": _FORMAT,
        "optimizer": optimizer.state_dict(),
        "schedule": {"last_epoch": schedule.last_epoch, "last_lr": schedule.get_last_lr()},
        "rng_state": torch.tensor(executor.rng_state, dtype=torch.int64),
        "position": dataclasses.asdict(position),
        "facts": facts,
    }
    with write_atomically(directory) as temporary:
        save_pretrained(gpt2, temporary)
        torch.save(state, temporary / STATE_FILE)


def read(directory: Path) -> Dict[str, Any]:
    """The training state of a checkpoint. Raises ValueError naming the file if there is none, or none that can be read."""
    recover_interrupted(directory)
    path = directory / STATE_FILE
    if not path.is_file():
        raise ValueError(
            f"--resume-training-from-checkpoint: {path} does not exist, so there is nothing to resume. Name a step_N or "
            "epoch_N folder that train_gpt2.py wrote in --pretrained-checkpoint, or leave the flag out to start from "
            "its weights."
        )
    try:
        state = torch.load(str(path), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of the unpickler
        raise ValueError(
            f"{path} cannot be read ({error}): it is damaged, resume from an earlier checkpoint"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"{path} is no training state of this program (format {_FORMAT}): use another checkpoint")
    return state


def check_facts(state: Dict[str, Any], facts: Dict[str, Any]) -> None:
    """Raises ValueError listing every flag that makes this another run than the saved one."""
    different = [
        f"{flag}: {state['facts'].get(flag)} in the checkpoint, {value} now"
        for flag, value in facts.items()
        if state["facts"].get(flag) != value
    ]
    if different:
        raise ValueError(
            "--resume-training-from-checkpoint continues a run exactly, but this is another one: "
            + "; ".join(different)
            + ". Use the flags of that run, or leave the flag out to start a new one from its weights."
        )


def restore(
    state: Dict[str, Any], optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR
) -> Position:
    """Give optimizer and schedule their state back (before the executor is made) and return the position."""
    optimizer.load_state_dict(state["optimizer"])
    schedule.last_epoch = state["schedule"]["last_epoch"]
    schedule._last_lr = list(state["schedule"]["last_lr"])
    return Position(**state["position"])


def prune(save_path: Path, keep: int, current: Path) -> List[Path]:
    """Delete all but the newest `keep` checkpoints of `save_path` (0 keeps all); `current` always stays."""
    if keep <= 0:
        return []
    found = [path for path in save_path.iterdir() if re.fullmatch(r"(step|epoch)_\d+", path.name)]
    old = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[keep:]
    old = [path for path in old if path != current]
    for path in old:
        shutil.rmtree(path)
    return old
