"""How a program says that it cannot do what its command line asks for: every problem a line, and exit status 2."""

from __future__ import annotations

import difflib
import re
import sys
from typing import Iterable, NoReturn, Sequence


class TooLate(ValueError):
    """What goes wrong when a program has done its work, such as a result that cannot be written: no refusal of it."""


def refuse(program: str, problems: Sequence[str]) -> NoReturn:
    """Prints every problem, one a line, to stderr and ends the program with status 2."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{program}: {count}, nothing was started or written", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    raise SystemExit(2)


def not_installed(error: ImportError) -> str:
    """What to do about a library that is missing."""
    return (
        f"{error}: the environment is not set up. Run `make setup` and `source .venv/bin/activate` (on an IPU host: "
        "the SDK's environment and `pip install -r requirements.txt`)"
    )


def not_among(text: str, choices: Sequence[str]) -> str:
    """What is wrong with a word that has to be one of these; empty if it is. A near miss is told what it may mean."""
    if text in choices:
        return ""
    near = [choice for choice in choices if choice.lower() == text.lower()]
    near = near or difflib.get_close_matches(text, choices, n=1, cutoff=0.4)
    return "must be one of " + ", ".join(choices) + (f" (did you mean {near[0]}?)" if near else "")


def is_negative(word: str) -> bool:
    """Whether a word of a command line is a number below 0, and not a flag."""
    if not re.match(r"-[\d.in]", word, re.IGNORECASE):
        return False
    try:
        float(word)
    except ValueError:
        return False
    return True


def unknown_words(words: Sequence[str], known: Iterable[str]) -> list[str]:
    """A line for each word of a command line that no flag has taken; `known` flags that are like it are named."""
    lines: list[str] = []
    names = list(known)
    for word in words:
        name = word.split("=")[0]
        if name.startswith("-") and not is_negative(word):
            near = [k for k in names if k.startswith(name)] or difflib.get_close_matches(name, names, n=1)
            lines.append(f"{name}: unknown flag; " + (f"did you mean {' or '.join(near)}?" if near else "see --help"))
        elif not lines:  # otherwise it is the value of the unknown flag before it
            lines.append(f"{word!r}: belongs to no flag")
    return lines
