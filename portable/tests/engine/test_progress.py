"""What is said of calls that take long."""

from __future__ import annotations

import pytest

from poptorch.engine.running import progress


class Clock:
    """time.monotonic() that only moves when told."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(progress, "time", fake)
    return fake


def run(clock, seconds: list[float], total: int, announced: bool = False):
    call = progress.CallProgress(total, "cpu", announced)
    for each in seconds:
        clock.now += each
        call.step()
    call.close()


def test_a_long_call_is_announced_once_without_counting_the_warm_up_twice(clock, capsys):
    run(clock, [10.0, 2.0, 2.0, 2.0, 2.0, 2.0], total=101)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "poptorch: 101 micro-batches in this call, about 3 min 30 s on cpu (0.50 a second measured on the first 5)"
    ]
    run(clock, [10.0, 2.0, 2.0, 2.0, 2.0, 2.0], total=101, announced=True)
    assert capsys.readouterr().err == ""


def test_every_long_call_has_a_bar_on_a_terminal(clock, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, initial, **rest):
            self.state = [total, initial, False]
            bars.append(self.state)

        def update(self, steps=1):
            self.state[1] += steps

        def close(self):
            self.state[2] = True

    monkeypatch.setattr(progress, "tqdm", Bar)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    run(clock, [10.0, 2.0, 2.0, 2.0, 2.0, 2.0], total=101)
    run(clock, [10.0, 2.0, 2.0, 2.0, 2.0, 2.0], total=101, announced=True)
    assert bars == [[101, 6, True], [101, 6, True]]


def test_a_short_call_is_left_alone(clock, capsys):
    run(clock, [0.1] * 50, total=50)
    run(clock, [100.0] * 7, total=7)  # over before anything was measured
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "0 s"),
        (42, "42 s"),
        (200, "3 min 20 s"),
        (3600 * 5 + 725, "5 h 12 min"),
        (86400 * 3 + 4 * 3600, "3 days 4 h"),
    ],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text
