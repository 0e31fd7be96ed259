"""Ctrl-C and SIGTERM: asked once, ended the second time, deferred while something must not be broken off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from command_line import interruption
from command_line.interruption import (
    PIPE_CLOSED,
    TERMINATED,
    Interruption,
    Terminated,
    exit_status,
    ignore_in_worker,
    interruptible,
)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def at_any_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two SIGTERMs in quick succession are two."""
    monkeypatch.setattr(interruption, "_SAME_TERMINATION", -1.0)


@pytest.mark.parametrize(
    ("number", "raised", "status"), [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, Terminated, 143)]
)
def test_the_first_asks_and_the_second_ends(number, raised, status, capfd, at_any_pace) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt) as end, Interruption("it ends.") as interrupted:
        assert not interrupted.asked
        send(number)
        assert interrupted.asked and interrupted.status == status
        send(number)
    assert end.type is raised and exit_status(end.value) == status
    name, again = ("Ctrl-C", "Press") if number == signal.SIGINT else ("SIGTERM", "Send it")
    assert capfd.readouterr().err == f"\n{name}: it ends. {again} again to stop at once.\n"
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_process_and_then_its_group_being_signalled_is_one_signal() -> None:
    """As `timeout` and torchrun do."""
    with Interruption() as interrupted:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert interrupted.asked
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_second_signal_waits_for_what_is_deferred(at_any_pace) -> None:
    done = []
    with pytest.raises(Terminated), Interruption() as interrupted:
        with interrupted.deferred():
            for _ in range(3):
                send(signal.SIGTERM)
                done.append("before")
            with interrupted.deferred():
                done.append("inside")
            done.append("after")
        done.append("never")
    assert done == ["before"] * 3 + ["inside", "after"]


def test_deferring_ends_nothing_that_was_not_asked_to_end() -> None:
    with Interruption() as interrupted:
        with interrupted.deferred():
            send(signal.SIGINT)
        assert interrupted.asked


def test_sigterm_raises_in_a_program() -> None:
    @interruptible
    def main(word: str) -> int:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt as stop:
            send(signal.SIGTERM)  # of the same termination
            return exit_status(stop)
        raise AssertionError(word)

    assert main("x") == TERMINATED
    send(signal.SIGTERM)  # while the interpreter ends
    assert main("y") == TERMINATED and interruptible(lambda: 3)() == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_program_does_not_catch_is_its_exit_status(number, status) -> None:
    assert interruptible(lambda: send(number))() == status


def test_nobody_reads_what_a_program_prints() -> None:
    program = "from command_line.interruption import interruptible\n"
    program += "@interruptible\ndef main():\n    for i in range(10**6):\n        print(i, flush=True)\n"
    words = [sys.executable, "-c", program + "raise SystemExit(main())"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", PIPE_CLOSED)
    process.stderr.close()


def test_another_pipe_that_is_closed_is_an_error() -> None:
    def main() -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        interruptible(main)()


def test_where_signals_are_ignored_or_cannot_be_caught_nothing_changes() -> None:
    main = interruptible(lambda: 3)
    found = []
    thread = threading.Thread(target=lambda: found.append(main()))
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        found.append(main())
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [3, 3]


def test_a_process_forked_while_signals_are_caught_does_not_answer_to_them() -> None:
    child = os.fork()
    if child == 0:
        with Interruption() as interrupted:
            send(signal.SIGTERM)
            forked = os.fork()
            if forked == 0:  # has the function still, but not the say
                send(signal.SIGTERM)
                os._exit(0)
            status = os.waitpid(forked, 0)[1]
        os._exit(0 if status == 0 and interrupted.asked else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_loader_process_ends_with_the_program_and_not_before() -> None:
    def fork() -> int:
        child = os.fork()
        if child == 0:
            ignore_in_worker(0)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
        return os.WEXITSTATUS(os.waitpid(child, 0)[1])

    assert interruptible(fork)() == 7, "the main process decides"
    assert fork() == 0, "what is left of it when it ends is told by SIGTERM"
