"""Training on a machine that does something else, too: by how long OpenMP's threads spin at barriers.

    python -m benchmarks.busy_machine                     # gpt2-tiny, 4 x 64 tokens a step, 2 threads, 2 busy processes
    python -m benchmarks.busy_machine --rounds 2 --steps 1 --by-hand GOMP_SPINCOUNT=0      # a smoke run
    python -m benchmarks.busy_machine --json benchmarks/records/busy_machine_cpu.json

The sides are train_gpt2.py's step with nothing set (`default`), with what the programs set (`ours`,
command_line/openmp.py), and with each of the settings that one could find by hand. Each is a process of its own; they
take turns, some steps at a time, first as the machine is, then beside busy processes. Reported are medians over the
rounds of the seconds a step, and of the quotients within a round: default / ours, and ours / the best by hand, which is
the one with the lowest median in that state. `idle` is what the machine otherwise does: the record has its load.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, Mapping
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import busy_machine_sides, record  # noqa: E402
from benchmarks.side_process import SideProcess  # noqa: E402
from command_line.openmp import BOUNDED, DECIDED  # noqa: E402

BY_HAND = ("GOMP_SPINCOUNT=0", "GOMP_SPINCOUNT=100", "GOMP_SPINCOUNT=10000", "OMP_WAIT_POLICY=passive", "threads=1")
BUSY = "while True: pass"


def variables_of(setting: str) -> dict[str, str]:
    """NAME=VALUE,NAME=VALUE as a mapping. Raises ValueError for anything else."""
    pairs = [pair.split("=") for pair in setting.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(f"{setting!r} is not NAME=VALUE[,NAME=VALUE …]")
    return dict(pairs)  # type: ignore[arg-type]


def start(name: str, setting: Mapping[str, str], args: argparse.Namespace) -> SideProcess:
    """A side that trains with these variables; `threads` among them is the number of its threads."""
    variables = dict(setting)
    threads = int(variables.pop("threads", args.threads))
    settings = {"model": args.model, "batch": args.batch, "length": args.length, "threads": threads}
    kept = {key: value for key, value in os.environ.items() if key not in DECIDED}
    with mock.patch.dict(os.environ, {**kept, **variables}, clear=True):
        settings["steps"] = args.steps
        return SideProcess(busy_machine_sides.__file__, name, settings, "cpu", bounded=False)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Inside this context so many processes compute without a pause."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(sides: Mapping[str, SideProcess], rounds: int) -> dict[str, Any]:
    """Alternating rounds of all sides; ratios of neighbours."""
    names, rows = list(sides), []
    for index in range(rounds):
        turn = index % len(names)
        seconds = {name: sides[name].ask("steps")["seconds"] for name in names[turn:] + names[:turn]}
        rows.append({name: seconds[name] for name in names})
    median = {name: statistics.median(row[name] for row in rows) for name in names}
    best = min((name for name in names if name not in ("default", "ours")), key=median.__getitem__)
    return {
        "seconds_a_step": median,
        "times_faster": statistics.median(row["default"] / row["ours"] for row in rows),
        "best_by_hand": best,
        "slower_than_the_best": statistics.median(row["ours"] / row[best] for row in rows),
        "rounds": rows,
    }


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2-tiny", help="a model of train_gpt2.py")
    parser.add_argument("--batch", type=int, default=4, help="samples of a step")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sample")
    parser.add_argument("--steps", type=int, default=5, help="steps of a side in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument("--busy", type=int, default=2, help="busy processes")
    parser.add_argument("--by-hand", nargs="+", default=list(BY_HAND), metavar="NAME=VALUE", help="what else to try")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    if min(args.batch, args.steps, args.rounds, args.threads, args.busy) < 1 or args.length < 2:
        parser.error("--batch, --steps, --rounds, --threads and --busy must be at least 1, --length at least 2")
    try:
        args.settings = {"default": {}, "ours": BOUNDED, **{text: variables_of(text) for text in args.by_hand}}
    except ValueError as error:
        parser.error(f"--by-hand: {error}")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    os.environ.setdefault("POPTORCH_LOG_LEVEL", "ERR")
    results: dict[str, Any] = {}
    sides: dict[str, SideProcess] = {}
    try:
        for name, setting in args.settings.items():
            sides[name] = start(name, setting, args)
        for side in sides.values():
            side.ask("steps")  # the first steps allocate
        results["idle"] = measure(sides, args.rounds)
        with busy(args.busy):
            results["busy"] = measure(sides, args.rounds)
    except RuntimeError as error:
        print(f"busy_machine: {error}", file=sys.stderr)
        return 1
    finally:
        for side in sides.values():
            side.close()
    print(f"{'':<26} {'idle':>12} {'busy':>12}   ms a step, {args.busy} busy processes")
    for name in sides:
        idle, loaded = (results[state]["seconds_a_step"][name] * 1e3 for state in ("idle", "busy"))
        print(f"{name:<26} {idle:12.1f} {loaded:12.1f}")
    for state, found in results.items():
        print(
            f"{state}: {found['times_faster']:.2f} times as fast as the default, "
            f"{found['slower_than_the_best']:.2f} times the best by hand ({found['best_by_hand']})"
        )
    if args.json:
        keys = ("model", "batch", "length", "steps", "rounds", "threads", "busy", "settings")
        head = record.head("busy_machine", argv)
        record.write(args.json, head, {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
