"""Benchmarks from spec files. Every problem of all files is found before anything runs, each with file and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import variants, yaml_lines
from .expressions import Expression
from .metrics import REDUCTIONS, Metric
from .yaml_lines import SpecError

KEYS = (
    *("cmd", "data", "derived", "description", "env", "location", "output", "parameters"),
    *("pre_run_commands", "requirements_path"),
)
CONVERGENCE = "_conv"


@dataclass(frozen=True)
class Benchmark:
    """One entry of a spec file.

    `words` is the command with {name} and $NAME still in it; `folder` is where it runs. A template has no words.
    """

    name: str
    file: Path
    lines: Mapping[str, int]  # of the name (under "") and of each key
    words: list[str] = field(default_factory=list)
    parameters: list[variants.Parameters] = field(default_factory=lambda: [{}])
    data: list[Metric] = field(default_factory=list)
    derived: dict[str, Expression] = field(default_factory=dict)
    output: list[tuple[str, str]] = field(default_factory=list)  # shown name, metric
    env: dict[str, str] = field(default_factory=dict)
    folder: Path = Path()
    requirements: Path | None = None
    pre_run: list[list[str]] = field(default_factory=list)
    description: str = ""

    @property
    def is_template(self) -> bool:
        """Whether it is there only for others to take from."""
        return not self.words or "options" in self.name

    @property
    def converges(self) -> bool:
        """Whether it runs only if that is asked for."""
        return self.name.endswith(CONVERGENCE)

    def where(self, key: str = "") -> str:
        """FILE:LINE of a key, or of the name."""
        return f"{self.file}:{self.lines.get(key, self.lines[''])}"


def load(files: list[Path]) -> dict[str, Benchmark]:
    """The entries of all files by name, templates included. Raises SpecError with all the problems."""
    problems: list[str] = []
    found: dict[str, Benchmark] = {}
    for file in files:
        try:
            document = yaml_lines.read(file)
        except SpecError as error:
            problems += error.args
            continue
        for name, entry in document.items():
            line = document.lines[name]
            if name in found:
                problems.append(f"{file}:{line}: {name} is in {found[name].where()} already; rename one")
                continue
            reader = _Entry(name, file, line, entry)
            found[name] = reader.read()
            problems += reader.problems
    if problems:
        raise SpecError(*dict.fromkeys(problems))  # what is wrong in a template is wrong in each that takes from it
    return found


class _Entry:
    """Reads one entry; what is wrong with it is in `problems` afterwards."""

    def __init__(self, name: str, file: Path, line: int, entry: Any) -> None:
        self._name, self._file, self._line, self._entry = name, file, line, entry
        self.problems: list[str] = []

    def read(self) -> Benchmark:
        name, file, entry = self._name, self._file, self._entry
        if not isinstance(entry, yaml_lines.Mapping):
            if "options" not in name:
                self._add(self._line, f"{name}: must be a mapping with `cmd:`, not {_kind(entry)}")
            return Benchmark(name, file, {"": self._line})
        lines = {"": self._line, **entry.lines}
        if "options" in name and "cmd" not in entry and not set(entry) & set(KEYS):
            return Benchmark(name, file, lines)  # a group of anchors
        for key in set(entry) - set(KEYS):
            near = difflib.get_close_matches(key, KEYS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(KEYS)}"
            self._add(lines[key], f"{name}: unknown key {key!r}; {remedy}")
        data, derived = list(self._data()), dict(self._derived())
        metrics = {metric.name for metric in data} | set(derived)
        self._check_names(data, derived)
        folder = (file.parent / self._text("location")).resolve()
        requirements = self._text("requirements_path")
        return Benchmark(
            name,
            file,
            lines,
            next(self._commands("cmd", [entry["cmd"]]), []) if "cmd" in entry else [],
            self._parameters(),
            data,
            derived,
            list(self._output(metrics)),
            dict(self._env()),
            folder,
            folder / requirements if requirements else None,
            list(self._commands("pre_run_commands", self._list("pre_run_commands"))),
            self._text("description").strip(),
        )

    # -- keys ------------------------------------------------------------------------------------------------------

    def _parameters(self) -> list[variants.Parameters]:
        try:
            return variants.combinations(self._entry.get("parameters"))
        except ValueError as error:
            self._add_key("parameters", str(error))
            return [{}]

    def _commands(self, key: str, commands: list[Any]) -> Iterator[list[str]]:
        for command in commands:
            if not isinstance(command, str):
                self._add_key(key, f"must be a command line, not {_kind(command)}")
                continue
            try:
                yield variants.split(command)
            except ValueError as error:
                self._add_key(key, str(error))

    def _data(self) -> Iterator[Metric]:
        for name, rule, line in self._items("data"):
            if not isinstance(rule, yaml_lines.Mapping) or "regexp" not in rule:
                self._add(line, f"{self._name}: data: {name} needs `regexp:`")
                continue
            for key in set(rule) - {"regexp", "skip", "reduction_type"}:
                known = "regexp, skip and reduction_type"
                self._add(rule.lines[key], f"{self._name}: data: {name}: unknown key {key!r}; known are {known}")
            skip, reduction = rule.get("skip", 0), rule.get("reduction_type", "mean")
            if type(skip) is not int or skip < 0:
                self._add(rule.lines["skip"], f"{self._name}: data: {name}: skip must be a whole number, not {skip!r}")
                skip = 0
            if reduction not in REDUCTIONS:
                text = f"reduction_type must be one of {', '.join(REDUCTIONS)}, not {reduction!r}"
                self._add(rule.lines["reduction_type"], f"{self._name}: data: {name}: {text}")
            pattern = self._pattern(name, rule)
            if pattern is not None:
                yield Metric(name, pattern, skip, reduction)

    def _pattern(self, name: str, rule: yaml_lines.Mapping) -> re.Pattern[str] | None:
        text, line = rule["regexp"], rule.lines["regexp"]
        try:
            pattern = re.compile(text)
            if pattern.groups < 1:
                raise ValueError("there is no group in it; put (…) around the figure")
            return pattern
        except (re.error, TypeError, ValueError) as error:
            self._add(line, f"{self._name}: data: {name}: the regular expression {text!r} cannot be used: {error}")
            return None

    def _derived(self) -> Iterator[tuple[str, Expression]]:
        for name, rule, line in self._items("derived"):
            if not isinstance(rule, yaml_lines.Mapping) or set(rule) != {"expr"}:
                self._add(line, f"{self._name}: derived: {name} needs `expr:` and nothing else")
                continue
            try:
                yield name, Expression(str(rule["expr"]))
            except ValueError as error:
                self._add(rule.lines["expr"], f"{self._name}: derived: {name}: {error}")

    def _check_names(self, data: list[Metric], derived: dict[str, Expression]) -> None:
        known = {metric.name for metric in data}
        for name, expression in derived.items():
            unknown = sorted(expression.names - known)
            line = self._entry["derived"].lines[name]
            if unknown and "cmd" in self._entry:
                self._add(line, f"{self._name}: derived: {name}: no metric {unknown[0]!r} before it")
            if name in known:
                self._add(line, f"{self._name}: derived: {name} is a metric of data already; rename it")
            known.add(name)

    def _output(self, metrics: set[str]) -> Iterator[tuple[str, str]]:
        rows = self._list("output")
        if "output" not in self._entry:
            yield from ((name, name) for name in sorted(metrics))
        for index, row in enumerate(rows):
            line = rows.lines[index] if isinstance(rows, yaml_lines.Sequence) else self._line
            if not isinstance(row, list) or len(row) != 2 or not all(isinstance(part, str) for part in row):
                self._add(line, f"{self._name}: output: each row is [shown name, metric]")
            elif row[1] not in metrics and "cmd" in self._entry:
                known = ", ".join(sorted(metrics)) or "there are none"
                self._add(line, f"{self._name}: output: no metric {row[1]!r} in data or derived ({known})")
            else:
                yield row[0], row[1]

    def _env(self) -> Iterator[tuple[str, str]]:
        for name, value, line in self._items("env"):
            if isinstance(value, (list, dict)) or value is None:
                self._add(line, f"{self._name}: env: {name} needs a text; for an empty one write ''")
            else:
                # YAML reads true and false as booleans; a program expects what was written.
                yield name, str(value).lower() if isinstance(value, bool) else str(value)

    # -- forms -----------------------------------------------------------------------------------------------------

    def _items(self, key: str) -> Iterator[tuple[str, Any, int]]:
        value = self._entry.get(key)
        if isinstance(value, yaml_lines.Mapping):
            for name, item in value.items():
                yield name, item, value.lines[name]
        elif value is not None:
            self._add_key(key, f"must be a mapping, not {_kind(value)}")

    def _list(self, key: str) -> list[Any]:
        value = self._entry.get(key)
        if value is not None and not isinstance(value, list):
            self._add_key(key, f"must be a list, not {_kind(value)}")
        return value if isinstance(value, list) else []

    def _text(self, key: str) -> str:
        value = self._entry.get(key)
        if value is not None and not isinstance(value, str):
            self._add_key(key, f"must be a text, not {_kind(value)}")
        return value if isinstance(value, str) else ""

    def _add_key(self, key: str, text: str) -> None:
        self._add(self._entry.lines[key], f"{self._name}: {key}: {text}")

    def _add(self, line: int, text: str) -> None:
        self.problems.append(f"{self._file}:{line}: {text}")


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", type(None): "nothing"}
    return next((text for kind, text in names.items() if isinstance(value, kind)), repr(value))


def select(
    benchmarks: Mapping[str, Benchmark], names: list[str], include_convergence: bool
) -> list[tuple[Benchmark, variants.Parameters]]:
    """What is to be run, in the order of the files; without names, everything that is no template.

    A name is that of a benchmark or of one of its variants.

    Raises SpecError for a name that is not there, a template, a `_conv` benchmark without `include_convergence`, and
    for what a chosen one needs and does not have: its folder, its requirements, its variables.
    """
    problems: list[str] = []
    everything = [
        (variants.variant_name(name, parameters), benchmark, parameters)
        for name, benchmark in benchmarks.items()
        if not benchmark.is_template
        for parameters in benchmark.parameters
    ]
    for name in names:
        hits = [benchmark for variant, benchmark, _ in everything if name in (variant, benchmark.name)]
        files = ", ".join(sorted({str(benchmark.file) for benchmark in benchmarks.values()}))
        if hits and hits[0].converges and not include_convergence:
            problems.append(f"{hits[0].where()}: {name} trains to convergence; add --include-convergence")
        elif not hits and name in benchmarks:
            problems.append(f"{benchmarks[name].where()}: {name} is a template, which has nothing to run")
        elif not hits:
            known = [*benchmarks, *(variant for variant, _, _ in everything)]
            near = difflib.get_close_matches(name, known, n=1)
            problems.append(f"{files}: there is no benchmark {name}" + (f"; did you mean {near[0]}?" if near else ""))
    chosen = [
        (benchmark, parameters)
        for variant, benchmark, parameters in everything
        if ({variant, benchmark.name} & set(names) if names else include_convergence or not benchmark.converges)
    ]
    for benchmark, _ in chosen:
        if not benchmark.folder.is_dir():
            problems.append(f"{benchmark.where('location')}: {benchmark.name}: there is no folder {benchmark.folder}")
        elif benchmark.requirements is not None and not benchmark.requirements.is_file():
            there = benchmark.where("requirements_path")
            problems.append(f"{there}: {benchmark.name}: there is no file {benchmark.requirements}")
    if problems:
        raise SpecError(*dict.fromkeys(problems))
    if not chosen:
        raise SpecError("there is no benchmark to run: every entry is a template or needs --include-convergence")
    return chosen
