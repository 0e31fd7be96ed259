"""corpora/termination.py and atomic_files: what belongs together is done whole, whatever signal comes meanwhile."""

import os
import signal
import threading

import pytest

from corpora.atomic import atomic_files
from corpora.termination import Terminated, terminable, undivided


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_acts_when_it_is_over(number, raised):
    done = []
    with pytest.raises(KeyboardInterrupt) as end, terminable():
        with undivided():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            done.append("inside")
        done.append("never")
    assert end.type is raised and done == ["inside"]


def test_an_error_inside_is_raised_where_no_signal_came():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError), undivided():
        raise ValueError
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_that_is_ignored_and_a_thread_change_nothing():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    done = []

    def work():
        with undivided():
            done.append(signal.getsignal(signal.SIGINT))

    try:
        work()
    finally:
        signal.signal(signal.SIGINT, before)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.SIG_IGN, before]


def test_files_that_belong_together_appear_together(tmp_path, monkeypatch):
    """A SIGTERM between two renames lets the second one be done, too; one before them leaves nothing."""
    first, second, replace = tmp_path / "first", tmp_path / "second", os.replace

    def write(before_the_end):
        with terminable(), atomic_files(first, second) as files:
            for file, content in zip(files, (b"one", b"two")):
                file.write(content)
            before_the_end()

    with pytest.raises(Terminated):
        write(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert list(tmp_path.iterdir()) == []

    def replaced(*paths):
        replace(*paths)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "replace", replaced)
    with pytest.raises(Terminated):
        write(lambda: None)
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two") and len(list(tmp_path.iterdir())) == 2
