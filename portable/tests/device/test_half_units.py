"""Whether products of 16 bits are worth it: what is asked, tried, measured and kept for the machine."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from poptorch.device import half_units

BFLOAT16 = torch.bfloat16


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The file in which measurements are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    half_units.speed.cache_clear()
    yield tmp_path / "poptorch-portable" / "half_speed.json"
    half_units.speed.cache_clear()


@pytest.fixture
def claims(monkeypatch):
    """A CPU that claims units for bfloat16."""
    monkeypatch.setattr(half_units, "_flags", lambda: frozenset({"avx2", "avx512_bf16"}))


@pytest.fixture
def times(monkeypatch):
    """`times(*samples)`: what products take, (seconds in float32, in the other type) each. Counts what was taken."""
    taken = []

    def times(*samples):
        endless = iter(samples * 100)

        def stopwatch(dtype):
            return lambda: taken.append(next(endless)) or taken[-1]

        monkeypatch.setattr(half_units, "_stopwatch", stopwatch)
        return taken

    return times


def test_a_cpu_without_units_is_not_asked(cache, monkeypatch):
    monkeypatch.setattr(half_units, "_flags", lambda: frozenset({"avx2", "f16c"}))
    monkeypatch.setattr(half_units, "_library_says_so", lambda: False)
    for step in ("_fails", "_stopwatch", "_read"):
        monkeypatch.setattr(half_units, step, lambda *_: pytest.fail("asked"))
    found = half_units.speed(BFLOAT16)
    assert not found.worth_it and found.why == "this CPU has no units for bfloat16"
    assert not cache.exists()


@pytest.mark.parametrize(("ratio", "worth_it"), [(4.5, True), (1.5, True), (1.4, False), (0.02, False)])
def test_the_measurement_decides(ratio, worth_it, cache, claims, times):
    times((0.001 * ratio, 0.001))
    found = half_units.speed(BFLOAT16)
    assert found.worth_it == worth_it and found.ratio == pytest.approx(ratio)


def test_it_is_kept_for_the_machine(cache, claims, times, monkeypatch):
    taken = times((0.004, 0.001))
    half_units.speed(BFLOAT16)
    asked = len(taken)
    monkeypatch.setattr(half_units, "_fails", lambda dtype: pytest.fail("tried again"))
    half_units.speed.cache_clear()
    assert half_units.speed(BFLOAT16).ratio == 4.0 and len(taken) == asked


def test_another_number_of_threads_is_another_machine(cache, claims, times, monkeypatch):
    taken = times((0.004, 0.001))
    half_units.speed(BFLOAT16)
    asked = len(taken)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    half_units.speed.cache_clear()
    half_units.speed(BFLOAT16)
    assert len(taken) > asked and len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"KEY": "fast"}', '{"KEY": -1}', '{"KEY": NaN}', '{"KEY": true}'])
def test_a_damaged_file_is_measured_anew(text, cache, claims, times):
    times((0.004, 0.001))
    cache.parent.mkdir()
    key = half_units._key("bfloat16").replace("\\", "\\\\")
    cache.write_text(text.replace("KEY", key))
    assert half_units.speed(BFLOAT16).ratio == 4.0
    assert list(json.loads(cache.read_text()).values()) == [4.0]


def test_a_file_of_other_bytes_is_measured_anew(cache, claims, times):
    times((0.004, 0.001))
    cache.parent.mkdir()
    cache.write_bytes(b"\xff\xfe\x00")
    assert half_units.speed(BFLOAT16).ratio == 4.0


def test_a_folder_that_cannot_be_made_is_no_error(cache, claims, times, tmp_path, monkeypatch):
    times((0.004, 0.001))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert half_units.speed(BFLOAT16).ratio == 4.0


def samples_of(*pairs):
    """A stopwatch with these samples, which fails when there are no more."""
    given = iter(pairs)
    return lambda: next(given)


def test_no_single_sample_decides():
    """One in which float32 was interrupted, and one in which the other type was."""
    for odd in ((0.1, 0.001), (0.001, 0.1)):
        ratio, steady = half_units.measure(samples_of(odd, *[(0.001, 0.001)] * 7))
        assert ratio == 1.0 and steady


def test_a_busy_machine_is_asked_longer_and_its_answer_not_kept(cache, claims, times):
    taken = times((0.001, 0.001), (0.003, 0.001), (0.009, 0.001), (0.001, 0.003))
    found = half_units.speed(BFLOAT16)
    assert len(taken) > half_units._FEWEST and found.ratio is not None
    assert not cache.exists()


def test_the_time_for_measuring_is_bounded():
    taken = []

    def slow():
        taken.append((0.02, 0.04) if len(taken) % 2 else (0.04, 0.02))
        return taken[-1]

    half_units.measure(slow)
    assert sum(map(sum, taken[:-1])) < max(half_units._BUDGET, half_units._FEWEST * 0.06)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child process tries the units")
@pytest.mark.parametrize(
    ("product", "told"),
    [
        (lambda dtype: os.kill(os.getpid(), signal.SIGILL), "a product with them ends by signal 4"),
        (lambda dtype: False, "a product with them is wrong"),
        (lambda dtype: 1 / 0, "a product with them fails"),
    ],
)
def test_units_that_are_not_there(product, told, cache, claims, monkeypatch, capfd):
    """As in a virtual machine that passes the flags on and traps."""
    monkeypatch.setattr(half_units, "_is_right", product)
    monkeypatch.setattr(half_units, "_stopwatch", lambda dtype: pytest.fail("measured"))
    found = half_units.speed(BFLOAT16)
    assert not found.worth_it and found.why == f"this CPU claims units for bfloat16, but {told}"
    assert not cache.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child process tries the units")
def test_units_that_hang(cache, claims, monkeypatch):
    monkeypatch.setattr(half_units, "_TRIAL", 0.05)
    monkeypatch.setattr(half_units, "_is_right", lambda dtype: signal.pause())
    assert half_units.speed(BFLOAT16).why.endswith("a product with them does not end")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child process tries the units")
def test_units_that_work_are_measured(cache, claims):
    """torch multiplies the type somehow on every CPU: the child finds it right, and the ratio is this machine's."""
    assert half_units.speed(BFLOAT16).ratio > 0
    assert half_units._is_right(BFLOAT16)
