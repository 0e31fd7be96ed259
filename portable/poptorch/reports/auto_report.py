"""The report of POPLAR_ENGINE_OPTIONS: where a program's time goes, as a PyTorch profiler trace and a text.

In the report's folder each executor has one of its own, `training` or `inference` (`training_1`, … if there are more):
`report.html`, a page, and `report.json`, its numbers; `summary.txt`, the wall time by phase and the operators that make
up 90 % of the time, and `trace.json`, for chrome://tracing or Perfetto. The phases are timed over all calls after the
first one, which warms up. The operators and the trace are of a few micro-batches with the weight update after them: of
the second call, or of the first until there is a second. The files are written after the first call, after the second,
and when the program ends.

Where several processes run a program together each has summary and trace, of the first call, in a folder `rank_N`
there, and the page is of all of them: as of the last call whose number is a power of two. `timeline.json` beside it
says what every process did when, in seconds on one clock; `trace.json` there is the same for Perfetto.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..engine.processes import clock
from ..engine.processes.layout import Layout
from ..engine.running.ledger import Ledger
from ..engine.running.probe import Probe
from ..options import engine_options
from . import phases, record
from .files import ReportFiles, said
from .memory import MemoryMeter
from .phases import AWAITING, BETWEEN, EXCHANGE, OTHERS, REPORTING, REST, UPDATE, WAITING
from .report_text import summary
from .window import TraceWindow

_MOST_EVENTS = 20_000  # of a process in the timeline

_NOTHING = contextlib.nullcontext()
_active: list[AutoReport] = []
_taken: set[Path] = set()  # folders of this process's executors


class AutoReport(Probe):
    """Listens to one executor. Made by `probe`."""

    def __init__(
        self, folder: Path, own: Path, training: bool, device: torch.device, program: Any, rank: int | None = None
    ):
        """`folder`: the executor's, `own`: in it, this process's. `rank`: as of `probe`."""
        self._files = ReportFiles(folder, own, rank, training, device, program)
        self._rank, self._device, self._program = rank, device, program
        self._events: list[dict[str, Any]] = []
        self._marks: list[tuple[float, int]] = []  # when the backward pass reached which stage
        self._current, self._together = (0, 0), 1  # iteration and micro-batch, and how many run as one
        self._begun: set[tuple[int, int]] = set()  # micro-batches of this call
        self._memory = MemoryMeter(program.stages)
        self._ledger = Ledger(BETWEEN, self._settle)
        self._calls = self._micro_batches = self._done = 0
        self._wall = 0.0
        self._seconds: dict[str, float] = {}  # as of the end of the last call
        self._trace = TraceWindow(device, rank is not None, self._ledger, self._settle)
        _active.append(self)
        atexit.register(self._at_exit)

    # -- what the executor tells -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """One call. Afterwards the report of the first and of the second is written."""
        self._memory.call_ended()
        self._begun.clear()
        others = [(report, report._ledger.switch(OTHERS)) for report in _active if report is not self]
        for report, _ in others:
            report._forget_waits()
        self._ledger.switch(REST)
        try:
            yield
        finally:
            self._trace.stop(self._calls)
            self._ledger.switch(BETWEEN)
            self._calls += 1
            self._seconds, self._wall = dict(self._ledger.seconds), time.perf_counter() - self._ledger.started
            self._done = self._micro_batches
            for report, phase in others:
                report._ledger.switch(phase)
            if self._calls <= 2:
                with self._ledger.during(REPORTING):
                    self.write()
            if self._calls == 1:
                self._micro_batches = 0
                self._ledger.restart(BETWEEN)
            if self._rank is None:
                self._events.clear()

    def micro_batch(self, iteration: int, index: int, count: int, together: int = 1) -> None:
        """Starts the trace so that the iteration's end is in it."""
        if (iteration, index) not in self._begun:  # a pipeline begins it once for each span of stages
            self._begun.add((iteration, index))
            self._micro_batches += together
            self._trace.micro_batch(self._calls, index, count, together)
        self._current, self._together = (iteration, index), together
        if self._measures_memory:
            self._memory.begin(together)

    @contextlib.contextmanager
    def forward(self, stage: Any, values: dict[str, Any]) -> Iterator[None]:
        """A stage's forward pass. Its backward pass begins when gradients of its outputs are there."""
        name = phases.forward(stage)
        measured = self._memory.forward(stage, values, self._known(values)) if self._measures_memory else _NOTHING
        with self._event("forward", (stage,)), self._ledger.during(name), torch.profiler.record_function(name):
            with measured:
                yield
        if torch.is_grad_enabled():
            self._memory.sent(stage.index)

            def reached(gradient: torch.Tensor) -> None:
                self._ledger.switch(phases.backward(stage))
                self._marks.append((clock.now(), stage.index))

            for name in stage.outputs:
                value = values.get(name)
                if isinstance(value, torch.Tensor) and value.requires_grad:
                    value.register_hook(reached)

    @contextlib.contextmanager
    def backward(self, stages: Sequence[Any] = (), micro_batch: int | None = None) -> Iterator[None]:
        """The backward pass, which starts in the last stage."""
        stages = stages or self._program.stages
        first = self._ledger.during(phases.backward(stages[-1]))
        self._marks = [(clock.now(), stages[-1].index)]
        with self._event("backward", stages, micro_batch), first, torch.profiler.record_function("backward"):
            yield
        self._memory.back([stage.index for stage in stages])

    @property
    def _measures_memory(self) -> bool:
        """Of the first call, which is not timed, the first micro-batch."""
        return self._calls == 0 and self._current == (0, 0)

    def _known(self, values: Mapping[str, Any]) -> list[torch.Tensor]:
        program = self._program
        names = (*program.parameters, *program.buffers, *program.constants, *program.inputs)
        return [values[name] for name in names if isinstance(values.get(name), torch.Tensor)]

    def holds(self, state: Any, gradients: Mapping[str, Any], states: Mapping[str, Mapping[str, Any]]) -> None:
        """Counts them in the first two calls: nothing is added later."""
        if self._calls < 2:
            self._memory.holds(state, gradients, states)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Another process has not sent yet what this one needs."""
        with self._event("waiting"), self._ledger.during(AWAITING):
            yield

    @contextlib.contextmanager
    def communication(self) -> Iterator[None]:
        """Messages and sums over processes; in one process there are none."""
        if self._rank is None:
            yield
            return
        with self._event("communication"), self._ledger.during(EXCHANGE):
            yield

    @contextlib.contextmanager
    def update(self) -> Iterator[None]:
        """The optimizer's step."""
        with self._event("update"), self._ledger.during(UPDATE), torch.profiler.record_function(UPDATE):
            yield

    @contextlib.contextmanager
    def _event(self, kind: str, stages: Sequence[Any] = (), micro_batch: int | None = None) -> Iterator[None]:
        """What goes into the timeline. A backward pass through several stages is one event of each."""
        if self._calls > 1 or len(self._events) >= _MOST_EVENTS:
            yield
            return
        event: dict[str, Any] = {"kind": kind, "start": clock.now(), "iteration": self._current[0]}
        if stages:
            event["micro_batch"] = self._current[1] if micro_batch is None else micro_batch
            event["stages"] = [stage.index for stage in stages]
            if self._together > 1:
                event["together"] = self._together
        try:
            yield
        finally:
            if kind == "backward":
                reached = [(event["start"], self._marks[0][1]), *self._marks[1:], (clock.now(), -1)]
                for stage, group in itertools.groupby(zip(reached, reached[1:], strict=False), lambda two: two[0][1]):
                    parts = list(group)
                    times = {"start": parts[0][0][0], "end": parts[-1][1][0]}
                    self._events.append({**event, **times, "stages": [stage]})
            else:
                self._events.append({**event, "end": clock.now()})

    def events(self) -> list[dict[str, Any]] | None:
        """Of the first call and of the second, which has warmed up. Facts are asked for later, too."""
        if self._rank is None or self._calls & (self._calls - 1):
            return None
        events, self._events = self._events, []
        return events

    def facts(self) -> dict[str, Any]:
        """What this process measured of itself."""
        measured = {name: self._seconds[name] for name in (OTHERS, REPORTING) if name in self._seconds}
        own = [stage.index for stage in self._program.stages if phases.forward(stage) in self._seconds]
        return {
            "rank": self._rank or 0,
            "warming_up": self._calls == 1,
            "calls": max(1, self._calls - 1),
            "micro_batches": self._done,
            "wall_seconds": self._wall - sum(measured.values()),
            "left_out": measured,
            "phases": record.phase_rows(self._phases()),
            "memory": record.memory_of(self._memory, own, self._device),
            "operators": record.operators_of(self._trace.found),
        }

    def telling(self) -> contextlib.AbstractContextManager:
        """The others may still write their reports of the call."""
        return self._ledger.during(REPORTING)

    def told(self, events: list[dict[str, Any]], facts: list[dict[str, Any]]) -> None:
        """Writes the timeline of all processes, and the page."""
        self._files.shared(facts, events)

    def offline(self) -> None:
        """Writes the page of what was estimated."""
        self._files.offline()

    def iteration_done(self) -> None:
        """Ends the trace if it has enough."""
        self._trace.iteration_done(self._calls)

    # -- the data loader -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def data_wait(self) -> Iterator[None]:
        """Time in the loader, unless it is fetched inside a call."""
        if self._ledger.phase != BETWEEN:
            yield
            return
        self._forget_waits()
        self._current = (0, 0)  # it is for the iteration to come
        with self._event("data"), self._ledger.during(WAITING):
            yield

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _forget_waits(self) -> None:
        """What was waited for was not for the call to come."""
        self._events = [event for event in self._events if event["kind"] != "data"]

    # -- the files -------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write the report as it stands. A folder that cannot be written is said once; the program goes on."""
        head = [
            self._files.head(),
            f"program: {shlex.join(sys.argv)}",
            "the first call, warming up included"
            if self._calls == 1
            else f"{self._calls - 1:,} calls after the first one, which warms up",
        ]
        elsewhere = [(phase, self._seconds[phase]) for phase in (OTHERS, REPORTING) if phase in self._seconds]
        wall = self._wall - sum(seconds for _, seconds in elsewhere)
        text = summary(head, self._phases(), wall, elsewhere, self._done, self._trace.found)
        events = self._events if self._rank is None and self._calls <= 2 else []
        if self._files.own(text, self._trace.found, self.facts(), events) and self._calls == 1:
            said(self._files.folder)

    def _at_exit(self) -> None:
        if self._calls > 2:
            self.write()

    def _phases(self) -> list[tuple[str, float]]:
        """Every phase of this executor with its seconds, in the order of a step."""
        stages = [name(stage) for stage in self._program.stages for name in (phases.forward, phases.backward)]
        order = [WAITING, BETWEEN, *stages, UPDATE, AWAITING, EXCHANGE, REST]
        always = {WAITING, *(phases.forward(stage) for stage in self._program.stages)}
        return [(phase, self._seconds.get(phase, 0.0)) for phase in order if phase in always or phase in self._seconds]


def probe(options: Any, training: bool, device: torch.device, program: Any, rank: int | None = None) -> Probe:
    """A report if one is asked for, otherwise a probe that does nothing. Raises what report_folder raises.

    `rank`: the number of this process, where several run the program together.
    """
    folder = engine_options.report_folder(options)
    if folder is None:
        return Probe()
    kind = "training" if training else "inference"
    mine, number = folder / kind, 0
    while mine in _taken:
        number += 1
        mine = folder / f"{kind}_{number}"
    _taken.add(mine)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own lines about starting and stopping
    layout = Layout.of(options)  # processes that share nothing do not write to one folder either
    own = mine / f"rank_{layout.rank}" if layout.ranks > 1 else mine
    return AutoReport(mine, own, training, device, program, rank)


class WatchedIterator:
    """An iterator of a data loader whose waiting is reported."""

    def __init__(self, iterator: Iterator[Any]):
        self._iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            with contextlib.ExitStack() as stack:
                for report in _active:
                    stack.enter_context(report.data_wait())
                return next(self._iterator)
        except StopIteration:  # there was nothing to wait for
            for report in _active:
                report._forget_waits()
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


def watched(iterator: Iterator[Any], options: Any) -> Iterator[Any]:
    """`iterator` itself, unless a report is asked for."""
    return iterator if engine_options.report_folder(options) is None else WatchedIterator(iterator)
