"""Processes that hang, or are only busy: what the others make of it (engine/processes/watch.py)."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import re
import signal
import subprocess
import threading
import time
import types

import pytest
import torch
from launch import together

import popdist.poptorch
import poptorch
from poptorch.engine.processes.identity import Identity
from poptorch.engine.processes.reduction import exchange
from poptorch.engine.processes.watch import Watch

HEARTBEAT = {"POPTORCH_PORTABLE_HEARTBEAT": "2"}


class Model(torch.nn.Module):
    """(1, 2) -> the loss, by way of the host where something shall happen `there`."""

    def __init__(self, there=None):
        super().__init__()
        self.body = torch.nn.Linear(2, 1)
        self.on_host = None if there is None else poptorch.CPU(_Calling(there), "there")

    def forward(self, x):
        x = x if self.on_host is None else self.on_host(x)[0]
        return poptorch.identity_loss(self.body(x).mean(), "sum")


class _Calling(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        self.function()
        return x.clone()


def trained(fault, who: int, where: str = "between") -> int:
    """Four calls; before or in the third process `who` does what `fault` does. How many calls were made."""
    rank, calls = int(os.environ["RANK"]), 0

    def then() -> None:
        if calls == 2 and rank == who:
            fault()

    options = poptorch.Options()
    options.Distributed.configureProcessId(rank, int(os.environ["WORLD_SIZE"]))
    executor = poptorch.trainingModel(Model(then if where == "call" else None), options)
    for _ in range(4):
        if where == "between":
            then()
        executor(torch.ones(1, 2))
        calls += 1
    return calls


def stops() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps() -> None:
    time.sleep(1000)


def loops() -> None:
    while True:
        pass


def works() -> None:
    """Longer than a process may do nothing, and leaves other programs of this file some of the processors."""
    until = time.monotonic() + 6
    while time.monotonic() < until:
        sum(range(50_000))
        time.sleep(0.005)


FAULTS = {
    "stopped": (stops, 1, "between", "has given no sign of life for [23] s"),
    "asleep": (sleeps, 1, "between", "has done nothing for [45] s, and the others wait for it"),
    "in an endless loop": (loops, 1, "call", r"has not got on in its call for [45] s, after 0\.\d s at most before"),
    "killed": (dies, 1, "between", "has ended"),
    "stopped, and serves the store": (stops, 0, "between", "does not answer any more"),
}


def message(*words) -> str:
    """What a program of two processes that does not succeed says."""
    with pytest.raises(AssertionError) as caught:
        together(2, *words, **HEARTBEAT)
    return str(caught.value)


def at_once(function, calls: dict[str, tuple]) -> dict:
    """What the function returns for each of the calls. They wait, seconds of it, at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return dict(zip(calls, pool.map(lambda words: function(*words), calls.values()), strict=True))


@pytest.fixture(scope="module")
def messages() -> dict[str, str]:
    hang = {name: (trained, *FAULTS[name][:3]) for name in [*FAULTS][:2]}
    return at_once(message, {**hang, "pipeline": (pipelined,)})


@pytest.mark.parametrize("name", [*FAULTS][:2] + [pytest.param(name, marks=pytest.mark.long) for name in [*FAULTS][2:]])
def test_a_process_that_hangs_ends_the_program(name, messages):
    fault, who, where, told = FAULTS[name]
    text = messages[name] if name in messages else message(trained, fault, who, where)
    assert f"process {who}: ended without a word" in text, text
    assert re.search(rf"process {who} of 2 \(replica {who}; host \S+, pid \d+\) {told}", text), text


class TwoStages(torch.nn.Module):
    """(1, 2) -> the loss, by two IPUs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)

    def forward(self, x):
        with poptorch.Block("first", ipu_id=0):
            h = self.first(x)
        with poptorch.Block("second", ipu_id=1):
            return poptorch.identity_loss(self.second(h).mean(), "sum")


def pipelined() -> None:
    """Three calls, before the last of which the second process dies."""
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "1"
    options = popdist.poptorch.Options(ipus_per_replica=2)
    options.Training.gradientAccumulation(3)
    executor = poptorch.trainingModel(TwoStages(), options)
    for call in range(3):
        if call == 2 and os.environ["RANK"] == "1":
            dies()
        executor(torch.ones(3, 2))


def test_of_a_pipeline_the_stages_are_named(messages):
    text = messages["pipeline"]
    named = r"Error: .*process 1 of 2 \(stages 1 of replica 0; host \S+, pid \d+\) has ended"
    assert "process 1: ended without a word" in text and re.search(named, text), text


@pytest.fixture(scope="module")
def results() -> dict[str, list]:
    """Of programs that outlast the heartbeat."""
    return at_once(lambda *words: together(2, *words, **HEARTBEAT), {"works": (trained, works, 1), "leaves": (leaves,)})


def test_a_process_that_works_is_waited_for(results):
    assert results["works"] == [4, 4]


@pytest.mark.long
def test_of_four_the_one_that_hangs_is_named():
    with pytest.raises(AssertionError) as caught:
        together(4, trained, stops, 2, **HEARTBEAT)
    assert set(re.findall(r"process (\d) of 4 \(", str(caught.value))) == {"2"}


def watching(store, process: int) -> Watch:
    """One of four that neither tells nor looks any more."""
    watch = Watch(store, process, 4, f"replica {process}", 20.0)
    watch.failure = "none"
    watch._wake.set()
    assert watch._told.wait(10)
    watch.failure = None
    return watch


@pytest.fixture
def four():
    """Processes 0 and 1 of four, for whom 1 and 2 have ended, and the store, as 0 sees it."""
    store = torch.distributed.HashStore()
    first, second = (watching(store, process) for process in range(2))
    for process in (1, 2, 3):
        who = Identity.own(f"replica {process}")
        first._store.set(
            f"who {process}", dataclasses.replace(who, started="" if process < 3 else who.started).to_json()
        )
        first._store.set(str(process), first._store.get("1"))
    return first, second, first._store


def test_of_two_that_have_ended_the_one_that_was_found_out_is_named(four):
    """Another, which found out, ends because of it, and may do so before this process has looked."""
    first, _, store = four
    store.set("failure", '{"process": 2, "by": 1, "text": "process 2 hangs"}')
    assert first.explanation("") == "process 2 hangs"


def test_of_two_that_have_ended_the_first_is_named(four):
    """The other one says whose end it met, and may then end at once."""
    first, second, store = four
    who = store.get("who 1")
    store.set("who 1", Identity.own("replica 1").to_json())
    second.explanation("")
    store.set("who 1", who)
    assert re.match("process 2 of 4 .* has ended", first.explanation("")), first.explanation("")


def test_a_process_is_named_though_the_others_cannot_be_told(four, monkeypatch):
    """The store may end between the question who it was and the answer."""
    first, _, store = four

    class Ending:
        def __getattr__(self, name):
            return getattr(store, name)

        def set(self, key, value):
            raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(first, "_store", Ending())
    assert re.match("process 1 of 4 .* has ended", first.explanation("")), first.explanation("")


@pytest.mark.parametrize("still", [True, False])
def test_time_for_which_this_process_stood_still_is_no_silence_of_another(four, still, monkeypatch):
    """As all of a job are stopped together: process 3 has given no sign of life for 4 s, nor has this one."""
    first, _, _ = four
    first._patience, found = 2.0, []
    monkeypatch.setattr(first, "_fail", lambda process, what: found.append(process))
    first._look()
    assert found == []
    now = time.monotonic()
    first._turn = now - 4 if still else now
    first._heard = {near: (beat, now - 4) for near, (beat, _) in first._heard.items()}
    first._look()
    assert found == ([] if still else [3])


def leaves() -> str:
    """The second process has nothing to do any more, the first goes on for longer than a heartbeat."""
    trained(works, 5)
    if os.environ["RANK"] == "0":
        works()
    return "done"


def test_a_process_that_has_done_its_part_may_leave(results):
    assert results["leaves"] == ["done", "done"]


def stuck_after_a_pause() -> set[str]:
    """What is said of a process that is stopped for 7 s in the middle of a call, in the second in which it goes on."""
    watch, executor, me = Watch(torch.distributed.HashStore(), 0, 2, "replica 0", 1.0), Model(), os.getpid()
    with watch.call(executor):
        pass
    with watch.call(executor):
        said, last, paused = set(), time.monotonic(), False
        pauses = subprocess.Popen(["sh", "-c", f"kill -STOP {me}; sleep 7; kill -CONT {me}"])
        until = last + 60
        while last < until:
            said.add(watch._stuck())
            now = time.monotonic()
            if now - last > 5 and not paused:
                paused, until = True, now + 1
            last = now
        pauses.wait()
    assert paused
    return said


def test_a_process_that_was_stopped_goes_on():
    """As all of a job are by a scheduler that suspends it: the time does not count."""
    assert together(1, stuck_after_a_pause) == [{""}]


@pytest.mark.parametrize("gone", [False, True], ids=["busy", "gone"])
def test_a_process_that_ends_talks_to_no_store_any_more(gone):
    """The interpreter would abort it in the middle of a request. The store may be busy, or have gone with process 0."""
    watch = Watch(torch.distributed.HashStore(), 0, 2, "replica 0", 20.0)
    asked, requests = threading.Event(), []

    def request(*_) -> None:
        requests.append(asked.set())
        if gone:
            raise RuntimeError("broken pipe")
        if len(requests) == 1:
            time.sleep(3)

    watch._store = types.SimpleNamespace(set=request, wait=request, check=request)
    watch._wake.set()
    assert asked.wait(10)
    watch.leave()
    assert watch._told.is_set()
    before = len(requests)
    time.sleep(0.5)
    assert len(requests) == before


def test_a_heartbeat_that_is_no_number_is_named():
    with pytest.raises(AssertionError, match="POPTORCH_PORTABLE_HEARTBEAT='soon' must be a number of seconds"):
        together(1, trained_as_one_of_two, POPTORCH_PORTABLE_HEARTBEAT="soon")


def trained_as_one_of_two() -> int:
    os.environ["WORLD_SIZE"] = "2"
    return trained(works, 5)


def test_a_want_of_memory_of_its_own_is_not_laid_on_another_process():
    with pytest.raises(RuntimeError, match="^(?!.*another process).*can't allocate memory"), exchange():
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(poptorch.Error, match="another process of this program has ended or does not answer: reset"):
        with exchange():
            raise RuntimeError("reset")
