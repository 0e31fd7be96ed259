"""The flags of `python3 -m examples_utils benchmark`, and how a mistake in them is told."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

PROGRAM = "examples_utils benchmark"
ABOUT = "Runs the benchmarks of spec files. Exit status 0: all succeeded; 1: not all; 2: it was asked wrongly."
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def refuse(problems: Sequence[str]) -> None:
    """Says what is wrong, a line each."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{PROGRAM}: {count}, nothing was started", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """argparse's parser without its usage before an error. Whole words only: no flag can be abbreviated."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        super().__init__(*arguments, allow_abbrev=False, **keywords)

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        refuse([message.removeprefix("argument ")])
        sys.exit(2)


def parse(argv: list[str]) -> argparse.Namespace:
    """The values of the flags. Ends the program with status 2 if there is something wrong with them."""
    top, benchmark = _parsers()
    args, unknown = top.parse_known_args(argv)
    problems = []
    for word in unknown:
        flags = list(benchmark._option_string_actions)
        near = difflib.get_close_matches(word.split("=")[0], flags, n=1) if word.startswith("-") else []
        kind = "unknown flag" if word.startswith("-") else "belongs to no flag"
        problems.append(f"{word}: {kind}; " + (f"did you mean {near[0]}?" if near else "see --help"))
    try:
        args.timeout = None if args.timeout is None else float(args.timeout)
        if args.timeout is not None and not 0 < args.timeout < float("inf"):
            raise ValueError
    except ValueError:
        problems.append(f"--timeout: {args.timeout!r} must be a number of seconds above 0")
    if args.logging not in LEVELS:
        problems.append(f"--logging: {args.logging!r} must be one of {', '.join(LEVELS)}")
    if problems:
        refuse(problems)
        sys.exit(2)
    return args


def _parsers() -> tuple[Parser, Parser]:
    """The program's parser, and the benchmark command's."""
    top = Parser(prog="python3 -m examples_utils", description="Tools around PopTorch programs.")
    commands = top.add_subparsers(dest="command", required=True, metavar="benchmark", parser_class=Parser)
    one = commands.add_parser("benchmark", help="run benchmarks of a spec file", description=ABOUT)
    what = one.add_argument_group("what runs")
    what.add_argument(
        *("--spec",), nargs="+", type=Path, default=[Path("benchmarks.yml")], metavar="FILE",
        help="YAML files with benchmarks (default: ./benchmarks.yml)",
    )  # fmt: skip
    what.add_argument(
        *("--benchmark",), nargs="+", default=[], metavar="NAME",
        help="benchmarks or variants to run, in this order (default: all that do not end in _conv)",
    )  # fmt: skip
    what.add_argument("--include-convergence", action="store_true", help="run the benchmarks that end in _conv, too")
    what.add_argument(
        *("--setup",), action=argparse.BooleanOptionalAction, default=True,
        help="install requirements_path and run pre_run_commands before (default), or leave that to you",
    )  # fmt: skip
    what.add_argument("--requirements-file", type=Path, metavar="FILE", help="install this, not what the spec names")
    how = one.add_argument_group("how")
    how.add_argument("--timeout", metavar="S", help="seconds after which a variant is ended; a spec may set fewer")
    how.add_argument("--stop-on-error", action="store_true", help="end at the first failure")
    how.add_argument("--compile-only", action="store_true", help="add --compile-only to every command; no metrics")
    how.add_argument("--profile", action="store_true", help="leave a profile in <variant>_profile (off-IPU too)")
    how.add_argument(
        "--gc-monitor", action="store_true", help="log the IPUs' use with gc-monitor, where there are IPUs"
    )
    how.add_argument("--allow-wandb", action="store_true", help="leave W&B flags in the commands")
    how.add_argument(
        *("--remove-dirs-after",), nargs="+", default=[], metavar="DIR",
        help="folders below a benchmark's that are removed after each of its variants",
    )  # fmt: skip
    left = one.add_argument_group("what is left")
    left.add_argument(
        "--log-dir", type=Path, metavar="DIR", help="folder for logs and results (default: benchmark_logs/<time>)"
    )
    left.add_argument(
        "--csv-metrics", nargs="+", metavar="METRIC", help="metrics in benchmark_results.csv (default: all)"
    )
    left.add_argument(
        *("--additional-metrics",), action="store_true",
        help="exit status and processor seconds in the results, too",
    )  # fmt: skip
    left.add_argument(
        *("--custom-metrics-files",), nargs="+", type=Path, default=[], metavar="FILE",
        help="Python files that call examples_utils.benchmarks.custom_metrics.register_custom_metric",
    )  # fmt: skip
    left.add_argument("--logging", default="INFO", type=str.upper, metavar="LEVEL", help=f"one of {', '.join(LEVELS)}")
    return top, one
