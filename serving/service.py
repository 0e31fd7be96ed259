"""The engine on a thread of its own, and the requests that are handed to it from the loop of the HTTP side."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import threading
import time
import traceback
from typing import Any, Callable

from generation.sampling import Sampling
from serving.answers import Choice, Piece, closed, usage
from serving.completion_request import NO_OWN, CompletionRequest, read_request
from serving.engine import Closed, Engine, Full
from serving.errors import ApiError, bad
from serving.metrics import Metrics
from serving.model import ServedModel


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for: tokens of a prompt, seconds from its arrival to its end, bytes of its body."""

    prompt: int
    seconds: float
    body: int


class Exchange:
    """A request under way: its texts, and the pieces of them that have come, which are read on the running loop.

    If the answer is not streamed, a text is one piece: only its end wakes the loop, which shares the processors with
    the model.

    Its time begins when it is made, on that loop, before its body is read; `Service.prepare` says what it asks for.
    """

    request: CompletionRequest

    def __init__(self, service: Service) -> None:
        self._service, self.begun = service, service.engine.clock()
        self.id, self.created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        self._loop = asyncio.get_running_loop()
        # None: the client has hung up. Before Python 3.10 a queue is bound to the loop of this thread.
        self.pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._heard_of: set[int] = set()
        self._held: dict[int, Piece] = {}  # what has come of texts that are not streamed
        self.choices: list[Choice] = []

    def give(self, piece: Piece) -> None:
        """From any thread."""
        seconds = self._service.engine.clock() - self.begun
        if piece.index not in self._heard_of and piece.error is None:
            self._heard_of.add(piece.index)
            self._service.metrics.first_token.observe(seconds)
        if piece.finish is not None:
            self._service.metrics.whole.observe(seconds)
        if not self.request.stream:
            held = self._held.setdefault(piece.index, piece)
            if held is not piece:
                held.add(piece)
            if held.finish is None and held.error is None:
                return
            piece = held
        try:
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:  # the loop is closed: nobody listens
            self.cancel()

    def cancel(self) -> None:
        """Frees the slots of the texts that are not whole."""
        for choice in self.choices:
            if not choice.job.over:
                self._service.engine.cancel(choice.job)

    def record(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """A completion, or a chunk of one."""
        model = self._service.name
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": model, "choices": choices}

    def usage(self) -> dict[str, int]:
        return usage(self.choices, self.request.n)


class Service:
    """A model, its engine and the thread that runs it.

    Args:
        name: what clients call the model.
        sampling: how texts are drawn, beside what requests say of it.

    Attributes:
        failed: called on the engine's thread if that has failed; every request has been told.
    """

    def __init__(self, model: ServedModel, name: str, queue: int, limits: Limits, sampling: Sampling = NO_OWN) -> None:
        self._sampling = sampling
        self.model, self.name, self.limits, self.metrics = model, name, limits, Metrics()
        self.failed: Callable[[], None] = lambda: None
        self.engine = Engine(model.step, model.slots, model.width, queue, together=model.together)
        self.started = int(time.time())
        self.error: Exception | None = None
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def open(self) -> bool:
        return self.error is None and not self.engine.closed

    def abandon(self) -> None:
        """What is still under way ends with an error, soon."""
        self._ends = True
        self.engine.close()

    def stop(self) -> None:
        """What is still under way ends with an error; returns when the engine's thread has ended."""
        self.abandon()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ends:
                if not self.engine.turn():
                    self.engine.wait(1.0)
            self.engine.fail(Closed())
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for this thread any longer
            traceback.print_exc()
            self.error = error
            self.engine.fail(error)
            self.failed()

    def prepare(self, exchange: Exchange, body: bytes) -> None:
        """Reads the request and encodes its prompts, on any thread; takes the tokenizer's time. Raises ApiError."""
        exchange.request = request = read_request(body, self._sampling)
        if request.model != self.name:
            shown = request.model.encode("utf-8", "backslashreplace").decode("utf-8")[:60]
            raise ApiError(
                404, f"The model '{shown}' does not exist; {self.name} is served", "model", "model_not_found"
            )
        count = len(request.prompts) * request.n
        if count > self.engine.slots + self.engine.queue:
            most = self.engine.slots + self.engine.queue
            raise bad("n", f"{count} texts are asked for, and the server holds {most}: send fewer prompts, or lower n")
        wrong = [token for token in request.bias if token >= self.model.config.real_vocab_size]
        if wrong:
            raise bad("logit_bias", f"logit_bias: {wrong[0]} is no token of the vocabulary")
        prompts = [self._prompt(prompt, request.max_tokens) for prompt in request.prompts]
        seed = secrets.randbits(63) if request.seed is None else request.seed
        deadline = exchange.begun + self.limits.seconds
        for prompt in prompts:
            for sample in range(request.n):
                index = len(exchange.choices)
                choice = Choice(index, self.model, request, prompt, (seed, sample), exchange.give, deadline)
                exchange.choices.append(choice)

    def _prompt(self, prompt: str | list[int], max_tokens: int) -> tuple[str, list[int]]:
        """Its text and its ids."""
        if isinstance(prompt, str):
            text, ids = prompt, self.model.encode(prompt)
        else:
            wrong = [token for token in prompt if not 0 <= token < self.model.config.real_vocab_size]
            if wrong:
                raise bad("prompt", f"prompt: {str(wrong[0])[:20]} is no token of the vocabulary")
            text, ids = self.model.tokenizer.decode(prompt), prompt
        if len(ids) > self.limits.prompt:
            message = f"The prompt has {len(ids)} tokens, and the server takes up to {self.limits.prompt}: shorten it"
            raise bad("prompt", message, "context_length_exceeded")
        if len(ids) + max_tokens > self.model.positions:
            message = (
                f"This model's maximum context length is {self.model.positions} tokens, and you asked for "
                f"{len(ids) + max_tokens} ({len(ids)} in the prompt, {max_tokens} for the completion): shorten the "
                "prompt, or lower max_tokens"
            )
            raise bad("max_tokens", message, "context_length_exceeded")
        return text, ids

    def submit(self, exchange: Exchange) -> None:
        """Raises ApiError if there is no room, or the server is about to end."""
        jobs = [choice.job for choice in exchange.choices if not choice.answer_without_model()]
        try:
            self.engine.submit(jobs)
        except Full as error:
            raise ApiError(429, "The queue is full: try again later", code="queue_full") from error
        except Closed as error:
            raise closed() from error

    def metrics_text(self) -> str:
        engine = self.engine
        counters = {
            "serving_prompt_tokens_total": ("Tokens of prompts taken in.", engine.prompt_tokens),
            "serving_new_tokens_total": ("Tokens made.", engine.new_tokens),
            "serving_steps_total": ("Calls of the model.", engine.steps),
        }
        gauges = {
            "serving_slots": ("Texts that are made at a time.", engine.slots),
            "serving_slots_taken": ("Texts that are being made.", engine.running),
            "serving_queue_length": ("Texts that wait for a slot.", engine.waiting),
        }
        return self.metrics.text(counters, gauges)
