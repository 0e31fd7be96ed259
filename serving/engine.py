"""Many texts at once: each has a slot of the key/value cache, joins the batch when one is free, leaves it at its end.

A turn of the engine takes some prompts in, each in calls of its own, and then makes one token of every text. No text
depends on the texts beside it: with the native operators its logits are the same to the last bit. For that, no call has
a prompt beside anything else, and the operators add up in one order whatever the number of rows
(custom_ops/few_rows_kernels.h).
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
import traceback
from typing import Callable, Iterable, Sequence

import torch
from torch import Tensor

from custom_ops.top_scores import host_top_scores
from generation.requests import NonFiniteScores
from generation.sampling import choose
from serving.job import Job, Scored

# A call of generation.decoding.SlotStep: (B, T) int32 ids, (B,) int32 first positions, numbers of tokens, wanted
# columns -> (B, V) float32 logits.
SlotStep = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

PROMPT_TOKENS = 256  # prompts are taken in until so many tokens are, and then all texts get their next token


class Full(Exception):
    """The queue has no room for a text."""


class Closed(Exception):
    """The engine takes no more texts: it is about to end."""


class TimeUp(Exception):
    """The time of a text was up before it was whole."""


@dataclasses.dataclass
class _Row:
    """A job and where its slot stands."""

    job: Job
    number: int
    pending: list[int]  # tokens that still go into the model
    start: int = 0  # the position of the first of them
    decodes: bool = False  # whether the prompt is in
    scored: list[Scored] = dataclasses.field(default_factory=list)  # of the prompt


class Engine:
    """Texts in slots. `submit` and `cancel` may be called from any thread, `turn` from one.

    Args:
        step: its batch is the number of slots.
        width: T, the tokens of a row that go into a call.
        queue: texts that may wait for a slot.
        together: texts in a call, and tokens of a prompt that are scored in one; not given: as many as there are slots.
    """

    def __init__(
        self,
        step: SlotStep,
        slots: int,
        width: int,
        queue: int,
        clock: Callable[[], float] = time.monotonic,
        together: int | None = None,
    ) -> None:
        self._step, self.slots, self._width, self.queue, self.clock = step, slots, width, queue, clock
        self._together = min(slots, together or slots)
        self._rows: list[_Row | None] = [None] * slots
        self._waiting: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._news = False  # something that a turn has not seen
        self.prompt_tokens = self.new_tokens = self.steps = 0  # so far

    @property
    def running(self) -> int:
        """Slots that are taken."""
        return sum(row is not None for row in self._rows)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes all of the jobs or none. Raises Full or Closed."""
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) + len(jobs) > self.queue + self.slots - self.running:
                raise Full
            for job in jobs:
                job.submitted = self.clock()
            self._waiting.extend(jobs)
            self._notify()

    def cancel(self, job: Job) -> None:
        """Its slot, or its place in the queue, is free from the next turn on; its listener hears no more."""
        with self._changed:
            job.cancelled = True
            self._notify()

    def close(self) -> None:
        """No more jobs are taken; those that were go on."""
        with self._changed:
            self._closed = True
            self._notify()

    def _notify(self) -> None:
        self._news = True
        self._changed.notify()

    def wait(self, seconds: float) -> None:
        """After a turn with nothing to do: until `submit`, `cancel` or `close` is called, or so long."""
        with self._changed:
            if not self._news:
                self._changed.wait(seconds)
            self._news = False

    def fail(self, error: Exception) -> None:
        """Every job ends with this error."""
        self.close()
        with self._changed:
            jobs = [row.job for row in self._rows if row is not None] + list(self._waiting)
            self._rows = [None] * self.slots
            self._waiting.clear()
        for job in jobs:
            self._end(job, error)

    def turn(self) -> bool:
        """Takes prompts in and makes the next token of each text. Returns whether there was anything to do."""
        self._end_late_ones()
        self._fill_slots()
        rows = [row for row in self._rows if row is not None]
        if not rows:
            return False
        taken = 0
        for row in sorted((row for row in rows if not row.decodes), key=lambda row: row.job.submitted):
            while not row.decodes and not row.job.over and taken < PROMPT_TOKENS:
                taken += self._take_prompt(row)
        ready = [row for row in rows if row.decodes and not row.job.over]
        for first in range(0, len(ready), self._together):
            self._next_tokens(ready[first : first + self._together])
        self._free_slots()
        return True

    def _end_late_ones(self) -> None:
        now = self.clock()
        with self._changed:
            jobs = [row.job for row in self._rows if row is not None] + list(self._waiting)
        for job in jobs:
            if now >= job.deadline and not job.over:
                self._end(job, TimeUp())
        self._free_slots()

    def _fill_slots(self) -> None:
        with self._changed:
            self._waiting = collections.deque(job for job in self._waiting if not job.over)
            for number, row in enumerate(self._rows):
                if row is None and self._waiting:
                    job = self._waiting.popleft()
                    self._rows[number] = _Row(job, number, list(job.text.prompt))

    def _free_slots(self) -> None:
        with self._changed:
            self._rows = [None if row is None or row.job.over else row for row in self._rows]

    def _end(self, job: Job, error: Exception) -> None:
        job.error = error
        self._tell(job, [])

    def _call(self, parts: Iterable[tuple[int, int, Sequence[int]]], wanted: Sequence[int]) -> Tensor:
        """(B, V) logits of a step; `parts` are (slot, first position, tokens), `wanted` columns of the B x T."""
        ids = torch.zeros(self.slots, self._width, dtype=torch.int32)
        start, count = torch.zeros(self.slots, dtype=torch.int32), torch.zeros(self.slots, dtype=torch.int32)
        columns = torch.full((self.slots,), -1, dtype=torch.int32)
        for number, position, tokens in parts:
            ids[number, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
            start[number], count[number] = position, len(tokens)
        columns[: len(wanted)] = torch.tensor(wanted, dtype=torch.int32)
        self.steps += 1
        return self._step(ids, start, count, columns)

    def _take_prompt(self, row: _Row) -> int:
        """Some of a prompt's tokens, and behind the last of them the first new one. Returns how many went in."""
        scores = row.job.score_prompt
        part = row.pending[: min(self._width, self._together) if scores else self._width]
        row.pending, begin = row.pending[len(part) :], row.number * self._width
        columns = range(begin, begin + len(part)) if scores else [begin + len(part) - 1] if not row.pending else []
        logits = self._call([(row.number, row.start, part)], columns)
        row.start += len(part)
        self.prompt_tokens += len(part)
        if scores:
            behind = part[1:] + row.pending[:1]
            if not row.scored:
                row.scored.append(Scored(part[0]))
            row.scored += self._scored(logits[: len(behind)], behind, row.job.alternatives)
        if not row.pending:
            row.decodes = True
            if scores:
                if not len(row.job.text.uniform):
                    row.job.text.ended = "length"
                self._tell(row.job, row.scored)
            if not row.job.over:
                self._draw(row, logits[len(columns) - 1])
        return len(part)

    def _next_tokens(self, rows: Sequence[_Row]) -> None:
        parts = [(row.number, row.start, row.pending) for row in rows]
        logits = self._call(parts, [row.number * self._width for row in rows])
        for row, own in zip(rows, logits):
            row.start += 1
            self._draw(row, own)

    def _draw(self, row: _Row, logits: Tensor) -> None:
        """The next token of a text from its (V,) logits."""
        job, text = row.job, row.job.text
        changed = job.changed(logits)
        place = text.uniform[len(text.tokens)].unsqueeze(0)
        token, log_prob = (
            each.item() for each in choose(changed.unsqueeze(0), None, place, job.sampling, host_top_scores)
        )
        if job.alternatives or changed is not logits:
            (scored,) = self._scored(logits.unsqueeze(0), [token], job.alternatives)
        else:
            scored = Scored(token, log_prob)
        try:
            belongs = text.take(token, scored.log_prob, job.stop_ids)
        except NonFiniteScores as error:
            self._end(job, error)
            return
        row.pending = [token]
        self.new_tokens += belongs
        self._tell(job, [scored])

    def _tell(self, job: Job, scored: Sequence[Scored]) -> None:
        if job.cancelled:
            return
        try:
            job.listener(job, scored)
        except Exception as error:  # noqa: BLE001 - whatever one request makes of its texts, the others go on
            traceback.print_exc()
            if job.error is None:
                self._end(job, error)

    @staticmethod
    def _scored(logits: Tensor, tokens: Sequence[int], alternatives: int) -> list[Scored]:
        """(N, V) logits, the N tokens behind them."""
        log_probs = logits.log_softmax(-1)
        own = log_probs.gather(1, torch.tensor(tokens, dtype=torch.long).unsqueeze(1)).squeeze(1).tolist()
        found = log_probs.topk(min(alternatives, log_probs.shape[1]))
        best = [list(zip(ids, values)) for ids, values in zip(found.indices.tolist(), found.values.tolist())]
        return [Scored(*each) for each in zip(tokens, own, best)]
