"""The fields of POST /v1/completions: one table, by which requests are read and serving/openapi.py describes them.

Defaults and limits are those that OpenAI publishes: https://platform.openai.com/docs/api-reference/completions/create
A kind of field has a JSON Schema, as OpenAPI 3.1 has it, and reads what conforms to it; null counts as not given.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Mapping, NamedTuple, Protocol, Sequence

from serving.errors import bad

MOST_TEXTS, MOST_STOPS, MOST_ALTERNATIVES, MOST_BIASES = 128, 4, 5, 1024


class Kind(Protocol):
    """What a field may hold."""

    def schemas(self) -> list[dict[str, Any]]:
        """Of which one must hold."""

    def read(self, name: str, value: Any) -> Any:
        """What the value says. Raises ApiError with status 400 if none of the schemas holds for it."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A string; `most` characters of it."""

    most: int | None = None

    def schemas(self) -> list[dict[str, Any]]:
        return [{"type": "string", **({} if self.most is None else {"maxLength": self.most})}]

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise bad(name, f"{name} must be a string")
        return value


class Suffix(Text):
    """None but an empty one."""

    def read(self, name: str, value: Any) -> str:
        if super().read(name, value):
            raise bad(name, f"{name} is not supported: GPT-2 continues texts, it fills no gaps in them")
        return value


class Boolean:
    """true or false."""

    def schemas(self) -> list[dict[str, Any]]:
        return [{"type": "boolean"}]

    def read(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise bad(name, f"{name} must be true or false")
        return value


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number within limits; 5.0 is one, in JSON Schema too."""

    least: int
    most: int | None = None

    def schemas(self) -> list[dict[str, Any]]:
        limits = {"minimum": self.least, **({} if self.most is None else {"maximum": self.most})}
        return [{"type": "integer", **limits}]

    def read(self, name: str, value: Any) -> int:
        number = _whole(value)
        if number is None or number < self.least or (self.most is not None and number > self.most):
            limits = f"of at least {self.least}" if self.most is None else f"from {self.least} to {self.most}"
            raise bad(name, f"{name} must be a whole number {limits}")
        return number


@dataclasses.dataclass(frozen=True)
class Real:
    """A number within limits."""

    least: float
    most: float

    def schemas(self) -> list[dict[str, Any]]:
        return [{"type": "number", "minimum": self.least, "maximum": self.most}]

    def read(self, name: str, value: Any, shown: str = "") -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not self.least <= value <= self.most or not math.isfinite(value):
            raise bad(name, f"{shown or name} must be a number from {self.least} to {self.most}")
        return float(value)


class Prompts:
    """A text, several, token ids, or several lists of them."""

    def schemas(self) -> list[dict[str, Any]]:
        ids = {"type": "array", "minItems": 1, "items": {"type": "integer"}}
        texts = {"type": "array", "minItems": 1, "items": {"type": "string"}}
        return [{"type": "string"}, texts, ids, {"type": "array", "minItems": 1, "items": ids}]

    def read(self, name: str, value: Any) -> Sequence[str | list[int]]:
        if isinstance(value, str):
            return [_characters(name, value)]
        wrong = bad(name, f"{name} must be a string, strings, token ids, or lists of token ids, none of them empty")
        if not isinstance(value, list) or not value:
            raise wrong
        if all(isinstance(each, str) for each in value):
            return [_characters(name, each) for each in value]
        found = []
        for each in value if all(isinstance(each, list) for each in value) else [value]:
            ids = [number for number in map(_whole, each) if number is not None]
            if not ids or len(ids) < len(each):
                raise wrong
            found.append(ids)
        return found


class Stops:
    """A string or some, none of them empty."""

    def schemas(self) -> list[dict[str, Any]]:
        text = {"type": "string", "minLength": 1}
        return [text, {"type": "array", "maxItems": MOST_STOPS, "items": text}]

    def read(self, name: str, value: Any) -> Sequence[str]:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
            raise bad(name, f"{name} must be a string or up to {MOST_STOPS} of them, none of them empty")
        if len(stops) > MOST_STOPS:
            raise bad(name, f"{name} has {len(stops)} strings, and there may be {MOST_STOPS}")
        return [_characters(name, stop) for stop in stops]


class Bias:
    """What is added to logits, by token id."""

    _ID, _ADDED = "^[0-9]{1,9}$", Real(-100, 100)

    def schemas(self) -> list[dict[str, Any]]:
        (added,) = self._ADDED.schemas()
        names = {"propertyNames": {"pattern": self._ID}, "maxProperties": MOST_BIASES}
        return [{"type": "object", **names, "additionalProperties": added}]

    def read(self, name: str, value: Any) -> Mapping[int, float]:
        if not isinstance(value, dict):
            raise bad(name, f"{name} must map token ids to numbers from -100 to 100")
        if len(value) > MOST_BIASES:
            raise bad(name, f"{name} has {len(value)} tokens, and there may be {MOST_BIASES:,}")
        if not all(re.fullmatch(self._ID.strip("^$"), key) for key in value):
            raise bad(name, f"{name}: its keys must be token ids")
        return {int(key): self._ADDED.read(name, each, f"{name}[{key}]") for key, each in value.items()}


class StreamOptions:
    """Whether the last event of a stream tells the usage."""

    _KNOWN = ("include_usage", "include_obfuscation")  # the second, which hides lengths, has no effect

    def schemas(self) -> list[dict[str, Any]]:
        each = {"type": ["boolean", "null"]}
        return [{"type": "object", "properties": dict.fromkeys(self._KNOWN, each), "additionalProperties": False}]

    def read(self, name: str, value: Any) -> bool:
        if not isinstance(value, dict) or set(value) - set(self._KNOWN):
            raise bad(name, f'{name} must be {{"include_usage": true}} or false')
        if not all(each is None or isinstance(each, bool) for each in value.values()):
            raise bad(name, f"{name}.include_usage must be true or false")
        return bool(value.get("include_usage"))


def _whole(value: Any) -> int | None:
    """The whole number that a value is; None if it is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _characters(name: str, value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad(name, f"{name} has half of a surrogate pair, which is no character") from error
    return value


class Field(NamedTuple):
    """One field: its name, what it may hold, what counts if it is not given, and what it means."""

    name: str
    kind: Kind
    default: Any
    about: str


FIELDS = (
    Field("model", Text(), None, "The name that GET /v1/models tells."),
    Field(
        "prompt",
        Prompts(),
        "",
        "What is continued: a text, several, token ids, or lists of them. Of an empty text the model begins one.",
    ),
    Field("max_tokens", Whole(0), 16, "Tokens of a text at most; with those of its prompt no more than the context."),
    Field(
        "temperature", Real(0, 2), 1, "The logits are divided by it; 0 takes the likeliest token (top_p 0 does, too)."
    ),
    Field("top_p", Real(0, 1), 1, "Draws among the likeliest tokens that together have this probability."),
    Field("n", Whole(1, MOST_TEXTS), 1, "Texts of each prompt."),
    Field("stop", Stops(), None, "Ends a text before any of these strings, which are not in it."),
    Field("seed", Whole(-(2**63), 2**63 - 1), None, "The same one gives the same texts; without it each is another."),
    Field("stream", Boolean(), False, "Server-sent events, as tokens come."),
    Field(
        "stream_options",
        StreamOptions(),
        None,
        "With stream only. include_usage: a last event without choices has the usage; include_obfuscation: no effect.",
    ),
    Field("echo", Boolean(), False, "The text begins with the prompt."),
    Field(
        "logprobs",
        Whole(0, MOST_ALTERNATIVES),
        None,
        "Log-probabilities of tokens, of the model's own distribution, and of so many likeliest ones beside each; with "
        "echo those of the prompt, too.",
    ),
    Field(
        "frequency_penalty", Real(-2, 2), 0, "Subtracted from a token's logit for each time that it is in the new text."
    ),
    Field("presence_penalty", Real(-2, 2), 0, "Subtracted from a token's logit if it is in the new text."),
    Field("logit_bias", Bias(), None, "Added to the logits of these token ids."),
    Field("best_of", Whole(1, MOST_TEXTS), None, "n, or left out: texts are not ranked here."),
    Field("suffix", Suffix(0), None, "Empty, or left out: GPT-2 fills no gaps in texts."),
    Field("user", Text(), None, "Whoever asks; no effect."),
)
NAMES = frozenset(field.name for field in FIELDS)


def read_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """What each field says, by name: what its kind makes of the value, or of the default; None where that is None.

    Raises ApiError with status 400 naming the field.
    """
    found = {}
    for name, kind, default, _ in FIELDS:
        value = default if content.get(name) is None else content[name]
        if value is None and name == "model":
            raise bad(name, "you must provide a model parameter; GET /v1/models names the one that is served")
        found[name] = None if value is None else kind.read(name, value)
    return found
