"""Two runs do not write to one folder at the same time."""

import fcntl
import os

import pytest
from tiny_run import flags, run_here, write_config

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


def test_a_save_of_another_run_is_left_alone(tmp_path, monkeypatch):
    """Resuming tidies up what a killed save has left; one that is under way looks the same."""
    write_config(tmp_path)
    save = tmp_path / "save"
    (save / ".step_1.new").mkdir(parents=True)
    monkeypatch.setattr(folder_lock, "_PATIENCE", 0.0)
    descriptor = os.open(str(save), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    refused = run_here([*flags(tmp_path, save_model_path=save), "--resume", "latest"])
    assert refused.status == 2 and "another run is writing there now" in refused.err
    assert (save / ".step_1.new").is_dir()
    os.close(descriptor)


def test_a_released_folder_is_free_although_a_process_was_forked_meanwhile(tmp_path):
    folder_lock.claim(tmp_path)
    inherited = os.dup(folder_lock._held[tmp_path.stat().st_dev, tmp_path.stat().st_ino])  # what a fork has
    folder_lock.release()
    other = os.open(str(tmp_path), os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    os.close(inherited)
