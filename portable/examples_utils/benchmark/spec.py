"""Benchmarks from spec files. Every problem of all files is found before anything runs, each with file and line."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path

from . import variants, yaml_lines
from .entry import Benchmark, Entry
from .yaml_lines import SpecError

logger = logging.getLogger("examples_utils")


def load(files: list[Path]) -> dict[str, Benchmark]:
    """The entries of all files by name, templates included. Raises SpecError with all the problems.

    Of two templates with one name, the later stays: anchors are a file's own. Keys that nobody knows are ignored, with
    one warning for all of them.
    """
    problems: list[str] = []
    ignored: list[str] = []
    found: dict[str, Benchmark] = {}
    for file in files:
        try:
            document = yaml_lines.read(file)
        except SpecError as error:
            problems += error.args
            continue
        for name, entry in document.items():
            line = document.lines[name]
            reader = Entry(name, file, line, entry)
            read, before = reader.read(), found.get(name)
            problems += reader.problems
            ignored += reader.ignored
            if before is None or before.is_template:
                found[name] = read
            elif not read.is_template:
                problems.append(f"{file}:{line}: {name} is in {before.where()} already; rename one")
    if problems:
        raise SpecError(*dict.fromkeys(problems))  # what is wrong in a template is wrong in each that takes from it
    if ignored:
        logger.warning("ignored in the spec:\n  %s", "\n  ".join(dict.fromkeys(ignored)))
    return found


def select(
    benchmarks: Mapping[str, Benchmark], names: list[str], include_convergence: bool
) -> list[tuple[Benchmark, variants.Parameters]]:
    """What is to be run, in the order of the names; without names, everything that is no template, as in the files.

    A name is that of a benchmark or of one of its variants. Those that end in _conv run if they are named, or with
    `include_convergence`.

    Raises SpecError for a name that is not there, for a template, and for a chosen one whose folder is not there.
    """
    problems: list[str] = []
    everything = [
        (variants.variant_name(name, parameters), benchmark, parameters)
        for name, benchmark in benchmarks.items()
        if not benchmark.is_template
        for parameters in benchmark.parameters
    ]
    chosen: dict[str, tuple[Benchmark, variants.Parameters]] = {}
    kept: list[tuple[Benchmark, variants.Parameters]] = []
    for name in dict.fromkeys(names):
        hits = [row for row in everything if name in (row[0], row[1].name)]
        files = ", ".join(sorted({str(benchmark.file) for benchmark in benchmarks.values()}))
        if not hits and name in benchmarks:
            problems.append(f"{benchmarks[name].where()}: {name} is a template, which has nothing to run")
        elif not hits:
            known = [*benchmarks, *(variant for variant, _, _ in everything)]
            near = difflib.get_close_matches(name, known, n=1)
            instead = (
                f"did you mean {near[0]}?"
                if near
                else f"there are {', '.join(dict.fromkeys(row[1].name for row in everything))}"
            )
            problems.append(f"{files}: there is no benchmark {name}; {instead}")
        kept += [row[1:] for row in hits if row[0] not in chosen]
        chosen |= {row[0]: row[1:] for row in hits}
    if not names:
        kept = [row[1:] for row in everything if include_convergence or not row[1].converges]
    problems += [
        f"{benchmark.where('location')}: {benchmark.name}: there is no folder {benchmark.folder}"
        for benchmark, _ in kept
        if not benchmark.folder.is_dir()
    ]
    if problems:
        raise SpecError(*dict.fromkeys(problems))
    if not kept:
        raise SpecError("there is no benchmark to run: every entry is a template or needs --include-convergence")
    return kept
