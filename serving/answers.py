"""From the tokens of a job to what a client is told: pieces of text, log-probabilities, and the JSON around them.

https://platform.openai.com/docs/api-reference/completions/object
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Sequence

from generation.requests import NonFiniteScores, new_text
from generation.text_stream import TextStream
from serving.completion_request import CompletionRequest
from serving.engine import Closed, TimeUp
from serving.errors import ApiError
from serving.job import Job, Scored
from serving.model import ServedModel

_FINISH = {"stop": "stop", "stop_string": "stop", "length": "length"}


@dataclasses.dataclass
class Piece:
    """What has come of a text: some of it, the log-probabilities of its tokens, why it ended, or what went wrong."""

    index: int
    text: str = ""
    logprobs: dict[str, list] | None = None
    finish: str | None = None
    error: ApiError | None = None

    def add(self, other: Piece) -> None:
        """What came later."""
        self.text += other.text
        self.finish, self.error = other.finish, other.error
        if self.logprobs is not None and other.logprobs is not None:
            for name, values in other.logprobs.items():
                self.logprobs[name] += values

    def record(self) -> dict[str, Any]:
        """A choice of a completion, or of a chunk of one."""
        return {"text": self.text, "index": self.index, "logprobs": self.logprobs, "finish_reason": self.finish}


class Choice:
    """One text of a request, and the job that makes it; `give` is handed each piece, on the engine's thread."""

    def __init__(
        self,
        index: int,
        model: ServedModel,
        request: CompletionRequest,
        prompt: tuple[str, list[int]],
        draw: tuple[int, int],
        give: Callable[[Piece], None],
        deadline: float,
    ) -> None:
        """`prompt` is its text and its ids, `draw` the seed and the number of the sample."""
        self.index, self._model, self._request, self._give = index, model, request, give
        self.prompt_text, ids = prompt
        self.job = Job(
            new_text(ids, request.max_tokens, *draw),
            request.sampling,
            self._heard,
            model.stop_ids,
            alternatives=request.logprobs or 0,
            score_prompt=request.echo and request.logprobs is not None,
            frequency=request.frequency,
            presence=request.presence,
            bias=request.bias,
            deadline=deadline,
        )
        self._stream = TextStream(model.tokenizer.decode, request.stop)
        self._all = TextStream(model.tokenizer.decode)  # for the tokens' places, which no stop string moves
        self._echo = self.prompt_text if request.echo else ""
        self._prompt_to_come = self.job.score_prompt
        self._base = 0 if self._prompt_to_come else len(self.prompt_text)  # where the text of `_all` begins

    def answer_without_model(self) -> bool:
        """Gives the only piece there is if no token is wanted; whether it did."""
        if self._request.max_tokens or self.job.score_prompt:
            return False
        self._give(Piece(self.index, self._echo, self._logprobs([]), "length"))
        return True

    def _heard(self, job: Job, scored: Sequence[Scored]) -> None:
        if job.error is not None:
            self._give(Piece(self.index, error=_told(job.error)))
            return
        piece = Piece(self.index, self._echo, self._logprobs(scored))
        self._echo = ""
        if self._prompt_to_come:
            self._prompt_to_come = False
            self._all = TextStream(self._model.tokenizer.decode)
            self._base = len(self.prompt_text)
        else:
            # A stop token is told among log-probabilities, as lm-evaluation-harness expects, and is no text.
            shown = [] if job.text.ended == "stop" else scored
            piece.text += "".join(self._stream.push(each.token) for each in shown)
        if self._stream.stopped:
            job.text.ended = "stop_string"
        if job.text.ended:
            piece.text += self._stream.finish()
            if self._stream.stopped:
                job.text.ended = "stop_string"
            piece.finish = _FINISH[job.text.ended]
        if piece.text or piece.finish or piece.logprobs is not None:
            self._give(piece)

    def _logprobs(self, scored: Sequence[Scored]) -> dict[str, list] | None:
        if self._request.logprobs is None:
            return None
        name = self._model.token_text
        found: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for each in scored:
            found["text_offset"].append(self._base + len(self._all.text))
            self._all.push(each.token)
            found["tokens"].append(name(each.token))
            found["token_logprobs"].append(each.log_prob)
            best = None
            if each.log_prob is not None:
                best = {name(token): value for token, value in each.best}
                best[name(each.token)] = each.log_prob  # which is told even if it is none of the likeliest
            found["top_logprobs"].append(best)
        return found


def _told(error: Exception) -> ApiError:
    if isinstance(error, TimeUp):
        return ApiError(503, "The time for a request was up before its text was whole", code="timeout")
    if isinstance(error, Closed):
        return closed()
    if isinstance(error, NonFiniteScores):
        return ApiError(500, f"The model cannot go on: {error}", code="non_finite_scores")
    return ApiError(500, "The server failed; its log says why", code="server_failed")


def closed() -> ApiError:
    return ApiError(503, "The server is about to end and takes no more requests", code="draining")


def usage(choices: Sequence[Choice], n: int) -> dict[str, int]:
    """Tokens of a request: each prompt counts once, whatever the number of its texts."""
    prompt = sum(len(choice.job.text.prompt) for choice in choices[::n])
    completion = sum(len(choice.job.text.tokens) for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
