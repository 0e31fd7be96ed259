"""The body of POST /v1/completions: its fields with the defaults and limits that OpenAI publishes for them.

https://platform.openai.com/docs/api-reference/completions/create
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Mapping, Sequence

from generation.sampling import Sampling
from serving.errors import bad

MOST_TEXTS, MOST_STOPS, MOST_ALTERNATIVES, MOST_BIASES = 128, 4, 5, 1024
COLDEST = 1e-5  # a temperature below this one is greedy: logits divided by it need not be finite
NO_OWN = Sampling()
FIELDS = {
    *("model", "prompt", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n"),
    *("presence_penalty", "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user"),
}


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

    Raises ApiError with status 400 for what is no JSON object, for an unknown field and for a value out of range.
    """
    fields = _Fields(_json_object(body))
    n = fields.whole("n", 1, 1, MOST_TEXTS)
    temperature, top_p = fields.real("temperature", 1, 0, 2), fields.real("top_p", 1, 0, 1)
    greedy = temperature < COLDEST or top_p == 0
    stream = fields.boolean("stream")
    request = CompletionRequest(
        model=fields.text("model"),
        prompts=fields.prompts(),
        echo=fields.boolean("echo"),
        frequency=fields.real("frequency_penalty", 0, -2, 2),
        presence=fields.real("presence_penalty", 0, -2, 2),
        bias=fields.bias(),
        logprobs=fields.whole("logprobs", None, 0, MOST_ALTERNATIVES),
        max_tokens=fields.whole("max_tokens", 16, 0),
        n=n,
        seed=fields.whole("seed", None, -(2**63), 2**63 - 1),
        stop=fields.stops(),
        stream=stream,
        include_usage=fields.include_usage(stream),
        sampling=Sampling(top_k=1) if greedy else dataclasses.replace(own, temperature=temperature, top_p=top_p),
    )
    if fields.whole("best_of", n, 1, MOST_TEXTS) != n:
        raise bad("best_of", f"best_of must be n ({n}) or left out: texts are not ranked here")
    if fields.given("suffix") not in (None, ""):
        raise bad("suffix", "suffix is not supported: GPT-2 continues texts, it fills no gaps in them")
    if fields.given("user") is not None:
        fields.text("user")
    return request


def _json_object(body: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of thousands of digits, too deep
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise bad(None, f"The body is not JSON: {reason}", "invalid_json") from error
    if not isinstance(content, dict):
        raise bad(None, 'The body must be a JSON object, such as {"model": "…", "prompt": "…"}', "invalid_json")
    unknown = sorted(set(content) - FIELDS)
    if unknown:
        raise bad(_shown(unknown[0]), f"Unrecognized request argument supplied: {_shown(unknown[0])}")
    return content


def _shown(value: Any) -> str:
    """A value from a request, for a message: short, and text that every JSON can hold."""
    text = value if isinstance(value, str) else type(value).__name__
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= 60 else text[:60] + "…"


class _Fields:
    """The fields of a body; null counts as not given. Each method raises ApiError."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def given(self, name: str) -> Any:
        return self._content.get(name)

    def text(self, name: str) -> str:
        value = self.given(name)
        if value is None and name == "model":
            raise bad(name, "you must provide a model parameter; GET /v1/models names the one that is served")
        if not isinstance(value, str):
            raise bad(name, f"{name} must be a string")
        return value

    def boolean(self, name: str) -> bool:
        value = self.given(name)
        if value is not None and not isinstance(value, bool):
            raise bad(name, f"{name} must be true or false")
        return bool(value)

    def whole(self, name: str, default: Any, least: int, most: int | None = None) -> Any:
        value = self.given(name)
        if value is None:
            return default
        within = _is_whole(value) and least <= value and (most is None or value <= most)
        if not within:
            limits = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise bad(name, f"{name} must be a whole number {limits}")
        return value

    def real(self, name: str, default: float, least: float, most: float) -> float:
        value = self.given(name)
        if value is None:
            return default
        return _real(name, name, value, least, most)

    def prompts(self) -> Sequence[str | list[int]]:
        """A text, several, token ids, or several lists of them; not given: an empty text."""
        value = self.given("prompt")
        if value is None or isinstance(value, str):
            return [_text("prompt", value or "")]
        if not isinstance(value, list) or not value:
            raise bad("prompt", "prompt must be a string, strings, token ids, or lists of token ids")
        if all(isinstance(each, str) for each in value):
            return [_text("prompt", each) for each in value]
        lists = value if all(isinstance(each, list) for each in value) else [value]
        if not all(each and all(_is_whole(token) for token in each) for each in lists):
            raise bad(
                "prompt", "prompt must be a string, strings, token ids, or lists of token ids, none of them empty"
            )
        return lists

    def stops(self) -> Sequence[str]:
        value = self.given("stop")
        if value is None:
            return []
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
            raise bad("stop", "stop must be a string or up to 4 of them, none of them empty")
        if len(stops) > MOST_STOPS:
            raise bad("stop", f"stop has {len(stops)} strings, and there may be {MOST_STOPS}")
        return [_text("stop", stop) for stop in stops]

    def bias(self) -> Mapping[int, float]:
        value = self.given("logit_bias")
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise bad("logit_bias", "logit_bias must map token ids to numbers from -100 to 100")
        if len(value) > MOST_BIASES:
            raise bad("logit_bias", f"logit_bias has {len(value)} tokens, and there may be {MOST_BIASES:,}")
        if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value):
            raise bad("logit_bias", "logit_bias: its keys must be token ids")
        return {int(key): _real("logit_bias", f"logit_bias[{key}]", each, -100, 100) for key, each in value.items()}

    def include_usage(self, stream: bool) -> bool:
        value = self.given("stream_options")
        if value is None:
            return False
        if not stream:
            raise bad("stream_options", "stream_options is allowed only when stream is true")
        if not isinstance(value, dict) or set(value) - {"include_usage", "include_obfuscation"}:
            raise bad("stream_options", 'stream_options must be {"include_usage": true} or false')
        if not all(each is None or isinstance(each, bool) for each in value.values()):
            raise bad("stream_options", "stream_options.include_usage must be true or false")
        return bool(value.get("include_usage"))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(param: str, name: str, value: Any, least: float, most: float) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value <= most or not math.isfinite(value):
        raise bad(param, f"{name} must be a number from {least} to {most}")
    return float(value)


def _text(param: str, value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad(param, f"{param} has half of a surrogate pair, which is no character") from error
    return value
