"""A session's results on disk: benchmark_results.json and benchmark_results.csv, rewritten after every variant."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Distributions whose versions explain a figure; those that are installed are listed.
_DISTRIBUTIONS = (
    *("torch", "poptorch-portable", "poptorch", "popart", "numpy", "transformers", "tokenizers", "safetensors"),
)


@dataclass
class Result:
    """What one variant came to. `status` is success, failure, timeout or interrupted; `problems` say why."""

    benchmark: str
    variant: str
    description: str
    command: list[str]
    parameters: dict[str, Any]
    log_folder: str
    started: str
    status: str = "success"
    exit_code: int | None = None
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    output: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def fail(self, status: str, problem: str) -> None:
        """Notes why it is no success; the first status stays."""
        self.status = status if self.status == "success" else self.status
        self.problems.append(problem)


class Report:
    """The results so far.

    Args:
        folder: where the files go.
        spec_folder: whose commit is noted.
        arguments: what the session was started with.
        columns: the metrics of the CSV file; None for all of them.
    """

    def __init__(self, folder: Path, spec_folder: Path, arguments: dict[str, Any], columns: list[str] | None) -> None:
        self.json_path, self.csv_path = folder / "benchmark_results.json", folder / "benchmark_results.csv"
        self._columns = columns
        self._head = {
            "date": now(),
            "commit": commit(spec_folder),
            "machine": machine(),
            "versions": versions(),
            "arguments": arguments,
        }
        self.results: list[Result] = []

    def add(self, result: Result) -> None:
        """Adds a result and writes both files."""
        self.results.append(result)
        document = {**self._head, "benchmarks": [asdict(each) for each in self.results]}
        _write(self.json_path, json.dumps(document, indent=2) + "\n")
        _write(self.csv_path, self._csv())

    def _csv(self) -> str:
        names = self._columns
        if names is None:
            names = list(dict.fromkeys(name for result in self.results for name in result.metrics))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["date", "commit", "hardware", "benchmark", "variant", "status", "seconds", *names])
        for result in self.results:
            figures = [result.metrics.get(name, "") for name in names]
            about = [result.started, self._head["commit"] or "", self._head["machine"]["hardware"]]
            row = [result.benchmark, result.variant, result.status, f"{result.seconds:.1f}"]
            writer.writerow([*about, *row, *figures])
        return text.getvalue()


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def now() -> str:
    """This moment, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def commit(folder: Path) -> str | None:
    """The git commit of a folder, `with changes` if there are any; None outside a repository."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    return head and head + (" with changes" if git("status", "--porcelain") else "")


def machine() -> dict[str, Any]:
    """Processor, cores, memory and accelerators; `hardware` is all of it in a line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    accelerators = _accelerators()
    parts = [f"{_processor()}, {cores} cores", f"{memory / 2**30:.0f} GiB", *accelerators]
    return {
        "hardware": ", ".join(parts),
        "processor": _processor(),
        "cores": cores,
        "memory_gib": round(memory / 2**30, 1),
        "accelerators": accelerators,
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def versions() -> dict[str, str]:
    """Python and the libraries that matter."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
