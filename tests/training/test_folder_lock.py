"""Two runs do not write to one folder at the same time."""

import fcntl
import os

import pytest

from training import folder_lock


@pytest.fixture
def taken(tmp_path):
    """A folder that somebody else has; a lock belongs to who opened the folder, so another opening is somebody else."""
    descriptor = os.open(str(tmp_path), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield tmp_path
    os.close(descriptor)


def test_a_folder_that_another_run_writes_to_is_refused(taken, monkeypatch):
    monkeypatch.setattr(folder_lock, "_PATIENCE", 0.0)
    with pytest.raises(ValueError, match="^--save-model-path .*: another run is writing there now; wait"):
        folder_lock.claim(taken)


def test_one_process_may_claim_a_folder_again_and_nobody_else(tmp_path):
    folder_lock.claim(tmp_path)
    folder_lock.claim(tmp_path)
    other = os.open(str(tmp_path), os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
