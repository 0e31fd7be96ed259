"""corpora/atomic.py: files that appear whole, and what is no file."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from corpora import atomic
from corpora.atomic import atomic_file

ROOT = Path(__file__).resolve().parents[2]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    with atomic_file(path) as file:
        file.write(b"some")
    reader.join(60)
    assert read == [b"some"] and stat.S_ISFIFO(path.stat().st_mode)
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
def test_a_device_without_room_is_named_and_stays():
    with pytest.raises(OSError) as caught, atomic_file("/dev/full") as file:
        file.write(b"some")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
    assert Path("/dev/full").is_char_device()


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no such link")
@pytest.mark.parametrize("redirected", [True, False])
def test_what_stands_for_the_output_is_added_to(tmp_path, redirected):
    """As root /dev/stdout was replaced by a file, for every program of the machine."""
    code = """import sys
from corpora import atomic
from corpora.atomic import atomic_file
print("before", flush=True)
with atomic_file("/dev/stdout") as file:
    file.write(b"some\\n")
print("after")"""
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, check=True, stdout=out if redirected else subprocess.PIPE
        )
    assert (done.stdout if not redirected else (tmp_path / "out").read_bytes()) == b"before\nsome\nafter\n"
    assert Path("/dev/stdout").is_symlink()


def test_the_name_of_a_closed_output_is_not_replaced(tmp_path, monkeypatch):
    """As root a program started with >&- made a file of /dev/stdout."""
    name = tmp_path / "stdout"
    name.symlink_to("/proc/self/fd/987654")
    monkeypatch.setitem(atomic._STANDARD, str(name), 987654)
    with pytest.raises(OSError) as caught, atomic_file(name) as file:
        file.write(b"some")
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, str(name))
    assert [each.name for each in tmp_path.iterdir()] == ["stdout"] and name.is_symlink()
