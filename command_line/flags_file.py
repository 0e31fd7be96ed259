"""A file of flags: the words of a command line, or JSON such as the run.json of an earlier run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any


def read_flags(source: str) -> list[str]:
    """The words that stand for the flags in a file.

    A file that begins with "{" is JSON: names of flags with their values, or a run.json, of which the flags that were
    typed count. Any other file has flags as a command line has them, over as many lines as one likes; `#` begins a
    comment.

    Raises ValueError naming the file.
    """
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{source}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not text.lstrip().startswith("{"):
        try:
            return shlex.split(text, comments=True)
        except ValueError as error:
            raise ValueError(f"{source}: is no list of flags ({error}); check the quotes") from error
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source}: is not JSON ({error})") from error
    if isinstance(values.get("flags"), dict):  # run.json
        values = values["flags"]
    typed = values.pop("typed", None)
    words: list[str] = []
    for name, value in values.items():
        if typed is None or name in typed:
            words += _words(name, value, source)
    return words


def _words(name: str, value: Any, source: str) -> list[str]:
    flag = "--" + name.replace("_", "-")
    values = value if isinstance(value, list) else [value]
    if value is None or value == []:  # as if it were not given
        return []
    if not all(isinstance(part, (str, int, float)) for part in values):
        raise ValueError(f"{source}: {name} is neither a text, a number, true or false, nor a list of these")
    if len(values) == 1:
        return [f"{flag}={values[0]}"]  # whatever the text begins with
    return [flag, *map(str, values)]
