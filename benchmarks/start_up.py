"""From the command line to the first micro-batch: this tree's train_gpt2.py beside another checkout's.

    python -m benchmarks.start_up --other ../earlier       # a checkout with its own .venv (`make setup` in it)
    python -m benchmarks.start_up --other ../earlier --rounds 1           # a smoke run
    python -m benchmarks.start_up --other ../earlier --json benchmarks/records/start_up_cpu.json

A run trains one step of gpt2-tiny on one generated sample: what it takes is imports, the model, tracing and the first
micro-batch. The trees take turns, each in fresh processes; beside them `import torch` alone, below which no start can
come. Reported are medians over the rounds of the seconds until the process has ended and of its processor time, which a
busy machine disturbs less, and of the quotients within a round. The first round fills caches and does not count.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import record  # noqa: E402

FLAGS = (
    "--model gpt2-tiny --train-path generated --max-len 64 --batch-size 1 --gradient-accumulation 1 "
    "--device-iterations 1 --training-steps 1"
).split()


def timed(words: list[str], tree: Path, threads: int) -> dict[str, float]:
    """Seconds and processor seconds of a process in this tree. Raises RuntimeError with its last line if it fails."""
    variables = dict(os.environ, OMP_NUM_THREADS=str(threads), POPTORCH_LOG_LEVEL="ERR")
    variables.update(PYTHONPATH=str(tree / "portable"), POPTORCH_PORTABLE_DEVICE="cpu")
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(words, cwd=tree, env=variables, capture_output=True, text=True)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1]
        raise RuntimeError(f"{' '.join(words)} in {tree} ended with status {done.returncode}: {last}")
    return {
        "seconds": seconds,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Alternating rounds of both trees and of `import torch`."""
    train = ["train_gpt2.py", *FLAGS]
    sides = {
        "ours": ([sys.executable, *train], ROOT),
        "other": ([str(args.python), *train], args.other),
        "import torch": ([sys.executable, "-c", "import torch"], ROOT),
    }
    rows: list[dict[str, dict[str, float]]] = []
    for index in range(args.rounds + 1):
        order = list(sides) if index % 2 == 0 else list(sides)[::-1]
        found = {name: timed(*sides[name], args.threads) for name in order}
        rows.append({name: found[name] for name in sides})
    rows = rows[1:]
    results: dict[str, Any] = {"rounds": rows}
    for what in ("seconds", "processor_seconds"):
        results[what] = {
            **{name: statistics.median(row[name][what] for row in rows) for name in sides},
            "share_of_other": statistics.median(row["ours"][what] / row["other"][what] for row in rows),
            "times_faster": statistics.median(row["other"][what] / row["ours"][what] for row in rows),
        }
    return results


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True, metavar="DIR", help="the checkout to compare with")
    parser.add_argument("--python", type=Path, metavar="FILE", help="its interpreter (default: DIR/.venv/bin/python)")
    parser.add_argument("--rounds", type=int, default=7, help="starts of each that count")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of a run")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    args.other = args.other.absolute()
    args.python = (args.python or args.other / ".venv" / "bin" / "python").absolute()
    if min(args.rounds, args.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    if not (args.other / "train_gpt2.py").is_file():
        parser.error(f"--other {args.other}: no train_gpt2.py there; name a checkout")
    if not args.python.is_file():
        parser.error(f"{args.python}: no interpreter there; run `make setup` in {args.other}, or name it with --python")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    try:
        results = measure(args)
    except RuntimeError as error:
        print(f"start_up: {error}", file=sys.stderr)
        return 1
    for what in ("seconds", "processor_seconds"):
        found = results[what]
        print(
            f"{what.replace('_', ' '):<18} ours {found['ours']:6.2f}, other {found['other']:6.2f}, import torch alone "
            f"{found['import torch']:6.2f}: {found['share_of_other']:.0%} of the other"
        )
    if args.json:
        settings = {"other": args.other.name, "rounds": args.rounds, "threads": args.threads, "flags": FLAGS}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=args.other, capture_output=True, text=True)
        settings["other_commit"] = commit.stdout.strip() or None
        record.write(args.json, record.head("start_up", argv), settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
