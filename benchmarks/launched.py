"""train_gpt2.py under torchrun beside the plain program: the speed of one process, and how long several take to start.

    python -m benchmarks.launched
    python -m benchmarks.launched --rounds 1 --steps 3                    # a smoke run
    python -m benchmarks.launched --json benchmarks/records/launched_cpu.json

A run trains gpt2-tiny on generated samples, of which a step takes four replicas' micro-batches, one after the other in

    plain    python train_gpt2.py
    one      torchrun --nproc-per-node 1
    several  torchrun --nproc-per-node 4, a replica each

of one thread a process. The sides take turns. Reported are medians over the rounds of the seconds until the line of the
first step, of the processor seconds until the end, of the seconds a step behind the first, and of the quotients within
a round. The first round fills caches and does not count.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import record  # noqa: E402

SEVERAL = 4
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
SIDES = {"plain": [], "one": [*TORCHRUN, "1"], "several": [*TORCHRUN, str(SEVERAL)]}


def run(launcher: list[str], args: argparse.Namespace) -> dict[str, float]:
    """Seconds until the first step's line, a step behind it, and of the processors. Raises RuntimeError if it fails."""
    words = (
        f"train_gpt2.py --model gpt2-tiny --train-path generated --max-len {args.length} --batch-size 1 "
        f"--gradient-accumulation {args.accumulation} --replication-factor {SEVERAL} --training-steps {args.steps} "
        "--device-iterations 1 --num-workers 0 --epochs 1000 --log-steps 1"
    ).split()
    variables = dict(os.environ, OMP_NUM_THREADS="1", POPTORCH_LOG_LEVEL="ERR", PYTHONUNBUFFERED="1")
    variables.update(PYTHONPATH=str(ROOT / "portable"), POPTORCH_PORTABLE_DEVICE="cpu")
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, *launcher, *words],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        steps = [time.perf_counter() for line in process.stdout if line.startswith("step ")]
        if process.wait() or len(steps) != args.steps:
            errors.seek(0)
            told = f"{' '.join(launcher + words)} ended with status {process.returncode}:"
            raise RuntimeError("\n".join([told, *errors.read().splitlines()[-40:]]))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "start": steps[0] - begun,
        "step": (steps[-1] - steps[0]) / (args.steps - 1),
        "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Alternating rounds of the sides."""
    rows: list[dict[str, dict[str, float]]] = []
    for index in range(args.rounds + 1):
        order = list(SIDES) if index % 2 == 0 else list(SIDES)[::-1]
        found = {name: run(SIDES[name], args) for name in order}
        rows.append({name: found[name] for name in SIDES})
    rows = rows[1:]
    what = {
        kind: {name: statistics.median(row[name][kind] for row in rows) for name in SIDES} for kind in rows[0]["plain"]
    }
    return {
        "rounds": rows,
        "seconds": what,
        "step_of_one_over_plain": statistics.median(row["one"]["step"] / row["plain"]["step"] for row in rows),
        "start_of_several_over_one": statistics.median(row["several"]["start"] / row["one"]["start"] for row in rows),
    }


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="runs of each side that count")
    parser.add_argument("--steps", type=int, default=20, help="steps of a run, at least 2")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of a step in each replica")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sample")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    if args.steps < 2 or min(args.rounds, args.accumulation, args.length) < 1:
        parser.error("--steps must be at least 2, the other numbers at least 1")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    try:
        results = measure(args)
    except RuntimeError as error:
        print(f"launched: {error}", file=sys.stderr)
        return 1
    for kind, seconds in results["seconds"].items():
        print(f"seconds, {kind:<9} " + ", ".join(f"{name} {value:.2f}" for name, value in seconds.items()))
    print(
        f"a step of one process is {results['step_of_one_over_plain']:.3f} times that of the plain program, the start "
        f"of {SEVERAL} {results['start_of_several_over_one']:.2f} times that of one"
    )
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        record.write(args.json, record.head("launched", argv), settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
