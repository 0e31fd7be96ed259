"""The folder that a run saves to: the checkpoints in it, which of them are this run's, and the newest one."""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Callable, Sequence

from safetensors import SafetensorError, safe_open

from command_line.checks import is_first_process
from command_line.commands import command_line, without_flag
from model.checkpoint import CONFIG_FILE, recover_interrupted
from model.config import read_json_object
from model.disk_space import free_bytes
from model.weights import WEIGHTS_FILE
from training.folder_lock import claim
from training.run_file import run_file
from training.state import STATE_FILE, Damaged, read, read_whole

BEST = "best"  # the checkpoint of --keep-best; the others are step_N and epoch_N


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first: as run.json lists them, and before these those it does not know."""
    _tidy(folder)
    listed = {name: place for place, name in enumerate(recorded(folder))}
    found = [path for path in folder.iterdir() if _is_checkpoint_name(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (listed.get(path.name, -1), path.stat().st_mtime_ns))


def _tidy(folder: Path) -> None:
    """After a save that was killed: half a checkpoint goes, and one that it had moved aside comes back."""
    for left in [*folder.glob(".*.new"), *folder.glob(".*.old")]:
        if _is_checkpoint_name(left.stem[1:]):
            recover_interrupted(folder / left.stem[1:])


def _is_checkpoint_name(name: str) -> bool:
    return name == BEST or re.fullmatch(r"(step|epoch)_\d+", name) is not None


def recorded(folder: Path) -> list[str]:
    """The checkpoints that the run of run.json wrote, in that order; none if the file is missing or says nothing."""
    names = run_file(folder).get("checkpoints", [])
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def is_whole(checkpoint: Path) -> bool:
    """Whether the files of a checkpoint have the lengths that they state, and a run can be resumed from it."""
    try:
        read_json_object(checkpoint / CONFIG_FILE)
        with safe_open(str(checkpoint / WEIGHTS_FILE), "pt"):
            return zipfile.is_zipfile(str(checkpoint / STATE_FILE))
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder in the order in which --resume latest takes them: `best` if there is no other."""
    if not folder.is_dir():
        return []
    return sorted(checkpoints(folder)[::-1], key=lambda path: path.name == BEST)


def launch() -> str | None:
    """What tells one launch by torchrun from others: all starts of its processes have it. None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name != "none":  # that of --rdzv-id, or one that --standalone makes up
        return name
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"  # of one after the other, too


def _started_again(folder: Path) -> bool:
    """Whether the checkpoints in a folder are of this very launch, which torchrun has started again.

    Its count of restarts does not say so: it leaves out those after which there are more or fewer machines.
    """
    again = os.environ.get("TORCHELASTIC_RUN_ID") != "none" or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    same = launch() is not None and run_file(folder).get("launch") == launch()
    return again and same and bool(recorded(folder))


def find_latest(args: argparse.Namespace) -> dict[str, Any] | None:
    """--resume latest: the newest whole checkpoint becomes the one to resume; if there is none the run starts.

    A process that torchrun started again (--max-restarts) does so too, if this run has written a checkpoint. One that
    is damaged is passed over, which a line says; nothing is changed in it.

    Returns the checkpoint's training state, for the bytes have been compared then; None if the run starts, or
    something else is resumed. Raises ValueError if there are checkpoints and none of them can be resumed.
    """
    if args.resume != "latest" and not (args.save_model_path and _started_again(Path(args.save_model_path))):
        return None
    folder, damaged = Path(args.save_model_path), []
    for checkpoint in newest_first(folder):
        try:
            if not is_whole(checkpoint):
                raise Damaged(f"{checkpoint} is not a whole checkpoint to resume from")
            state = read_whole(checkpoint)
        except Damaged as error:
            damaged.append(str(error))
            print(f"--resume latest: passed over {checkpoint.name}, for {error}")
            continue
        args.pretrained_checkpoint, args.resume_training_from_checkpoint = str(checkpoint), True
        return state
    if damaged and not args.overwrite:
        raise ValueError(
            *damaged,
            f"--resume latest: of the checkpoints in {folder} none is whole; copy one there again, or start over with "
            "--overwrite, or with another --save-model-path",
        )
    print(f"--resume latest: no checkpoint in {folder}, the run starts from the beginning")
    return None


def names_due(args: argparse.Namespace, step: int, epoch: int, epoch_ended: bool, last: bool) -> list[str]:
    """The checkpoints to write after this step, a call of `epoch`; after the `last` one always one."""
    names = []
    if args.save_per_steps and step % args.save_per_steps == 0:
        names.append(f"step_{step}")
    if epoch_ended and args.save_per_epochs and (epoch + 1) % args.save_per_epochs == 0:
        names.append(f"epoch_{epoch}")
    return names or ([f"step_{step}"] if last else [])


class SaveFolder:
    """Makes the folder for checkpoints and tries it out, before hours of training do.

    Args:
        folder: --save-model-path.
        resumed: the checkpoint that the run goes on from; None if it starts.
        overwrite: --overwrite.
        argv: the command line, for the commands in messages.

    `written` has the names of this run's checkpoints, oldest first, those before it was resumed among them.

    Raises ValueError if the folder cannot be written, another run is writing there, or it has checkpoints that are not
    this run's.
    """

    def __init__(self, folder: Path, resumed: Path | None, overwrite: bool, argv: Sequence[str]) -> None:
        self.path = folder
        self.written: list[str] = []
        self._list = _no_list
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=str(folder)).close()
        except OSError as error:
            raise ValueError(
                f"--save-model-path {folder}: checkpoints cannot be written there ({error.strerror}); name another "
                "folder"
            ) from error
        if is_first_process():
            claim(folder)
        if resumed is not None and os.path.realpath(resumed.parent) == os.path.realpath(folder):
            _tidy(folder)
            names = recorded(folder)
            # The list is that of the run of this checkpoint, unless another run has started there since.
            self.written = [name for name in names if (folder / name).is_dir()] if resumed.name in names else []
            return
        others = checkpoints(folder)
        if others and not overwrite:
            raise ValueError(_taken(folder, others, argv))

    def check_room(self, least: int) -> None:
        """Raises ValueError if there is not even room for that many bytes, before hours of training."""
        free = free_bytes(self.path)
        if free < least:
            raise ValueError(
                f"--save-model-path {self.path}: a checkpoint of this model takes {least:,} bytes or more, {free:,} "
                "are free there; make room, or name a folder on another disk"
            )

    def keep_list(self, kept: Callable[[list[str]], None]) -> None:
        """`kept` is called with `written` now, and before a checkpoint is written, so that the list misses none."""
        self._list = kept
        kept(self.written)

    def best_loss(self) -> float:
        """The held-out loss of this run's checkpoint `best`; infinite if there is none."""
        if BEST not in self.written:
            return math.inf
        try:
            return float(read(self.path / BEST, ("held_out_loss",))["held_out_loss"])
        except (ValueError, KeyError):  # damaged: the next loss makes a new one
            return math.inf

    def writes(self, name: str) -> Path:
        """A checkpoint of that name is about to be written: where."""
        self.written = [other for other in self.written if other != name] + [name]
        self._list(self.written)
        return self.path / name

    def prune(self, keep: int) -> list[str]:
        """Delete all but the newest `keep` step_N and epoch_N of this run (0 keeps all). Returns the names of those."""
        for left in self.path.glob(".*.pruned"):  # by a run that was killed here
            shutil.rmtree(left)
        there = [name for name in self.written if name != BEST and (self.path / name).is_dir()]
        old = there[:-keep] if keep > 0 else []
        for name in old:  # under a name that says so while it is half there
            shutil.rmtree((self.path / name).rename(self.path / f".{name}.pruned"))
        self.written = [name for name in self.written if name not in old]
        return old


def _no_list(names: list[str]) -> None:
    """Until somebody keeps it."""


def _taken(folder: Path, others: Sequence[Path], argv: Sequence[str]) -> str:
    """Why a run does not start in a folder, and the commands that go on."""
    names = others[-1].name if len(others) == 1 else f"{others[0].name} … {others[-1].name}"
    number = next(n for n in range(2, len(others) + 1000000) if not os.path.exists(f"{folder}-{n}"))
    flags = elsewhere = without_flag(without_flag(argv, "--save-model-path"), "--checkpoint-output-dir")
    for name in ("--overwrite", "--resume"):
        flags = without_flag(flags, name)
    lines = [f"--save-model-path {folder}: has checkpoints of an earlier run ({names}), which this one would replace"]
    if any(map(is_whole, newest_first(folder))):
        for name in ("--pretrained-checkpoint", "--checkpoint-input-dir", "--resume-training-from-checkpoint"):
            flags = without_flag(flags, name)
        resume = [*flags, "--save-model-path", str(folder), "--resume", "latest"]
        lines.append("to resume that run:  " + command_line(resume))
    lines.append("to start elsewhere:  " + command_line([*elsewhere, "--save-model-path", f"{folder}-{number}"]))
    lines.append("to start over here:  --overwrite; checkpoints of equal names are replaced, others stay")
    return "\n      ".join(lines)
