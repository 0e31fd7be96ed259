"""A session: the chosen variants in turn, each with its log folder, its set-up and its result."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import custom_metrics, launchers, metrics, process, variants
from .entry import NUMBER, Benchmark, Variant
from .monitor import Monitor
from .result import Result
from .results import Report, now
from .set_up import SetUp
from .status_line import StatusLine
from .tracking import without_wandb
from .yaml_lines import SpecError

logger = logging.getLogger("examples_utils")

LOGS = ("requirements.log", "pre_run.log", "stdout.log", "stderr.log", "gc_monitor.log")


@dataclass(frozen=True)
class Settings:
    """The flags of the command line that change how a benchmark runs."""

    log_folder: Path
    timeout: float | None = None
    profile: bool = False
    compile_only: bool = False
    stop_on_error: bool = False
    allow_wandb: bool = False
    set_up: bool = True
    requirements: Path | None = None
    gc_monitor: bool = False
    remove_after: Sequence[str] = ()
    additional_metrics: bool = False


def prepare(
    chosen: list[tuple[Benchmark, variants.Parameters]], settings: Settings, environment: Mapping[str, str]
) -> list[Variant]:
    """The commands of all variants. Raises SpecError for names and variables in them that are not there.

    A variable that is not set stays as text in a command whose launcher, poprun or mpirun, is not on this machine: it
    never starts here, and must not keep the others from it.
    """
    problems: list[str] = []
    prepared: list[Variant] = []
    for benchmark, parameters in chosen:
        name = variants.variant_name(benchmark.name, parameters)
        inherited = _inherited(environment)
        unset: list[str] | None = [] if launchers.is_absent(benchmark.words, inherited, benchmark.folder) else None
        key = "env"
        try:
            env = dict(inherited)
            for variable, value in benchmark.env.items():
                env[variable] = variants.expand_text(value, parameters, env, unset)
            env |= _of_the_session(benchmark, settings, name)
            key = "parameters"
            values = variants.expand_parameters(parameters, env, unset)
            key = "cmd"
            words = variants.expand(benchmark.words, values, env, unset)
            words = words if _allows_wandb(benchmark, settings) else without_wandb(words)
            words += ["--compile-only"] if settings.compile_only else []
            key = "pre_run_commands"
            pre_run = [variants.expand(command, values, env, unset) for command in benchmark.pre_run]
        except ValueError as error:
            problems.append(f"{benchmark.where(key)}: {benchmark.name}: {error}")
            continue
        missing = tuple(dict.fromkeys(unset or ()))
        prepared.append(Variant(name, benchmark, values, words, pre_run, env, launchers.instances(words), missing))
        problems += _not_removable(benchmark, settings)
    names = [variant.name for variant in prepared]
    for name in sorted({name for name in names if names.count(name) > 1}):
        twice = next(variant.benchmark for variant in prepared if variant.name == name)
        problems.append(f"{twice.where('parameters')}: two variants are called {name}; their logs would mix")
    if problems:
        raise SpecError(*dict.fromkeys(problems))  # variants of a benchmark share most of theirs
    return prepared


def _allows_wandb(benchmark: Benchmark, settings: Settings) -> bool:
    return settings.allow_wandb or benchmark.allow_wandb


def _inherited(environment: Mapping[str, str]) -> dict[str, str]:
    env = dict(environment)
    # `python3` in a command is the Python that runs this, as it is in an activated environment.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env["PYTHONUNBUFFERED"] = "1"  # so that the logs are live
    return env


def _of_the_session(benchmark: Benchmark, settings: Settings, name: str) -> dict[str, str]:
    """The variables that the session's flags set, whatever the entry says."""
    env = {} if _allows_wandb(benchmark, settings) else {"WANDB_MODE": "disabled"}
    if settings.profile:
        report = {
            "autoReport.all": "true",
            "autoReport.directory": str(benchmark.folder / f"{name}_profile"),
            "autoReport.outputSerializedGraph": "false",
        }
        env["POPLAR_ENGINE_OPTIONS"] = json.dumps(report)
    return env


def _not_removable(benchmark: Benchmark, settings: Settings) -> list[str]:
    """What --remove-dirs-after must not take: anything but folders below the benchmark's, and the logs."""
    problems = []
    for given in settings.remove_after:
        path = (benchmark.folder / given).resolve()
        if benchmark.folder.resolve() not in path.parents:
            problems.append(f"--remove-dirs-after {given}: must be below {benchmark.folder}")
        elif path == settings.log_folder or path in settings.log_folder.parents:
            problems.append(f"--remove-dirs-after {given}: the logs are in it; name another --log-dir")
    return problems


class Suite:
    """Runs variants one after the other."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings, self._report = settings, report
        self._set_up = SetUp(settings.requirements, settings.timeout)
        self._monitor = Monitor() if settings.gc_monitor else None

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
                self._remove(variant)
                self._report.add(result)
                status.finish(_sentence(result))
                print(_verdict(result), flush=True)
            if result.status != "success" and self._settings.stop_on_error:
                left = len(prepared) - index - 1
                if left:
                    logger.warning("--stop-on-error: %d left out", left)
                break
        return all(result.status == "success" for result in self._report.results)

    def _result(self, variant: Variant) -> Result:
        folder = self._settings.log_folder / variant.name
        benchmark = variant.benchmark
        return Result(
            benchmark.name,
            variant.name,
            benchmark.description,
            variant.words,
            dict(variant.parameters),
            str(folder),
            now(),
            spec=self._report.shown(benchmark.file),
            notes=dict(benchmark.notes),
        )

    def _run(self, variant: Variant, result: Result, status: StatusLine) -> None:
        folder = Path(result.log_folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in LOGS:  # of an earlier session: figures of two must not be read together
            (folder / name).unlink(missing_ok=True)
        problem = self._set_up(variant, folder, status) if self._settings.set_up else ""
        if problem:
            result.fail("failure", problem)
            return
        logger.debug("%s: %s in %s", variant.name, result.command, variant.benchmark.folder)
        outcome = self._start(variant, folder, status)
        result.exit_code, result.seconds = outcome.exit_code, outcome.seconds
        if outcome.problem:
            unset = f"; not set: {', '.join(variant.unset)}" if variant.unset else ""
            result.fail("timeout" if outcome.problem.startswith("timed out") else "failure", outcome.problem + unset)
        if not self._settings.compile_only and outcome.exit_code is not None:  # no figures are printed
            self._measure(variant, result, folder)
        if self._settings.additional_metrics:
            result.additional = {"exit_code": outcome.exit_code, "cpu_seconds": outcome.cpu_seconds}

    def _start(self, variant: Variant, folder: Path, status: StatusLine) -> process.Outcome:
        limits = [limit for limit in (self._settings.timeout, variant.benchmark.timeout) if limit is not None]
        arguments = (variant.words, variant.benchmark.folder, variant.environment)
        logs = (folder / "stdout.log", folder / "stderr.log")
        monitor = self._monitor
        if monitor is None:
            return process.run(*arguments, *logs, min(limits, default=None), status.watch)

        def watch(seconds: float, stdout: Path, stderr: Path) -> None:
            status.watch(seconds, stdout, stderr)
            monitor.look(seconds)

        with monitor.into(folder / "gc_monitor.log"):
            return process.run(*arguments, *logs, min(limits, default=None), watch)

    def _measure(self, variant: Variant, result: Result, folder: Path) -> None:
        benchmark = variant.benchmark
        texts = [(folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout.log", "stderr.log")]
        result.metrics, problems = metrics.collect(
            benchmark.data, benchmark.derived, texts, variant.parameters, variant.instances
        )
        rules = metrics.rules(benchmark.data, benchmark.derived, variant.instances)
        more, more_problems = custom_metrics.measure(*texts, result.exit_code or 0)
        result.metrics |= more
        result.rules = {name: rules.get(name, "custom") for name in result.metrics}
        literals = {name: name for _, name in benchmark.output if re.fullmatch(NUMBER, name)}
        figures = {**literals, **variant.parameters, **result.metrics}
        result.output = {shown: figures[name] for shown, name in benchmark.output if name in figures}
        for problem in problems + more_problems:
            result.fail("failure", problem)

    def _remove(self, variant: Variant) -> None:
        """The folders of --remove-dirs-after."""
        for given in self._settings.remove_after:
            path = variant.benchmark.folder / given
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
                logger.info("--remove-dirs-after: removed %s", path)


def _sentence(result: Result) -> str:
    figures = "".join(
        f", {name} {value:,.5g}" if isinstance(value, (int, float)) else f", {name} {value}"
        for name, value in result.output.items()
    )
    if result.status == "success":
        return f"success in {result.seconds:.1f} s{figures}"
    return f"{result.status.upper()} in {result.seconds:.1f} s{figures}: {'; '.join(result.problems)}"


def _verdict(result: Result) -> str:
    return f"{'PASSED' if result.status == 'success' else 'FAILED'} {result.spec}::{result.variant}"
