"""One entry of a spec file, read key by key: what it says, what is wrong with it, and what in it is ignored."""

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

KEYS = (
    *("allow_wandb", "cmd", "data", "derived", "description", "env", "generated", "location", "notebook", "output"),
    *("parameters", "pre_run_commands", "reference_directory", "required_apt_packages_path", "requirements_file"),
    *("requirements_path", "synthetic", "timeout"),
)
NOTES = ("generated", "synthetic")  # said of the data for whoever reads the results; nothing depends on them
CONVERGENCE = "_conv"
NUMBER = r"\d[\d.]*"  # in `output`, in a metric's place: it is shown as it is
# A notebook is run whole and printed with what its cells print, so that metrics are found in it as in any output.
_NOTEBOOK = ("python3", "-m", "jupyter", "nbconvert", "--execute", "--to", "markdown", "--stdout")


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
    output: list[tuple[str, str]] = field(default_factory=list)  # shown name, and a metric, a parameter or a number
    env: dict[str, str] = field(default_factory=dict)
    folder: Path = Path()
    requirements: Path | None = None
    apt_packages: Path | None = None
    pre_run: list[list[str]] = field(default_factory=list)
    description: str = ""
    timeout: float | None = None  # seconds
    allow_wandb: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

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


@dataclass(frozen=True)
class Variant:
    """A benchmark with its parameters put in: the command and everything around it.

    `instances` is how many processes of the program the command starts; `unset` are variables in it that are not set.
    """

    name: str
    benchmark: Benchmark
    parameters: variants.Parameters
    words: list[str]
    pre_run: list[list[str]]
    environment: dict[str, str]
    instances: int = 1
    unset: tuple[str, ...] = ()


class Entry:
    """Reads one entry; what is wrong with it is in `problems` afterwards, and what is ignored in `ignored`."""

    def __init__(self, name: str, file: Path, line: int, entry: Any) -> None:
        self._name, self._file, self._line, self._entry = name, file, line, entry
        self.problems: list[str] = []
        self.ignored: list[str] = []

    def read(self) -> Benchmark:
        """The benchmark, as far as it can be read."""
        name, file, entry = self._name, self._file, self._entry
        if not isinstance(entry, yaml_lines.Mapping):
            if "options" not in name:
                self._add(self._line, f"{name}: must be a mapping with `cmd:`, not {_kind(entry)}")
            return Benchmark(name, file, {"": self._line})
        lines = {"": self._line, **entry.lines}
        if "options" in name and "cmd" not in entry and not set(entry) & set(KEYS):
            return Benchmark(name, file, lines)  # a group of anchors
        self._ignore_unknown(entry, KEYS)
        parameters, data, derived = self._parameters(), list(self._data()), dict(self._derived())
        self._check_names(data, derived, set(parameters[0]))
        root = (file.parent / self._text("reference_directory")).resolve()
        requirements = self._text("requirements_path") or self._text("requirements_file")
        apt_packages = self._text("required_apt_packages_path")
        return Benchmark(
            name=name,
            file=file,
            lines=lines,
            words=self._words(),
            parameters=parameters,
            data=data,
            derived=derived,
            output=list(self._output([metric.name for metric in data] + list(derived), list(parameters[0]))),
            env=dict(self._env()),
            folder=application_folder(root, self._text("location")),
            requirements=root / requirements if requirements else None,
            apt_packages=root / apt_packages if apt_packages else None,
            pre_run=list(self._commands("pre_run_commands", self._list("pre_run_commands"))),
            description=self._text("description").strip(),
            timeout=self._timeout(),
            allow_wandb=self._truth("allow_wandb"),
            notes={key: entry[key] for key in NOTES if key in entry},
        )

    # -- keys ------------------------------------------------------------------------------------------------------

    def _words(self) -> list[str]:
        if "cmd" in self._entry:
            return next(self._commands("cmd", [self._entry["cmd"]]), [])
        notebook = self._entry.get("notebook")
        if isinstance(notebook, yaml_lines.Mapping):
            notebook = notebook.get("file")
        if "notebook" in self._entry and not (isinstance(notebook, str) and notebook):
            self._add_key("notebook", "must be the path of a notebook, or a mapping with `file:`")
            return []
        return [*_NOTEBOOK, notebook] if notebook else []

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
            self._ignore_unknown(rule, ("regexp", "skip", "reduction_type"))
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
            return re.compile(text, re.MULTILINE)  # ^ and $ are a line's
        except (re.error, TypeError, ValueError) as error:
            self._add(line, f"{self._name}: data: {name}: the regular expression {text!r} cannot be used: {error}")
            return None

    def _derived(self) -> Iterator[tuple[str, Expression]]:
        for name, rule, line in self._items("derived"):
            if isinstance(rule, yaml_lines.Mapping):
                # They have nothing to reduce, but are given a reduction_type for the reader: max, p99.
                self._ignore_unknown(rule, ("expr", "reduction_type"))
            text = rule.get("expr") if isinstance(rule, yaml_lines.Mapping) else rule
            if isinstance(text, (list, dict, type(None))) or text is rule and not isinstance(rule, str):
                self._add(line, f"{self._name}: derived: {name} needs `expr:`")
                continue
            try:
                yield name, Expression(str(text))
            except ValueError as error:
                self._add(getattr(rule, "lines", {}).get("expr", line), f"{self._name}: derived: {name}: {error}")

    def _check_names(self, data: list[Metric], derived: dict[str, Expression], parameters: set[str]) -> None:
        known = {metric.name for metric in data}
        for name, expression in derived.items():
            unknown = sorted(expression.names - known - parameters)
            line = self._entry["derived"].lines[name]
            if unknown and "cmd" in self._entry:
                self._add(line, f"{self._name}: derived: {name}: no metric {unknown[0]!r} before it")
            if name in known:
                self._add(line, f"{self._name}: derived: {name} is a metric of data already; rename it")
            known.add(name)

    def _output(self, metrics: list[str], parameters: list[str]) -> Iterator[tuple[str, str]]:
        rows = self._list("output")
        if "output" not in self._entry:
            yield from ((name, name) for name in sorted(metrics))
        for index, row in enumerate(rows):
            line = rows.lines[index] if isinstance(rows, yaml_lines.Sequence) else self._line
            if not isinstance(row, list) or len(row) != 2 or not all(isinstance(part, (str, int)) for part in row):
                self._add(line, f"{self._name}: output: each row is [shown name, metric]")
                continue
            shown, given = str(row[0]), str(row[1])
            braced = re.fullmatch(r"\{(.+)\}", given)
            name = braced.group(1) if braced else given
            if name in metrics or name in parameters or re.fullmatch(NUMBER, name):
                yield shown, name
            elif "cmd" in self._entry and not metrics and not parameters:
                self._add(line, f"{self._name}: output: no metric {name!r} in data or derived (there are none)")
            elif "cmd" in self._entry:  # a template's rows may suit only some of those that take from it
                near = difflib.get_close_matches(name, [*metrics, *parameters], n=1)
                remedy = f"; did you mean {near[0]}?" if near else " or parameter is called so"
                self.ignored.append(f"{self._file}:{line}: output: no metric {name!r}{remedy}")

    def _env(self) -> Iterator[tuple[str, str]]:
        for name, value, line in self._items("env"):
            if isinstance(value, (list, dict)) or value is None:
                self._add(line, f"{self._name}: env: {name} needs a text; for an empty one write ''")
            else:
                # YAML reads true and false as booleans; a program expects what was written.
                yield name, str(value).lower() if isinstance(value, bool) else str(value)

    def _timeout(self) -> float | None:
        value = self._entry.get("timeout")
        if value is None or (isinstance(value, (int, float)) and 0 < value < float("inf") and value is not True):
            return value
        self._add_key("timeout", f"must be a number of seconds above 0, not {value!r}")
        return None

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

    def _truth(self, key: str) -> bool:
        value = self._entry.get(key, False)
        if not isinstance(value, bool):
            self._add_key(key, f"must be true or false, not {_kind(value)}")
        return value is True

    def _ignore_unknown(self, mapping: yaml_lines.Mapping, known: tuple[str, ...]) -> None:
        for key in mapping:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                self.ignored.append(f"{self._file}:{mapping.lines[key]}: unknown key {key!r}; {remedy}")

    def _add_key(self, key: str, text: str) -> None:
        self._add(self._entry.lines[key], f"{self._name}: {key}: {text}")

    def _add(self, line: int, text: str) -> None:
        self.problems.append(f"{self._file}:{line}: {text}")


def application_folder(root: Path, location: str) -> Path:
    """The folder that `location` names, which counts from `root`.

    Where it is not there, it is a path in the repository of the applications, with or without that repository's own
    name in front (public_examples/vision/vit/pytorch), and is looked for from the folders above.
    """
    beside = (root / location).resolve()
    if not beside.is_dir():
        for above in root.parents:
            for path in (above / location, above.joinpath(*Path(location).parts[1:])):
                if len(Path(location).parts) > 1 and path.is_dir():
                    return path.resolve()
    return beside


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", type(None): "nothing"}
    return next((text for kind, text in names.items() if isinstance(value, kind)), repr(value))
