"""Runs the benchmarks of spec files. Exit status 0: all succeeded; 1: not all; 2: it was asked wrongly."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .flags import PROGRAM, parse, refuse

if TYPE_CHECKING:
    from .entry import Benchmark
    from .results import Report


def main(argv: list[str]) -> int:
    """Runs the command line. Returns the exit status."""
    args = parse(argv)
    from . import custom_metrics, suite  # these bring YAML and more, which --help and a mistyped flag need not wait for
    from .results import Report
    from .spec import SpecError, load, select

    logging.basicConfig(level=args.logging, stream=sys.stderr, format="%(levelname)s %(message)s")
    specs = _yaml_files(args.spec)
    try:
        settings = _settings(args)
        benchmarks = load([path.absolute() for path in specs])
        chosen = select(benchmarks, args.benchmark, args.include_convergence)
        custom_metrics.load(args.custom_metrics_files)
        _check_columns(args.csv_metrics, [benchmark for benchmark, _ in chosen], custom_metrics.names())
        prepared = suite.prepare(chosen, settings, os.environ)
        _make_folder(settings.log_folder)
    except SpecError as error:
        refuse(error.args)
        return 2
    before = signal.signal(signal.SIGTERM, _interrupt)
    shown = {path.absolute(): str(path) for path in specs}
    report = Report(settings.log_folder, chosen[0][0].file.parent, _plain(args), args.csv_metrics, shown)
    try:
        succeeded = suite.Suite(settings, report).run(prepared)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; results so far are in {report.json_path}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    _summary(report)
    return 0 if succeeded else 1


def _yaml_files(given: list[Path]) -> list[Path]:
    """The spec files: of `folder/*` those that are YAML by name, each once."""
    named = [path for path in given if path.suffix in (".yml", ".yaml")]
    return list(dict.fromkeys(named or given))


def _settings(args: argparse.Namespace) -> Any:
    from . import suite
    from .spec import SpecError

    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    requirements = args.requirements_file and args.requirements_file.absolute()
    if requirements is not None and not requirements.is_file():
        raise SpecError(f"--requirements-file {args.requirements_file}: there is no such file")
    return suite.Settings(
        log_folder=(args.log_dir or Path("benchmark_logs") / stamp).absolute(),
        timeout=args.timeout,
        profile=args.profile,
        compile_only=args.compile_only,
        stop_on_error=args.stop_on_error,
        allow_wandb=args.allow_wandb,
        set_up=args.setup,
        requirements=requirements,
        gc_monitor=args.gc_monitor,
        remove_after=tuple(args.remove_dirs_after),
        additional_metrics=args.additional_metrics,
    )


def _summary(report: Report) -> None:
    failures = [result for result in report.results if result.status != "success"]
    print(f"{len(report.results) - len(failures)} succeeded, {len(failures)} failed; results: {report.json_path}")
    for result in failures:
        print(f"  {result.variant}: {result.problems[0]}; logs: {result.log_folder}")


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _check_columns(columns: list[str] | None, benchmarks: list[Benchmark], custom: set[str]) -> None:
    from .spec import SpecError

    known = custom | {name for each in benchmarks for name in [*(metric.name for metric in each.data), *each.derived]}
    unknown = sorted(set(columns or ()) - known)
    if unknown:
        have = ", ".join(sorted(known)) or "none"
        raise SpecError(
            f"--csv-metrics {' '.join(unknown)}: no such metric in the benchmarks chosen, which have {have}"
        )


def _make_folder(folder: Path) -> None:
    from .spec import SpecError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".tried").touch()
        (folder / ".tried").unlink()
    except OSError as error:
        raise SpecError(f"--log-dir {folder}: cannot be written ({error.strerror}); name another folder") from error


def _plain(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as JSON takes them."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in vars(args).items() if name != "command"}
