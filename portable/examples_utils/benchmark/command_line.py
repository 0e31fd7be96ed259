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

if TYPE_CHECKING:
    from .spec import Benchmark

PROGRAM = "examples_utils benchmark"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0")
    return value


def parser() -> argparse.ArgumentParser:
    """The flags."""
    top = argparse.ArgumentParser(prog="python3 -m examples_utils", description="Tools around PopTorch programs.")
    commands = top.add_subparsers(dest="command", required=True, metavar="benchmark")
    one = commands.add_parser("benchmark", help="run benchmarks of a spec file", description=__doc__)
    one.add_argument("--spec", nargs="+", type=Path, required=True, metavar="FILE", help="YAML files with benchmarks")
    one.add_argument(
        "--benchmark", nargs="+", default=[], metavar="NAME", help="benchmarks or variants to run (default: all)"
    )
    one.add_argument("--profile", action="store_true", help="leave a profile in <variant>_profile (off-IPU too)")
    one.add_argument("--timeout", type=_seconds, metavar="S", help="seconds after which a variant is ended")
    one.add_argument(
        "--log-dir", type=Path, metavar="DIR", help="folder for logs and results (default: benchmark_logs/<time>)"
    )
    one.add_argument("--stop-on-error", action="store_true", help="end at the first failure")
    one.add_argument("--compile-only", action="store_true", help="add --compile-only to every command; no metrics")
    one.add_argument(
        "--csv-metrics", nargs="+", metavar="METRIC", help="metrics in benchmark_results.csv (default: all)"
    )
    one.add_argument("--include-convergence", action="store_true", help="run the benchmarks that end in _conv, too")
    one.add_argument("--allow-wandb", action="store_true", help="leave W&B flags in the commands")
    one.add_argument(
        "--logging", default="INFO", type=str.upper, choices=LEVELS, metavar="LEVEL", help="how much to log"
    )
    return top


def main(argv: list[str]) -> int:
    """Runs the command line. Returns the exit status."""
    args = parser().parse_args(argv)
    from . import suite  # these bring YAML and more, which --help and a mistyped flag need not wait for
    from .results import Report
    from .spec import SpecError, load, select

    logging.basicConfig(level=args.logging, stream=sys.stderr, format="%(levelname)s %(message)s")
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = (args.log_dir or Path("benchmark_logs") / stamp).absolute()
    settings = suite.Settings(
        folder, args.timeout, args.profile, args.compile_only, args.stop_on_error, args.allow_wandb
    )
    try:
        benchmarks = load([path.absolute() for path in args.spec])
        chosen = select(benchmarks, args.benchmark, args.include_convergence)
        _check_columns(args.csv_metrics, [benchmark for benchmark, _ in chosen])
        prepared = suite.prepare(chosen, settings, os.environ)
        _make_folder(folder)
    except SpecError as error:
        count = "1 problem" if len(error.args) == 1 else f"{len(error.args)} problems"
        print(f"{PROGRAM}: {count}, nothing was started", file=sys.stderr)
        for problem in error.args:
            print(f"  {problem}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    report = Report(folder, chosen[0][0].file.parent, _plain(args), args.csv_metrics)
    try:
        succeeded = suite.Suite(settings, report).run(prepared)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; results so far are in {report.json_path}", file=sys.stderr)
        return 130
    failures = [result for result in report.results if result.status != "success"]
    print(f"{len(report.results) - len(failures)} succeeded, {len(failures)} failed; results: {report.json_path}")
    for result in failures:
        print(f"  {result.variant}: {result.problems[0]}; logs: {result.log_folder}")
    return 0 if succeeded else 1


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _check_columns(columns: list[str] | None, benchmarks: list[Benchmark]) -> None:
    from .spec import SpecError

    known = {name for each in benchmarks for name in [*(metric.name for metric in each.data), *each.derived]}
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
    given = {name: value for name, value in vars(args).items() if name != "command"}
    given["spec"] = [str(path) for path in args.spec]
    given["log_dir"] = str(args.log_dir) if args.log_dir else None
    return given
