"""Each process of a program tells the others that it is alive, and they end the program when one hangs.

A thread writes a state to the store of the processes' rendezvous once a second, and reads those of the processes before
and behind it in number. What is found:

    silent   no state has come for POPTORCH_PORTABLE_HEARTBEAT seconds: stopped, swapped out, its machine or network
             gone, or in native code that lets no other thread of it run
    stuck    while others wait for it, it has done nothing for twice as long (activity.py), or has not got on in its
             call of the executor for ten times the longest time so far

Who finds it says so; every process then ends, within seconds: the one that hangs by a SIGKILL from one on its machine,
the others by the error that follows in torch.distributed, or by themselves. A process that is busy outside of a call is
waited for until POPTORCH_PORTABLE_TIMEOUT: it may save, compile, validate or fetch data.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import datetime
import json
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from ...notices import logger
from .activity import Activity
from .identity import Identity

_BEAT = 1.0  # seconds
_PAUSE = 5.0  # seconds without a beat, after which this process was the one that stood still
_GRACE = 12.0  # seconds for a program to end by itself once a process of it has gone: it may have something to say
_STORE = datetime.timedelta(seconds=5)
_SLOWER = 10  # times the longest time that passed without another process, until which one call may take
_EVIDENCE = 3.0  # seconds after an error in which it turns out which process has gone
_SLICE = 0.1  # seconds
_FAREWELL = 12.0  # seconds for it, in which both requests to a store that does not answer have ended


class Watch:
    """This process among those of a program.

    Args:
        store: what only they share. process, processes: the number of this one, and how many there are.
        holds: what this one has of the model, for messages. patience: seconds without a sign of life.
    """

    def __init__(self, store: dist.Store, process: int, processes: int, holds: str, patience: float):
        self._kept = store  # process 0 may serve it, until it ends
        self._store = dist.PrefixStore("watch", store.clone())  # another connection: the program's may wait
        self._store.set_timeout(_STORE)
        self._me, self._count, self._patience = process, processes, patience
        self._near = sorted({(process + step) % processes for step in (1, -1)} - {process})
        self._heard = dict.fromkeys(self._near, (-1, time.monotonic()))  # number of the last state, and when it came
        self._activity = Activity()
        self._beats, self._left = 0, False
        self._wake, self._told = threading.Event(), threading.Event()
        self._turn = self._tick = time.monotonic()  # of the two threads, the last ones
        self.waiting = False  # for other processes
        self._begun: float | None = None  # when the executor's call, or its part since the last wait, began
        self._in_call = 0.0  # the longest such part of the call
        self._usual: float | None = None  # of earlier calls of that executor
        self._longest: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        self._server: Identity | None = None  # who process 0 is, which may serve the store
        self.failure: str | None = None
        self._identity = Identity.own(holds)
        self._store.set(f"who {process}", self._identity.to_json())
        atexit.register(self.leave)
        for work in (self._listen, self._guard):
            threading.Thread(target=work, name=f"poptorch {work.__name__}", daemon=True).start()

    # -- what this process does --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def call(self, executor: Any) -> Iterator[None]:
        """Around a call of an executor, whose calls all take about as long."""
        self._usual, self._in_call, self._begun = self._longest.get(executor), 0.0, time.monotonic()
        try:
            yield
            self._part()
            self._longest[executor] = max(self._usual or 0.0, self._in_call)
        finally:
            self._begun = None

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Around what needs the other processes."""
        self._part()
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False
            if self._begun is not None:
                self._begun = time.monotonic()

    def _part(self) -> None:
        if self._begun is not None:
            self._in_call = max(self._in_call, time.monotonic() - self._begun)

    def hold(self, what: str) -> None:
        """This process has that of the model."""
        if what != self._identity.holds:
            self._identity = dataclasses.replace(self._identity, holds=what)
            self._store.set(f"who {self._me}", self._identity.to_json())

    def leave(self) -> None:
        """This process has done its part."""
        if os.getpid() == self._identity.pid and self.failure is None:
            self._left = True
            self._wake.set()
            # Python ends a thread where it next asks for the interpreter's lock. In the C++ of a store's request that
            # is std::terminate, the end of the process by SIGABRT. Slices, for while it is stopped nothing is answered.
            for _ in range(int(_FAREWELL / _SLICE)):
                if self._told.wait(_SLICE):
                    break

    def _stuck(self) -> str:
        """Why others should not wait for this process any longer; empty as long as they should."""
        idle, begun, usual, now = self._activity.idle(), self._begun, self._usual, time.monotonic()
        if self.waiting or now - self._tick > _PAUSE:
            return ""
        if idle > 2 * self._patience:
            return f"has done nothing for {idle:.0f} s, and the others wait for it"
        if begun is not None and usual is not None and now - begun > max(2 * self._patience, _SLOWER * usual):
            return (
                f"has not got on in its call for {now - begun:.0f} s, after {usual:.1f} s at most before, and the "
                "others wait for it"
            )
        return ""

    # -- the threads -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        failing_since = None
        while self.failure is None:
            last = self._left
            try:
                self._tell()
                if last:
                    break
                self._look()
                failing_since = None
            except RuntimeError:  # the store does not answer
                if last:
                    break
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > self._patience:
                    self._store_gone()
            self._turn = time.monotonic()
            self._wake.wait(_BEAT)
        self._told.set()

    def _guard(self) -> None:
        """A request to a store that has been stopped may never return."""
        while not self._left and self.failure is None:
            before = time.monotonic()
            time.sleep(_BEAT)
            slept = time.monotonic() - before
            if slept > _PAUSE:  # all that time the process was stopped, perhaps with all others
                self._activity.begin()
                self._begun = None if self._begun is None else self._begun + slept
            self._tick = time.monotonic()
            if slept < 2 * _BEAT and time.monotonic() - self._turn > self._patience + 5:
                self._store_gone()

    def _tell(self) -> None:
        self._beats += 1
        state = {
            "beat": self._beats,
            "left": self._left,
            "waiting": self.waiting,
            "exchanges": _exchanges(),
            "stuck": "" if self._left else self._stuck(),
        }
        self._store.set(str(self._me), json.dumps(state))
        self._store.wait([str(self._me)], _STORE)  # the store answers in time, or this raises

    def _look(self) -> None:
        declared = self._declared()
        if declared is not None:
            self._end(declared)
        if self._server is None and self._store.check(["who 0"]):
            self._server = self._who(0)
        now = time.monotonic()
        still = max(0.0, now - self._turn - _BEAT)  # for which this process was stopped, or had no processor
        self._heard = {near: (beat, at + still) for near, (beat, at) in self._heard.items()}
        for near in self._near:
            if not self._store.check([str(near)]):
                continue  # it is still on its way here
            state = json.loads(self._store.get(str(near)))
            beat, at = self._heard[near]
            if state["left"]:
                continue
            if state["beat"] != beat:
                self._heard[near] = (state["beat"], now)
                if state["stuck"] and self._waits_for(state):
                    self._fail(near, state["stuck"])
            elif now - at > self._patience and (self.waiting or not self._who(near).has_ended()):
                self._fail(near, f"has given no sign of life for {now - at:.0f} s")

    def _waits_for(self, state: dict[str, Any]) -> bool:
        """Whether this process is in an exchange that the other one has not come to."""
        return self.waiting or _exchanges() > state["exchanges"]

    # -- the end -----------------------------------------------------------------------------------------------------

    def _declared(self) -> dict[str, Any] | None:
        """What the process that found one out said, which ends the program."""
        return json.loads(self._store.get("failure")) if self._store.check(["failure"]) else None

    def _fail(self, process: int, what: str) -> None:
        """Process number `process` ends the program. The first to find out says it."""
        mine = json.dumps({"process": process, "by": self._me, "text": f"{self._name(process)} {what}"})
        if self._store.compare_set("failure", "", mine).decode() == mine:
            logger.error(f"{json.loads(mine)['text']}: the program ends")
        self._end(json.loads(self._store.get("failure")))

    def _end(self, failure: dict[str, Any]) -> None:
        self.failure = failure["text"]
        hanging = failure["process"]
        if hanging == self._me:
            os._exit(1)
        who = self._who(hanging)
        near = [process for process in range(self._count) if self._who(process).place == who.place]
        if near != [hanging]:  # one of them ends it, so that the others' exchanges with it fail
            who.kill()
            time.sleep(_GRACE)
        os._exit(1)

    def _store_gone(self) -> None:
        """The store is torchrun's, which ends its processes unless it has been killed itself, or process 0's."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            self.failure = "the launcher does not answer any more"
            logger.error(f"{self.failure}: process {self._me} of {self._count} ends")
        elif self.waiting and self._server is not None:
            self.failure = f"{self._server.named(0, self._count)} does not answer any more"
            logger.error(f"{self.failure}: the program ends")
            self._server.kill()
            time.sleep(_GRACE)
        else:
            return
        os._exit(1)

    # -- who it was --------------------------------------------------------------------------------------------------

    def explanation(self, default: str) -> str:
        """Which process an error of torch.distributed is about; `default` if none of them has gone."""
        until = time.monotonic() + _EVIDENCE
        while time.monotonic() < until and self.failure is None:
            with contextlib.suppress(RuntimeError):
                declared = self._declared()
                culprit = declared["text"] if declared else self._culprit()
                if culprit:
                    with contextlib.suppress(RuntimeError):  # told at once: this process may end before its next beat
                        self._store.set(f"blames {self._me}", culprit)
                    return culprit
            time.sleep(_BEAT / 10)
        if self.failure:
            return self.failure
        with contextlib.suppress(RuntimeError):
            for process, state in self._states().items():
                if not state["waiting"] and self._waits_for(state):
                    return f"{self._name(process)} has not come to what all do together ({default})"
        return default

    def _states(self) -> dict[int, dict[str, Any]]:
        others = [process for process in range(self._count) if process != self._me]
        return {process: json.loads(self._store.get(str(process))) for process in others}

    def _culprit(self) -> str:
        """The process that went first, rather than one that followed it; empty if all are there."""
        found = []
        for process, state in self._states().items():
            if self._who(process).has_ended() or state["left"]:
                key = f"blames {process}"  # which it wrote before it ended
                blames = self._store.get(key).decode() if self._store.check([key]) else ""
                found.append((bool(blames), state["left"], blames or f"{self._name(process)} has ended"))
        return min(found)[2] if found else ""

    def _who(self, process: int) -> Identity:
        return Identity.from_json(self._store.get(f"who {process}"))

    def _name(self, process: int) -> str:
        return self._who(process).named(process, self._count)


def _exchanges() -> int:
    """How many collectives this process has begun, the program's own included."""
    return dist.group.WORLD._get_sequence_number_for_group() if dist.is_initialized() else 0


def replicas(process: int, each: int) -> str:
    """What a process holds that has `each` whole replicas, for messages."""
    first = process * each
    return f"replica {first}" if each == 1 else f"replicas {first} to {first + each - 1}"


_watch: Watch | None = None


def current() -> Watch | None:
    """This process's own, once it has met the others."""
    return _watch


def begin(store: dist.Store, process: int, processes: int, holds: str, patience: float) -> None:
    """Watch and be watched from now on, if that has not begun: arguments as of Watch."""
    global _watch
    if _watch is None:
        _watch = Watch(store, process, processes, holds, patience)


@contextlib.contextmanager
def call(executor: Any) -> Iterator[None]:
    """Around a call of an executor."""
    with contextlib.nullcontext() if _watch is None else _watch.call(executor):
        yield
