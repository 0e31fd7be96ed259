"""Checkpoints that a run can be resumed from: weights, optimizer, schedule, random numbers, position in the data."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import poptorch
import torch

from data.batches import SampleDataset
from model.checkpoint import recover_interrupted, save_pretrained, write_atomically
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from tokenizer.entries import TOKENIZER_FILE

STATE_FILE = "training_state.pt"
_FORMAT = 1
# What a run had for the flags that came later.
_FORMER = {
    "--min-learning-rate": 0.0,
    "--adam-betas": [0.9, 0.999],
    "--adam-epsilon": 1e-6,
    "--gradient-clipping": None,
}
_LOSS_MEAN = "labels"  # what the loss of a weight update is the mean over; older states have no such entry

# Flags that decide the course of a run. With dropout the split of a batch does too: it orders the random numbers.
_DECIDING = (
    "max_len",
    "document_boundaries",
    "seed",
    "optimizer",
    "learning_rate",
    "min_learning_rate",
    "weight_decay",
    "adam_betas",
    "adam_epsilon",
    "gradient_clipping",
    "loss_scaling",
    "auto_loss_scaling",
    "lr_schedule",
    "batch_size",
    "gradient_accumulation",
    "device_iterations",
    "replication_factor",
)


@dataclasses.dataclass
class Position:
    """Where a run stands: calls made, the epoch of the next one, and the samples of that epoch that were consumed."""

    step: int = 0
    epoch: int = 0
    samples: int = 0

    def advance(self, samples_a_call: int, samples_an_epoch: int) -> None:
        """One call further. An epoch ends where the samples left do not fill another call."""
        self.step += 1
        self.samples += samples_a_call
        if self.samples + samples_a_call > samples_an_epoch:
            self.epoch, self.samples = self.epoch + 1, 0


def prepare_folder(folder: Path) -> list[str]:
    """Make the folder for checkpoints and try it out, before hours of training do. Raises ValueError.

    Returns the names of the checkpoints that are in it, oldest first.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=str(folder)).close()
    except OSError as error:
        raise ValueError(
            f"--save-model-path {folder}: checkpoints cannot be written there ({error.strerror}); name another folder"
        ) from error
    return [path.name for path in _checkpoints(folder)]


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [path for path in folder.iterdir() if re.fullmatch(r"(step|epoch)_\d+", path.name)]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def run_facts(
    args: argparse.Namespace, config: GPT2Config, samples: SampleDataset, warmup_steps: int, decay_steps: int
) -> dict[str, Any]:
    """What must be the same for a resumed run to be the run it resumes, by flag, as plain values.

    Placement, recomputation and serialisation are left out: they change no result.
    """
    facts: dict[str, Any] = {"--train-path": f"{samples.summary()}, {fingerprint(samples)}"}
    for dest in _DECIDING:
        facts["--" + dest.replace("_", "-")] = getattr(args, dest)
    facts["--lr-warmup-steps"] = warmup_steps
    facts["--lr-decay-steps"] = None if args.lr_schedule == "constant" else decay_steps
    facts["the model's configuration"] = json.dumps(config.values(), sort_keys=True)
    return facts


def fingerprint(samples: SampleDataset) -> str:
    """A hash of up to 64 samples spread over the data, so that another corpus of the same size is told apart."""
    count = min(64, len(samples))
    inputs, labels = samples.__getitems__([len(samples) * i // count for i in range(count)])
    return hashlib.sha256(inputs.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:16]


def save(
    directory: Path,
    gpt2: GPT2LMHeadModel,
    executor: poptorch.PoplarExecutor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    position: Position,
    facts: dict[str, Any],
    tokenizer: bytes | None = None,
) -> None:
    """Write a checkpoint to `directory`, whole or not at all. `tokenizer` is the content of a tokenizer.json."""
    state = {
        "format": _FORMAT,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "rng_state": torch.tensor(executor.rng_state, dtype=torch.int64),
        "position": dataclasses.asdict(position),
        "facts": facts,
        "loss_mean": _LOSS_MEAN,
    }
    with write_atomically(directory) as temporary:
        save_pretrained(gpt2, temporary)
        torch.save(state, temporary / STATE_FILE)
        if tokenizer is not None:
            (temporary / TOKENIZER_FILE).write_bytes(tokenizer)


def read(directory: Path) -> dict[str, Any]:
    """The training state of a checkpoint. Raises ValueError naming the file if it is not there or cannot be read."""
    recover_interrupted(directory)
    path = directory / STATE_FILE
    if not path.is_file():
        raise ValueError(
            f"--resume-training-from-checkpoint: {path} does not exist, so there is nothing to resume. Name a step_N "
            "or epoch_N folder that train_gpt2.py wrote in --pretrained-checkpoint, or leave the flag out to start "
            "from its weights."
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


def check_facts(state: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raises ValueError listing every flag that makes this another run than the saved one."""
    saved = {**_FORMER, **state["facts"]}
    different = [
        f"{flag}: {saved.get(flag)} in the checkpoint, {value} now"
        for flag, value in facts.items()
        if saved.get(flag) != value
    ]
    if different:
        raise ValueError(
            "--resume-training-from-checkpoint continues a run exactly, but this is another one (what follows from "
            "--epochs and --training-steps may be given by hand): "
            + "; ".join(different)
            + ". Use the flags of that run, or leave the flag out to start a new one from its weights."
        )


def loss_notes(state: dict[str, Any], uneven: bool) -> list[str]:
    """What a resumed run must say if its loss was another mean when it began; `uneven`: that made a difference."""
    if not uneven or state.get("loss_mean") == _LOSS_MEAN:
        return []
    return [
        "this run began when a loss was the mean of the means of its micro-batches; from here on it is the mean over "
        "all labels, so that a token of a padded sample, or of one with several isolated documents, counts like any "
        "other: losses and gradients are not quite those of the steps before"
    ]


def restore(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR
) -> Position:
    """Give optimizer and schedule their state back (before the executor is made) and return the position."""
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return Position(**state["position"])


def prune(folder: Path, keep: int, current: Path) -> list[Path]:
    """Delete all but the newest `keep` checkpoints of `folder` (0 keeps all); `current` always stays."""
    if keep <= 0:
        return []
    for left in folder.glob(".*.pruned"):  # by a run that was killed here
        shutil.rmtree(left)
    old = [path for path in _checkpoints(folder) if path != current][: -(keep - 1) or None]
    for path in old:  # under a name that says so while it is half there
        shutil.rmtree(path.rename(path.with_name(f".{path.name}.pruned")))
    return old
