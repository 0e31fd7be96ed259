"""What a benchmark needs before it runs: its requirements, once a session, and its pre-run commands."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from . import process
from .entry import Variant
from .status_line import StatusLine

logger = logging.getLogger("examples_utils")


class SetUp:
    """Sets benchmarks up, none of them twice.

    Args:
        requirements: a file that is installed instead of those that the benchmarks name; None for those.
        timeout: seconds after which a command of it is ended.
    """

    def __init__(self, requirements: Path | None, timeout: float | None) -> None:
        self._requirements, self._timeout = requirements, timeout
        self._installed: dict[Path, str] = {}  # requirements and what went wrong with them
        self._done: dict[str, str] = {}  # benchmarks and what went wrong with their pre-run commands

    def __call__(self, variant: Variant, folder: Path, status: StatusLine) -> str:
        """Sets a variant up, with its logs in `folder`. What went wrong, or ""."""
        return self._install(variant, folder, status) or self._pre_run(variant, folder, status)

    def _install(self, variant: Variant, folder: Path, status: StatusLine) -> str:
        """pip install -r requirements_path. A file that is not there is a warning; the program may do without."""
        benchmark = variant.benchmark
        packages = benchmark.apt_packages
        if packages is not None and packages not in self._installed:
            self._installed[packages] = ""
            where = benchmark.where("required_apt_packages_path")
            logger.warning("%s: system packages are left to you: xargs apt-get install -y < %s", where, packages)
        path = self._requirements or benchmark.requirements
        if path is None or path in self._installed:
            return self._installed[path] if path else ""
        self._installed[path] = ""
        if not path.is_file():
            where = f"{benchmark.where('requirements_path')}: {benchmark.name}"
            logger.warning("%s: there is no file %s; nothing is installed", where, path)
            return ""
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-r", str(path)]
        log = folder / "requirements.log"
        outcome = process.run(pip, path.parent, variant.environment, log, log, self._timeout, status.watch)
        self._installed[path] = outcome.problem and f"pip install -r {path.name}: {outcome.problem}; see {log}"
        return self._installed[path]

    def _pre_run(self, variant: Variant, folder: Path, status: StatusLine) -> str:
        """The pre-run commands, once a benchmark, or a variant if they have parameters. `cd` holds for the next."""
        key = json.dumps([variant.benchmark.name, variant.pre_run])
        if key in self._done:
            return self._done[key]
        self._done[key] = ""
        log, there = folder / "pre_run.log", variant.benchmark.folder
        for words in variant.pre_run:
            if words[0] == "cd" and len(words) == 2:
                there = (there / words[1]).resolve()
                problem = "" if there.is_dir() else f"there is no folder {there}"
            else:
                outcome = process.run(words, there, variant.environment, log, log, self._timeout, status.watch)
                problem = outcome.problem and f"{outcome.problem}; see {log}"
            if problem:
                self._done[key] = f"pre-run command {' '.join(words)}: {problem}"
                break
        return self._done[key]
