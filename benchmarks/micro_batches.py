"""Training speed of many small micro-batches: 1 x 16 beside 16 x 1, the same samples in one weight update.

    python -m benchmarks.micro_batches                          # GPT-2 small, T 128 and T 32, 2 threads
    python -m benchmarks.micro_batches --model tiny --rounds 1  # a smoke run
    python -m benchmarks.micro_batches --half                   # all sides in half, as train_step.py's
    python -m benchmarks.micro_batches --json benchmarks/records/micro_batches.json

A step is the forward and backward passes of all micro-batches and AdamW. Three sides, each in a process of its own,
take turns one step at a time: micro-batches of one sample as many at once as the runtime chooses, the same one at a
time (POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE=1), and one micro-batch of all samples, which is what there is to reach.
Reported are medians over the rounds and the medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record, train_step_sides  # noqa: E402
from benchmarks.side_process import SideProcess  # noqa: E402
from benchmarks.train_step import MODELS  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

VARIABLE = "POPTORCH_PORTABLE_MICRO_BATCHES_AS_ONE"
CHOSEN, ALONE, BATCH = "as chosen", "one at a time", "one batch"


def start(side: str, args: argparse.Namespace, length: int) -> SideProcess:
    """A side, which makes a step whenever it is asked to."""
    layers, width, heads, vocabulary = MODELS[args.model]
    batch, accumulation = (args.samples, 1) if side == BATCH else (1, args.samples)
    settings = dict(
        side="ours", layers=layers, width=width, heads=heads, vocabulary=vocabulary, batch=batch, length=length,
        accumulation=accumulation, device="cpu", half=args.half, threads=args.threads, dropout=args.dropout,
    )  # fmt: skip
    as_one = {ALONE: 1, CHOSEN: args.as_one}.get(side)
    variables = {} if as_one is None else {VARIABLE: str(as_one)}
    return SideProcess(train_step_sides.__file__, side, settings, "cpu", variables)


def measure(args: argparse.Namespace, length: int) -> dict[str, Any]:
    """Alternating rounds of all sides with samples of this length: their medians, ratios and peak memory."""
    workers = {side: start(side, args, length) for side in (CHOSEN, ALONE, BATCH)}
    try:
        for worker in workers.values():
            worker.ask("step")  # the first one compiles and allocates
        rounds: list[dict[str, float]] = []
        for index in range(args.rounds):
            order = list(workers) if index % 2 == 0 else list(workers)[::-1]
            row = {side: args.samples * length / workers[side].ask("step")["seconds"] for side in order}
            rounds.append(row)
            print(f"  round {index + 1}: " + ", ".join(f"{side} {row[side]:,.1f}" for side in workers), flush=True)
        memory = {side: worker.ask("memory") for side, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    return {
        "length": length,
        "rounds": rounds,
        "tokens_per_second": {side: statistics.median(row[side] for row in rounds) for side in workers},
        "share_of_one_batch": {
            side: statistics.median(row[side] / row[BATCH] for row in rounds) for side in (CHOSEN, ALONE)
        },
        "peak_memory_gb": {side: memory[side]["peak_gb"] for side in workers},
        "loss_after": {side: memory[side]["loss"] for side in workers},
    }


def table(results: list[dict[str, Any]]) -> str:
    """The results as aligned text."""
    lines = [f"{'T':>5} {'side':<14} {'tokens/s':>9} {'of one batch':>12} {'peak GB':>8}"]
    for result in results:
        for side, speed in result["tokens_per_second"].items():
            share = f"{result['share_of_one_batch'][side]:12.2f}" if side != BATCH else " " * 12
            memory = result["peak_memory_gb"][side]
            lines.append(f"{result['length']:5} {side:<14} {speed:9,.1f} {share} {memory:8.2f}")
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/micro_batches.py", __doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="gpt2", help="size of the model")
    parser.add_argument("--samples", type=int, default=16, help="samples of a weight update")
    parser.add_argument("--length", type=int, nargs="+", default=[128, 32], help="tokens of a sample, up to 1024")
    parser.add_argument("--rounds", type=int, default=5, help="steps that are measured on each side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--half", action="store_true", help="half weights and optimizer, a static loss scaling")
    parser.add_argument("--as-one", type=int, metavar="N", help="micro-batches that run as one; otherwise as chosen")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    counts = {"samples": args.samples, "rounds": args.rounds, "threads": args.threads, "as-one": args.as_one or 1}
    problems = [f"--{name} must be at least 1" for name, value in counts.items() if value < 1]
    if any(not 1 <= length <= 1024 for length in args.length):
        problems.append("--length must be 1 to 1024, the positions of GPT-2")
    if not 0 <= args.dropout < 1:
        problems.append("--dropout must be in [0, 1)")
    if problems:
        parser.error("; ".join(problems))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    results, half = [], ", half" if args.half else ""
    try:
        for length in args.length:
            print(f"{args.model}, {args.samples} samples of {length} tokens, dropout {args.dropout}{half}", flush=True)
            results.append(measure(args, length))
    except RuntimeError as error:
        print(f"micro_batches: {error}", file=sys.stderr)
        return 1
    print(table(results))
    if args.json:
        keys = ("model", "samples", "rounds", "threads", "dropout", "half", "as_one")
        head = record.head("micro_batches", argv)
        record.write(args.json, head, {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
