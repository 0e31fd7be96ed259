"""Commands that messages give, such as the one that goes on with a run, for who called this program to paste."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Sequence


def caller() -> str | None:
    """Where the caller of a script of run/ stands, if that is another folder than the one the script went to."""
    folder = os.environ.get("CALLED_FROM")  # set by run/environment.sh
    return None if folder is None or os.path.realpath(folder) == os.getcwd() else folder


def misplaced(words: Sequence[str]) -> str:
    """What to say of paths on a command line that are there from where its caller stands, and not here; "" of none."""
    folder = caller()
    if folder is None:
        return ""
    values = [word.partition("=")[2] if word.startswith("--") else word for word in words]
    there = [os.path.join(folder, value) for value in values if value and not os.path.exists(value)]
    found = [shlex.quote(path) for path in there if os.path.exists(path)]
    return f"paths are relative to {os.getcwd()}; give {' and '.join(found)}" if found else ""


def command_line(argv: Sequence[str]) -> str:
    """This program with the flags `argv`, as one types it in a shell where the program was started.

    A script of run/ goes to the repository, which paths in flags are relative to, and has its caller type so from
    where the script was called. Processes that torchrun has started on one machine are so again.
    """
    command = shlex.join([sys.executable, *_torchrun(), sys.argv[0], *argv])
    return command if caller() is None else f"(cd {shlex.quote(os.getcwd())} && {command})"


def _torchrun() -> list[str]:
    """The words that start as many processes as this run has, if torchrun did, and all of them on this machine."""
    count = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" not in os.environ or count in ("1", "") or os.environ.get("LOCAL_WORLD_SIZE") != count:
        return []
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    again = [] if restarts == "0" else ["--max-restarts", restarts]
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, *again]


def left_to_launcher() -> bool:
    """Whether this is one of several processes, and `command_line` leaves it to the reader how to start them."""
    names = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")
    return any(os.environ.get(name, "1") not in ("1", "") for name in names) and not _torchrun()


def command_to_resume(argv: Sequence[str], checkpoint: Path) -> str:
    """The command line that continues the run of the flags `argv` from a checkpoint. The last of equal flags counts."""
    kept = without_flag(without_flag(argv, "--overwrite"), "--resume")
    resume = ["--pretrained-checkpoint", str(checkpoint), "--resume-training-from-checkpoint", "True"]
    if kept[-len(resume) :: 2] == resume[::2] and kept[-1] == "True":  # of the command that resumed this run
        kept = kept[: -len(resume)]
    return command_line([*kept, *resume])


def without_flag(argv: Sequence[str], name: str) -> list[str]:
    """A command line without a flag of at most one value, however it was written."""
    kept: list[str] = []
    dropping = False
    for word in argv:
        spelling = word.partition("=")[0]
        if spelling.startswith("--") and spelling.replace("_", "-") == name:
            dropping = "=" not in word
        elif dropping and not word.startswith("--"):
            dropping = False
        else:
            dropping = False
            kept.append(word)
    return kept
