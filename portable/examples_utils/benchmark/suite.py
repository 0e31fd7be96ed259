"""A session: the chosen variants in turn, each with its log folder, its set-up and its result."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import metrics, process, variants
from .results import Report, Result, now
from .spec import Benchmark, SpecError
from .status_line import StatusLine

logger = logging.getLogger("examples_utils")

LOGS = ("requirements.log", "pre_run.log", "stdout.log", "stderr.log")
_WANDB_FLAGS = ("--use-wandb", "--wandb")


@dataclass(frozen=True)
class Settings:
    """The flags of the command line that change how a benchmark runs."""

    log_folder: Path
    timeout: float | None = None
    profile: bool = False
    compile_only: bool = False
    stop_on_error: bool = False
    allow_wandb: bool = False


@dataclass(frozen=True)
class Variant:
    """A benchmark with its parameters put in: the command and everything around it."""

    name: str
    benchmark: Benchmark
    parameters: variants.Parameters
    words: list[str]
    pre_run: list[list[str]]
    environment: dict[str, str]


def prepare(
    chosen: list[tuple[Benchmark, variants.Parameters]], settings: Settings, environment: Mapping[str, str]
) -> list[Variant]:
    """The commands of all variants. Raises SpecError for names and variables in them that are not there."""
    problems: list[str] = []
    prepared: list[Variant] = []
    for benchmark, parameters in chosen:
        name = variants.variant_name(benchmark.name, parameters)
        key = "env"
        try:
            env = _environment(benchmark, parameters, settings, environment, name)
            key = "cmd"
            words = _flags(variants.expand(benchmark.words, parameters, env), settings)
            key = "pre_run_commands"
            pre_run = [variants.expand(command, parameters, env) for command in benchmark.pre_run]
        except ValueError as error:
            problems.append(f"{benchmark.where(key)}: {benchmark.name}: {error}")
            continue
        prepared.append(Variant(name, benchmark, parameters, words, pre_run, env))
    names = [variant.name for variant in prepared]
    for name in sorted({name for name in names if names.count(name) > 1}):
        twice = next(variant.benchmark for variant in prepared if variant.name == name)
        problems.append(f"{twice.where('parameters')}: two variants are called {name}; their logs would mix")
    if problems:
        raise SpecError(*dict.fromkeys(problems))  # variants of a benchmark share most of theirs
    return prepared


def _environment(
    benchmark: Benchmark, parameters: variants.Parameters, settings: Settings, inherited: Mapping[str, str], name: str
) -> dict[str, str]:
    env = dict(inherited)
    # `python3` in a command is the Python that runs this, as it is in an activated environment.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env["PYTHONUNBUFFERED"] = "1"  # so that the logs are live
    for key, value in benchmark.env.items():
        env[key] = variants.expand_text(value, parameters, env)
    if not settings.allow_wandb:
        env["WANDB_MODE"] = "disabled"
    if settings.profile:
        report = {
            "autoReport.all": "true",
            "autoReport.directory": str(benchmark.folder / f"{name}_profile"),
            "autoReport.outputSerializedGraph": "false",
        }
        env["POPLAR_ENGINE_OPTIONS"] = json.dumps(report)
    return env


def _flags(words: list[str], settings: Settings) -> list[str]:
    """The command with what the session's flags add to it and take away."""
    kept: list[str] = []
    skipped = False
    for word in words:
        if not settings.allow_wandb and word.split("=")[0].replace("_", "-") in _WANDB_FLAGS:
            skipped = "=" not in word  # its value, if it has one, follows
        elif skipped and word.lower() in ("true", "false", "1", "0", "yes", "no"):
            skipped = False
        else:
            skipped = False
            kept.append(word)
    return [*kept, "--compile-only"] if settings.compile_only else kept


class Suite:
    """Runs variants one after the other."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings, self._report = settings, report
        self._installed: dict[Path, str] = {}  # requirements and what went wrong with them
        self._set_up: dict[str, str] = {}  # benchmarks and what went wrong with their pre-run commands

    def run(self, prepared: list[Variant]) -> bool:
        """Whether every one was a success. A failure ends it if --stop-on-error says so.

        KeyboardInterrupt ends the variant under way, notes it, and goes on to the caller.
        """
        for index, variant in enumerate(prepared):
            status = StatusLine(f"[{index + 1}/{len(prepared)}] {variant.name}")
            result, start = self._result(variant), time.monotonic()
            try:
                self._run(variant, result, status)
            except BaseException as error:
                result.seconds = time.monotonic() - start
                result.fail("interrupted", f"interrupted ({type(error).__name__})")
                raise
            finally:
                self._report.add(result)
                status.finish(_sentence(result))
            if result.status != "success" and self._settings.stop_on_error:
                left = len(prepared) - index - 1
                if left:
                    logger.warning("--stop-on-error: %d left out", left)
                break
        return all(result.status == "success" for result in self._report.results)

    def _result(self, variant: Variant) -> Result:
        folder = self._settings.log_folder / variant.name
        return Result(
            variant.benchmark.name,
            variant.name,
            variant.benchmark.description,
            variant.words,
            dict(variant.parameters),
            str(folder),
            now(),
        )

    def _run(self, variant: Variant, result: Result, status: StatusLine) -> None:
        folder = Path(result.log_folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in LOGS:  # of an earlier session: figures of two must not be read together
            (folder / name).unlink(missing_ok=True)
        problem = self._install(variant, folder, status) or self._pre_run(variant, folder, status)
        if problem:
            result.fail("failure", problem)
            return
        logger.debug("%s: %s in %s", variant.name, result.command, variant.benchmark.folder)
        stdout, stderr = folder / "stdout.log", folder / "stderr.log"
        outcome = process.run(
            variant.words,
            variant.benchmark.folder,
            variant.environment,
            stdout,
            stderr,
            self._settings.timeout,
            status.watch,
        )
        result.exit_code, result.seconds = outcome.exit_code, outcome.seconds
        if outcome.problem:
            result.fail("timeout" if outcome.problem.startswith("timed out") else "failure", outcome.problem)
        if not self._settings.compile_only:  # which prints no figures
            self._measure(variant.benchmark, result, [stdout, stderr])

    def _measure(self, benchmark: Benchmark, result: Result, logs: list[Path]) -> None:
        texts = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
        result.metrics, problems = metrics.collect(benchmark.data, benchmark.derived, texts)
        result.output = {shown: result.metrics[name] for shown, name in benchmark.output if name in result.metrics}
        for problem in problems:
            result.fail("failure", problem)

    def _install(self, variant: Variant, folder: Path, status: StatusLine) -> str:
        """pip install -r requirements_path, once a session. What went wrong, or ""."""
        path = variant.benchmark.requirements
        if path is None:
            return ""
        if path not in self._installed:
            pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-r", str(path)]
            log = folder / "requirements.log"
            outcome = process.run(pip, path.parent, variant.environment, log, log, self._settings.timeout, status.watch)
            problem = outcome.problem and f"pip install -r {path.name}: {outcome.problem}; see {log}"
            self._installed[path] = problem
        return self._installed[path]

    def _pre_run(self, variant: Variant, folder: Path, status: StatusLine) -> str:
        """The pre-run commands, once a benchmark, or once a variant if they have parameters. What went wrong, or ""."""
        key = json.dumps([variant.benchmark.name, variant.pre_run])
        if key not in self._set_up:
            self._set_up[key] = ""
            log = folder / "pre_run.log"
            for words in variant.pre_run:
                outcome = process.run(
                    words,
                    variant.benchmark.folder,
                    variant.environment,
                    log,
                    log,
                    self._settings.timeout,
                    status.watch,
                )
                if outcome.problem:
                    self._set_up[key] = f"pre-run command {' '.join(words)}: {outcome.problem}; see {log}"
                    break
        return self._set_up[key]


def _sentence(result: Result) -> str:
    figures = "".join(f", {name} {value:,.5g}" for name, value in result.output.items())
    if result.status == "success":
        return f"success in {result.seconds:.1f} s{figures}"
    return f"{result.status.upper()} in {result.seconds:.1f} s{figures}: {'; '.join(result.problems)}"
