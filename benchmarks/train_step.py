"""Training speed and memory: this program on PopTorch's portable runtime next to transformers' GPT2LMHeadModel.

    python -m benchmarks.train_step                    # GPT-2 small, 4 x 256 tokens, float32, 2 threads
    python -m benchmarks.train_step --model tiny --rounds 1     # a smoke run
    python -m benchmarks.train_step --json benchmarks/records/train_step_cpu.json

A step is forward, backward and AdamW on one micro-batch. Machines drift, so only ratios of runs next to each other
count: each side lives in a process of its own, and the processes take turns, one step at a time, with a square matrix
product between them as the measure of what the machine can do at that moment. Reported are medians over the rounds, the
median of the ratios within a round, and the peak memory of each process.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record, train_step_sides  # noqa: E402
from benchmarks.side_process import SideProcess  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

SIDES = ("ours", "transformers")
# n_layer, n_embd, n_head, vocabulary (transformers', ours is padded to a multiple of 16)
MODELS = {"tiny": (2, 64, 2, 4096), "gpt2": (12, 768, 12, 50257)}


def start(side: str, args: argparse.Namespace, dropout: float) -> SideProcess:
    """A side, which makes a step whenever it is asked to."""
    layers, width, heads, vocabulary = MODELS[args.model]
    settings = dict(
        side=side, layers=layers, width=width, heads=heads, vocabulary=vocabulary, batch=args.batch,
        length=args.length, device=args.device, half=args.half, threads=args.threads, dropout=dropout,
    )  # fmt: skip
    return SideProcess(train_step_sides.__file__, side, settings, args.device)


def compile_only(args: argparse.Namespace) -> None:
    """Start each side and make a step, which compiles. Nothing is measured."""
    for side in SIDES:
        worker = start(side, args, args.dropout[0])
        try:
            worker.ask("step")
        finally:
            worker.close()
        print(f"{side}: compiled, one step made", flush=True)


def measure(args: argparse.Namespace, dropout: float) -> dict[str, Any]:
    """Alternating rounds of both sides with this dropout: their medians, ratio and peak memory."""
    workers = {side: start(side, args, dropout) for side in SIDES}
    try:
        tokens = args.batch * args.length
        for worker in workers.values():
            worker.ask("step")  # the first one compiles and allocates
        rounds: list[dict[str, float]] = []
        for index in range(args.rounds):
            order = SIDES if index % 2 == 0 else SIDES[::-1]
            row = {"gflops": workers["ours"].ask("product")["gflops"]}
            for side in order:
                row[side] = tokens / workers[side].ask("step")["seconds"]
            rounds.append(row)
            print(
                f"  round {index + 1}: {row['ours']:8,.1f} and {row['transformers']:8,.1f} tokens/s, "
                f"ratio {row['ours'] / row['transformers']:.3f}, matrix product {row['gflops']:,.0f} GFLOP/s",
                flush=True,
            )
        memory = {side: worker.ask("memory") for side, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    gflops = statistics.median(row["gflops"] for row in rounds)
    ceiling = gflops * 1e9 / flops_per_token(args)
    return {
        "dropout": dropout,
        "rounds": rounds,
        "tokens_per_second": {side: statistics.median(row[side] for row in rounds) for side in SIDES},
        "times_faster": statistics.median(row["ours"] / row["transformers"] for row in rounds),
        "matrix_product_gflops": gflops,
        "share_of_ceiling": {
            side: statistics.median(row[side] * flops_per_token(args) / (row["gflops"] * 1e9) for row in rounds)
            for side in SIDES
        },
        "ceiling_tokens_per_second": ceiling,
        "peak_memory_gb": {side: memory[side]["peak_gb"] for side in SIDES},
        "loss_after": {side: memory[side]["loss"] for side in SIDES},
    }


def flops_per_token(args: argparse.Namespace) -> float:
    """Multiplications and additions of the matrix products of one token, forward and backward.

    2 for each weight of a matrix in the forward pass and twice as many in the backward pass: 6 (12 L C^2 + V C), and
    attention's two products over all T positions: 6 x 2 L T C. Masked positions count, as they do in the programs.
    """
    layers, width, _, vocabulary = MODELS[args.model]
    return 6.0 * (12 * layers * width**2 + vocabulary * width) + 12.0 * layers * args.length * width


def table(results: list[dict[str, Any]]) -> str:
    """The results as aligned text."""
    lines = [f"{'dropout':>7} {'side':<13} {'tokens/s':>9} {'of ceiling':>10} {'peak GB':>8} {'ratio':>6}"]
    for result in results:
        for side in SIDES:
            ratio = f"{result['times_faster']:6.2f}" if side == "ours" else ""
            lines.append(
                f"{result['dropout']:7.1f} {side:<13} {result['tokens_per_second'][side]:9,.1f} "
                f"{result['share_of_ceiling'][side]:10.0%} {result['peak_memory_gb'][side]:8.2f} {ratio:>6}"
            )
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/train_step.py", __doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="gpt2", help="size of the model")
    parser.add_argument("--batch", type=int, default=4, help="samples of a micro-batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample, at most 1024")
    parser.add_argument("--rounds", type=int, default=5, help="steps that are measured on each side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1], help="one measurement for each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--half", action="store_true", help="half weights and a static loss scaling against float16 autocast (CUDA)"
    )
    parser.add_argument("--compile-only", action="store_true", help="make one step on each side and measure nothing")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    args = parser.parse_args(argv)
    problems = [
        f"--{name} must be at least 1" for name in ("batch", "length", "rounds", "threads") if getattr(args, name) < 1
    ]
    if args.length > 1024:
        problems.append("--length must be at most 1024, the positions of GPT-2")
    if any(not 0 <= p < 1 for p in args.dropout):
        problems.append("--dropout must be in [0, 1)")
    if args.half and args.device == "cpu":
        problems.append("--half needs --device cuda: half is computed in float32 on a CPU")
    if problems:
        parser.error("; ".join(problems))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"train_step: {' and '.join(missing)} not installed. Run `make setup-dev` first.", file=sys.stderr)
        return 2
    results = []
    try:
        if args.compile_only:
            compile_only(args)
            return 0
        for dropout in args.dropout:
            print(
                f"{args.model}, {args.batch} x {args.length} tokens, dropout {dropout}: ours and transformers",
                flush=True,
            )
            results.append(measure(args, dropout))
    except RuntimeError as error:
        print(f"train_step: {error}", file=sys.stderr)
        return 1
    print(table(results))
    if args.json:
        keys = ("model", "batch", "length", "rounds", "threads", "device", "half")
        head = record.head("train_step", argv, device=args.device)
        record.write(args.json, head, {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
