"""Checkpoints that a run can be resumed from: weights, optimizer, schedule, random numbers, position in the data."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, Sequence

import poptorch
import torch

from data.batches import SampleDataset
from model.checkpoint import recover_interrupted, save_pretrained, tensor_bytes, write_atomically
from model.config import GPT2Config
from model.disk_space import CheckpointNotWritten, check_room
from model.gpt2 import GPT2LMHeadModel
from model.layout import is_first_of_machine
from model.weights import WEIGHTS_FILE, load_torch_file
from tokenizer.entries import TOKENIZER_FILE
from training.optimization import last_rate

STATE_FILE = "training_state.pt"
_FORMAT = 1
# What a run had for the flags that came later.
_FORMER = {
    "--min-learning-rate": 0.0,
    "--adam-betas": [0.9, 0.999],
    "--adam-epsilon": 1e-6,
    "--gradient-clipping": None,
    "--tensor-gradient-clipping": None,
    "--sgd-momentum": 0.9,
    "--weight-decay-groups": "matrices",
    "--sequence-warmup": None,
    "--sequence-warmup-steps": None,
}
_LOSS_MEAN = "labels"  # what the loss of a weight update is the mean over; older states have no such entry
_WEIGHTS = "weights_crc32"  # of the file of weights beside it, which has no checksum; older states have no such entry
_MODEL = "the model's configuration"
_AT_ONCE = 1 << 20  # bytes that are read together
_SMALL_FILES = 1 << 18  # bytes: config.json, names of tensors, what is between them
_CELL = 40  # characters of a column of a table

# Flags that decide the course of a run. With dropout the split of a batch does too: it orders the random numbers.
_DECIDING = (
    "max_len",
    "sequence_warmup",
    "sequence_warmup_steps",
    "document_boundaries",
    "seed",
    "optimizer",
    "learning_rate",
    "min_learning_rate",
    "weight_decay",
    "adam_betas",
    "adam_epsilon",
    "gradient_clipping",
    "tensor_gradient_clipping",
    "sgd_momentum",
    "weight_decay_groups",
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


def run_facts(
    args: argparse.Namespace, config: GPT2Config, samples: SampleDataset, warmup_steps: int, decay_steps: int
) -> dict[str, Any]:
    """What must be the same for a resumed run to be the run it resumes, by flag, as plain values.

    Placement, recomputation and serialisation are left out: they change no result.
    """
    summary, count = samples.identity()
    facts: dict[str, Any] = {"--train-path": f"{summary}, {fingerprint(samples, count)}"}
    for dest in _DECIDING:
        facts["--" + dest.replace("_", "-")] = getattr(args, dest)
    facts["--lr-warmup-steps"] = warmup_steps
    facts["--lr-decay-steps"] = None if args.lr_schedule == "constant" else decay_steps
    facts[_MODEL] = json.dumps(config.values(), sort_keys=True)
    return facts


def fingerprint(samples: SampleDataset, of: int) -> str:
    """A hash of up to 64 of the first `of` samples, so that another corpus of the same size is told apart."""
    count = min(64, of)
    inputs, labels = samples.__getitems__([of * i // count for i in range(count)])
    return hashlib.sha256(inputs.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:16]


def save(
    directory: Path,
    gpt2: GPT2LMHeadModel,
    executor: poptorch.PoplarExecutor,
    rng_state: Sequence[int],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    position: Position,
    facts: dict[str, Any],
    tokenizer: bytes | None = None,
    writes: bool = True,
    **further: Any,
) -> dict[str, Any]:
    """Write a checkpoint to `directory`, whole or not at all.

    `rng_state` is the executor's, also of one that has not been compiled yet, `tokenizer` the content of a
    tokenizer.json; `further` are plain values that go into the training state. Of several processes, all of which must
    call it, since each may hold a part of the weights and of the optimizer's state, the first `writes`: it alone is
    given the values of all.

    Returns what a runtime other than the SDK's chose for the run and keeps in the optimizer's state, by name.

    Raises:
        CheckpointNotWritten: if there is no room for it, which is seen before anything is written, or writing fails.
    """
    try:
        if executor.isCompiled():
            executor.copyWeightsToHost()  # of a replica over several processes the first one gets all
        optimizer_state = optimizer.state_dict()
    except poptorch.Error as error:  # no room in the temporary folder, which every process is told of
        raise CheckpointNotWritten(directory, 0, RuntimeError(error.message)) from error
    state = {
        "format": _FORMAT,
        "optimizer": optimizer_state,
        "schedule": schedule.state_dict(),
        "rng_state": torch.tensor(rng_state, dtype=torch.int64),
        "position": dataclasses.asdict(position),
        "facts": facts,
        "loss_mean": _LOSS_MEAN,
        **further,
    }
    chosen = optimizer_state.get("ipu_numerics", {})
    if not writes:
        return chosen
    needed = tensor_bytes([gpt2.state_dict(), state]) + len(tokenizer or b"") + _SMALL_FILES
    check_room(directory, needed)
    try:
        with write_atomically(directory) as temporary:
            save_pretrained(gpt2, temporary)
            torch.save({**state, _WEIGHTS: _crc32(temporary / WEIGHTS_FILE)}, temporary / STATE_FILE)
            if tokenizer is not None:
                (temporary / TOKENIZER_FILE).write_bytes(tokenizer)
    except (OSError, RuntimeError, ValueError) as error:  # torch.save tells of a full disk by a RuntimeError
        raise CheckpointNotWritten(directory, needed, error) from error
    return chosen


class Damaged(ValueError):
    """A checkpoint that nothing can be resumed from: its file, and what is wrong with that."""


def read(directory: Path, within: Sequence[str] = ()) -> dict[str, Any]:
    """The training state of a checkpoint. Raises ValueError naming the file if it is not there, damaged or of no use.

    Its tensors are mapped where torch can do so (from 2.1 on): a process reads what it uses. Before that one process of
    each machine reads the file through, to compare its bytes with the CRCs in it, and that of the weights; if keys
    `within` are given, of the tensors only those under them.
    """
    try:
        return read_whole(directory, within)
    except Damaged as error:
        raise ValueError(
            f"nothing can be resumed, for {error}. Copy the checkpoint again, go on from an earlier one with --resume "
            f"{directory.parent / 'step_N'}, or start from its weights (--pretrained-checkpoint alone)"
        ) from error


def read_whole(directory: Path, within: Sequence[str] = ()) -> dict[str, Any]:
    """What `read` does. Raises Damaged, without advice, where that is what is wrong with the checkpoint."""
    recover_interrupted(directory)
    path = directory / STATE_FILE
    if not path.is_file():
        raise ValueError(
            f"--resume-training-from-checkpoint: {path} does not exist, so there is nothing to resume. Name a step_N "
            "or epoch_N folder that train_gpt2.py wrote in --pretrained-checkpoint, or leave the flag out to start "
            "from its weights."
        )
    try:
        state = load_torch_file(path, within=within, compared=is_first_of_machine())
    except ValueError as error:
        raise Damaged(*error.args) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"{path} is no training state of this program (format {_FORMAT}): use another checkpoint")
    weights = directory / WEIGHTS_FILE
    if not within and is_first_of_machine() and _WEIGHTS in state and weights.is_file():
        try:
            changed = _crc32(weights) != state[_WEIGHTS]
        except OSError as error:
            raise Damaged(f"{weights}: cannot be read ({error.strerror})") from error
        if changed:
            raise Damaged(
                f"the bytes of {weights} are not those that were saved with {STATE_FILE}: the file is damaged, or was "
                "replaced"
            )
    return state


def _crc32(path: Path) -> int:
    """Of a file's bytes, which are read a part at a time."""
    crc = 0
    with path.open("rb") as file:
        for part in iter(lambda: file.read(_AT_ONCE), b""):
            crc = zlib.crc32(part, crc)
    return crc


def check_facts(state: dict[str, Any], facts: dict[str, Any], checkpoint: Path) -> None:
    """Raises ValueError with a table of all flags that make this another run than the saved one."""
    saved = {**_FORMER, **state["facts"]}
    rows = [("flag", f"in {checkpoint.name}", "now")]
    for flag, value in facts.items():
        if flag == _MODEL and flag in saved:
            then, now = json.loads(saved[flag]), json.loads(value)
            rows += [(f"{flag}: {k}", then.get(k), now.get(k)) for k in {**then, **now} if then.get(k) != now.get(k)]
        elif saved.get(flag) != value:
            rows.append((flag, saved.get(flag), value))
    if len(rows) == 1:
        return
    lines = [f"{checkpoint}: a resumed run continues exactly, but these flags make it another one", *_table(rows)]
    follow = [flag for flag in ("--lr-warmup-steps", "--lr-decay-steps") if flag in {row[0] for row in rows}]
    if follow:
        given = " ".join(f"{flag} {saved[flag]}" for flag in follow if saved.get(flag) is not None)
        lines.append(f"{' and '.join(follow)}: from --epochs and --training-steps, unless given: {given}")
        if "--lr-decay-steps" in follow and saved.get("--lr-decay-steps") is not None:
            rate = last_rate(saved["--min-learning-rate"])
            lines.append(f"With these its schedule stays, and steps after its end have a learning rate of {rate}")
    lines.append(
        "Use the flags of that run, or start a new one from its weights: --pretrained-checkpoint without "
        "--resume-training-from-checkpoint"
    )
    raise ValueError("\n      ".join(lines))


def _table(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Columns side by side; a cell that is too long for that stands on a line of its own."""
    cells = [[str(cell) for cell in row] for row in rows]
    narrow = [row for row in cells if max(map(len, row[1:])) <= _CELL]
    widths = [max(len(row[0]) for row in cells)] + [max(len(row[column]) for row in narrow) for column in (1, 2)]
    lines = []
    for row in cells:
        if row in narrow:
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        else:
            lines += [f"{row[0]}", f"  {cells[0][1]}: {row[1]}", f"  {cells[0][2]}: {row[2]}"]
    return lines


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
