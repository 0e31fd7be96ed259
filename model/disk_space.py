"""Room for checkpoints: what is asked before one is written, and the error if it cannot be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class CheckpointNotWritten(RuntimeError):
    """A checkpoint could not be written; what was in its place is still there.

    Args:
        directory: where it was to be. needed: its bytes, 0 if it did not come to that. error: what the system said;
            None if it was not asked.
    """

    def __init__(self, directory: Path, needed: int, error: Exception | None = None) -> None:
        free = free_bytes(directory)
        reason = f" ({getattr(error, 'strerror', None) or str(error).splitlines()[0]})" if error is not None else ""
        sizes = f": takes {needed:,} bytes, {free:,} are free there" if needed else ""
        super().__init__(
            f"{directory}: not saved{reason}{sizes}\n"
            "HINT: make room, lower --keep-checkpoints, or name another --save-model-path; with --on-save-error "
            "continue a run goes on without that checkpoint"
        )


def free_bytes(directory: Path) -> int:
    """Bytes that this user can still write on the disk of a directory, which need not be there yet."""
    there = Path(os.path.realpath(directory))
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def check_room(directory: Path, needed: int) -> None:
    """Raises CheckpointNotWritten if `needed` bytes do not fit beside what is there already."""
    if needed > free_bytes(directory):
        raise CheckpointNotWritten(directory, needed)
