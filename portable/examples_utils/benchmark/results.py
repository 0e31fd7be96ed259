"""A session's results on disk, rewritten after every variant: benchmark_results.json, benchmark_results.csv, junit.xml.

Beside a variant's logs, variant_result.json has its own.
"""

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
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import junit
from .result import Result

# Distributions whose versions explain a figure; those that are installed are listed.
_DISTRIBUTIONS = (
    *("torch", "poptorch-portable", "poptorch", "popart", "numpy", "transformers", "tokenizers", "safetensors"),
)


class Report:
    """The results so far.

    Args:
        folder: where the files go.
        spec_folder: whose commit is noted.
        arguments: what the session was started with.
        columns: the metrics of the CSV file; None for all of them.
        specs: how the spec files are called, by their paths; a path for what is not in it.
    """

    def __init__(
        self,
        folder: Path,
        spec_folder: Path,
        arguments: dict[str, Any],
        columns: list[str] | None,
        specs: Mapping[Path, str] | None = None,
    ) -> None:
        self.json_path, self.csv_path = folder / "benchmark_results.json", folder / "benchmark_results.csv"
        self._junit_path = folder / "junit.xml"
        self._columns, self._specs = columns, specs or {}
        self._head = {
            "date": now(),
            "commit": commit(spec_folder),
            "machine": machine(),
            "versions": versions(),
            "arguments": arguments,
        }
        self.results: list[Result] = []

    def shown(self, spec: Path) -> str:
        """What a spec file is called."""
        return self._specs.get(spec, str(spec))

    def add(self, result: Result) -> None:
        """Adds a result and writes the files."""
        self.results.append(result)
        document = {**self._head, "benchmarks": [asdict(each) for each in self.results]}
        _write(self.json_path, json.dumps(document, indent=2) + "\n")
        _write(self.csv_path, self._csv())
        _write(self._junit_path, junit.document(self.results, self._head["date"]))
        if Path(result.log_folder).is_dir():
            _write(Path(result.log_folder) / "variant_result.json", json.dumps(asdict(result), indent=2) + "\n")

    def _csv(self) -> str:
        names = self._columns
        if names is None:
            names = list(dict.fromkeys(name for result in self.results for name in result.metrics))
        more = list(dict.fromkeys(name for result in self.results for name in result.additional))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["date", "commit", "hardware", "benchmark", "variant", "status", "seconds", *more, *names])
        for result in self.results:
            figures = [result.additional.get(name, "") for name in more]
            figures += [result.metrics.get(name, "") for name in names]
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
