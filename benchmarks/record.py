"""A benchmark's record: its results under a head that says where, when, with what and by which command they came about.

Every record is {date, hardware, versions, load, commit, command, settings, results}. A figure against an alternative
is called `times_faster`, a number or a mapping of names to numbers: the alternative's time over ours, so that above 1
ours is the faster one. `benchmarks/compare.py` lists them.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from corpora.atomic import atomic_file
from corpora.strict_json import json_text


def head(program: str, argv: Sequence[str], libraries: Sequence[str] = (), device: str = "cpu") -> dict[str, Any]:
    """Date (UTC), hardware, versions, load average and commit, and the command `python -m benchmarks.<program> argv`.

    Args:
        libraries: distributions whose versions matter beside those that every run has; what is missing is left out.
        device: "cuda" for results of the first GPU.
    """
    from training.log import machine

    about = machine.describe()
    hardware = f"{about['hardware']['processor']}, {about['hardware']['cores']} cores"
    versions = dict(about["versions"])
    for name in libraries:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "hardware": about["hardware"]["cuda"][0] if device == "cuda" else hardware,
        "versions": versions,
        "load": round(os.getloadavg()[0], 1),  # of the machine, others included, in the minute before the end
        "commit": about["commit"],
        "command": " ".join([f"python -m benchmarks.{program}", *argv]),
    }


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """--json FILE, of the benchmarks that print their results and may keep them."""
    parser.add_argument("--json", metavar="FILE", type=writable, help="write the results there too")


def writable(path: str) -> str:
    """A file that could be written now, so that what takes long is not in vain. Raises ArgumentTypeError."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"{path} is a folder; name a file")
    if not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"{path}: its folder does not exist; create it first")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written; name another file")
    return path


def write(
    path: str | Path, head: Mapping[str, Any], settings: Mapping[str, Any], results: Mapping[str, Any] | list[Any]
) -> None:
    """Writes the record, whole or not at all, and says so.

    If it cannot be written it is printed, for its figures took long, and the program ends with status 2.
    """
    text = json_text({**head, "settings": dict(settings), "results": results}, indent=2, default=str) + "\n"
    try:
        with atomic_file(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        print(text, end="", flush=True)
        print(f"{path}: cannot be written ({error.strerror}); what was to be in it is printed above", file=sys.stderr)
        raise SystemExit(2) from error
    print(f"written to {path}")


def speed_ups(results: Any, names: str = "") -> Iterator[tuple[str, float]]:
    """Every `times_faster` in a record's results, with the names above it."""
    if isinstance(results, Mapping):
        for name, item in results.items():
            if name != "times_faster":
                yield from speed_ups(item, f"{names} {name}")
            elif isinstance(item, Mapping):
                yield from ((f"{names} {which}".strip(), value) for which, value in item.items())
            else:
                yield names.strip(), item
    elif isinstance(results, list):
        for index, item in enumerate(results):
            if isinstance(item, Mapping):
                label = next((f"{key} {item[key]}" for key in ("name", "dropout", "case") if key in item), str(index))
                yield from speed_ups(item, f"{names} {label}")
