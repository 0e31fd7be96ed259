"""What a flag is: its spellings, its default, and how its value is read from the command line.

Each flag has an old spelling (SDK 2.5), whose name is the attribute on the namespace, and some a new one (SDK 3.x).
"""

from __future__ import annotations

import math
import re
from typing import Any, Callable, NamedTuple, Sequence

from corpora.refusal import not_among


class Kind(NamedTuple):
    """A type of value: how --help shows it, and a parser that raises ValueError saying what the value must be.

    `bare` is what a flag without a value stands for; None: it needs one.
    """

    shown: str
    parse: Callable[[str], Any]
    bare: str | None = None


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("true", "1", "yes", "y", "t", "on"):
        return True
    if lowered in ("false", "0", "no", "n", "f", "off"):
        return False
    raise ValueError("must be True or False (also 1/0, yes/no, on/off; no value means True)")


def whole(least: int, most: float = math.inf) -> Kind:
    """A whole number from `least` to `most`."""
    limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ValueError(f"must be a whole number {limits}")
        return value

    return Kind("N", parse)


def or_word(kind: Kind, word: str) -> Kind:
    """A value of that kind, or this word, which stays as it is."""

    def parse(text: str) -> Any:
        try:
            return word if text == word else kind.parse(text)
        except ValueError as error:
            raise ValueError(f"{error}, or {word}") from error

    return Kind(f"{kind.shown}|{word}", parse)


def real(low: float, high: float = math.inf, above: bool = False) -> Kind:
    """A finite number from `low` to `high`; `above` leaves `low` itself out."""
    limits = f"{'above' if above else 'of at least'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value) or (above and value == low):  # NaN fails the first test
            raise ValueError(f"must be a number {limits}")
        return value

    return Kind("X", parse)


def _duration(text: str) -> float:
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d\d)", text)
    unit = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smhd]?)", text)
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        value = float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    elif unit:
        value = float(unit[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit[2]]
    else:
        value = 0.0
    if not 0.0 < value < math.inf:
        raise ValueError("must be a time above 0: seconds, 90m, 4h, 2d, or [[D-]H:]MM:SS")
    return value


def one_of(*choices: str) -> Kind:
    """One of these words; a near miss is told which one it may have meant."""

    def parse(text: str) -> str:
        problem = not_among(text, choices)
        if problem:
            raise ValueError(problem)
        return text

    return Kind("{" + ",".join(choices) + "}", parse)


def _folder_or_not(text: str) -> str | None:
    if text.lower() in ("true", "false"):
        return "." if text.lower() == "true" else None
    if not text:
        raise ValueError("must be a folder; without a value it is the current one")
    return text


def _path(text: str) -> str:
    if not text:
        raise ValueError("must be a path; an empty one may come of a variable that is not set")
    return text


BOOLEAN = Kind("[True|False]", _boolean, "true")
HERE_OR_FOLDER = Kind("[PATH]", _folder_or_not, ".")
TEXT = Kind("TEXT", str)
PATH = Kind("PATH", _path)
PATH_OR_NONE = Kind("PATH", str)  # of the reference application: empty for none
DURATION = Kind("TIME", _duration)  # seconds


class Flag(NamedTuple):
    """One flag: its spellings (the first one names the attribute), default, kind, help; `many` takes a list."""

    spellings: str
    default: Any
    kind: Kind
    help: str
    many: bool = False

    @property
    def names(self) -> list[str]:
        return self.spellings.split()

    @property
    def dest(self) -> str:
        return self.names[0][2:].replace("-", "_")


def select(flags: Sequence[Flag], *dests: str, **defaults: Any) -> tuple[Flag, ...]:
    """The flags of a group that another program shares: those in `dests`, in group order, with changed `defaults`.

    Raises ValueError for a name that is not in the group.
    """
    missing = (set(dests) | set(defaults)) - {flag.dest for flag in flags}
    if missing:
        raise ValueError(f"no such flag in this group: {', '.join(sorted(missing))}")
    return tuple(f._replace(default=defaults.get(f.dest, f.default)) for f in flags if f.dest in dests)
