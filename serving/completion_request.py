"""The body of POST /v1/completions, and what its fields ask for together (serving/fields.py has each by itself)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Mapping, Sequence

from generation.sampling import Sampling
from serving.errors import bad
from serving.fields import NAMES, read_fields

COLDEST = 1e-5  # a temperature below this one is greedy: logits divided by it need not be finite
NO_OWN = Sampling()


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """A request whose fields are each right by themselves; the prompts are texts or token ids, as they came.

    Attributes:
        seed: None if every text may be another one each time.
        logprobs: how many likeliest tokens are told beside each token; None: no log-probabilities.
    """

    model: str
    prompts: Sequence[str | list[int]]
    echo: bool
    frequency: float
    presence: float
    bias: Mapping[int, float]
    logprobs: int | None
    max_tokens: int
    n: int
    seed: int | None
    stop: Sequence[str]
    stream: bool
    include_usage: bool
    sampling: Sampling


def read_request(body: bytes, own: Sampling = NO_OWN) -> CompletionRequest:
    """A request; of `own`, the server's way to draw, what no field says counts, unless the request is greedy.

    Raises ApiError with status 400 for what is no JSON object, for an unknown field, for a value out of range and for
    fields that contradict each other.
    """
    fields = read_fields(_json_object(body))
    n, temperature, top_p = fields["n"], fields["temperature"], fields["top_p"]
    if fields["best_of"] not in (None, n):
        raise bad("best_of", f"best_of must be n ({n}) or left out: texts are not ranked here")
    if fields["stream_options"] is not None and not fields["stream"]:
        raise bad("stream_options", "stream_options is allowed only when stream is true")
    greedy = temperature < COLDEST or top_p == 0
    return CompletionRequest(
        model=fields["model"],
        prompts=fields["prompt"],
        echo=fields["echo"],
        frequency=fields["frequency_penalty"],
        presence=fields["presence_penalty"],
        bias=fields["logit_bias"] or {},
        logprobs=fields["logprobs"],
        max_tokens=fields["max_tokens"],
        n=n,
        seed=fields["seed"],
        stop=fields["stop"] or [],
        stream=fields["stream"],
        include_usage=bool(fields["stream_options"]),
        sampling=Sampling(top_k=1) if greedy else dataclasses.replace(own, temperature=temperature, top_p=top_p),
    )


def _json_object(body: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of thousands of digits, too deep
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise bad(None, f"The body is not JSON: {reason}", "invalid_json") from error
    if not isinstance(content, dict):
        raise bad(None, 'The body must be a JSON object, such as {"model": "…", "prompt": "…"}', "invalid_json")
    unknown = sorted(set(content) - NAMES)
    if unknown:
        raise bad(_shown(unknown[0]), f"Unrecognized request argument supplied: {_shown(unknown[0])}")
    return content


def _shown(value: Any) -> str:
    """A value from a request, for a message: short, and text that every JSON can hold."""
    text = value if isinstance(value, str) else type(value).__name__
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= 60 else text[:60] + "…"
