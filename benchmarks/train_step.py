"""Training speed and memory: this program on PopTorch's portable runtime next to transformers' GPT2LMHeadModel.

    python -m benchmarks.train_step                    # GPT-2 small, 4 x 256 tokens, float32, 2 threads
    python -m benchmarks.train_step --model tiny --rounds 1     # a smoke run
    python -m benchmarks.train_step --json benchmarks/records/train_step_cpu.json
    python -m benchmarks.train_step --half --compile --other ../c624705     # a CPU with units for bfloat16
    python -m benchmarks.train_step --batch 1 --length 1024 --accumulation 4 --half --other ../c624705 --sides other

With --half a CPU's sides are this program in half, whose products have the type that the runtime chooses, or
POPTORCH_PORTABLE_HALF says, and transformers with autocast to bfloat16; the ceiling is the product of the faster of
bfloat16 and float32. --compile adds transformers behind torch.compile, --other another checkout of this tree;
--sides keeps only what it names beside this program.

A step is forward and backward of --accumulation micro-batches, one by default, and AdamW. Machines drift, so only
ratios of runs next to each other count: each side lives in a process of its own, and the processes take turns, one step
at a time, with a square matrix product between them as the measure of what the machine can do at that moment. Reported
are medians over the rounds, the median of the ratios within a round, and the peak memory of each process.
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
from benchmarks.flags import below_one  # noqa: E402
from benchmarks.side_process import SideProcess  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

# n_layer, n_embd, n_head, vocabulary (transformers', ours is padded to a multiple of 16)
MODELS = {"tiny": (2, 64, 2, 4096), "gpt2": (12, 768, 12, 50257)}


def sides_of(args: argparse.Namespace) -> list[str]:
    """The names of what is compared, ours first."""
    there = {"other": args.other is not None, "transformers": True, "compiled": args.compile}
    return ["ours", *(side for side in there if there[side] and (args.sides is None or side in args.sides))]


def start(side: str, args: argparse.Namespace, dropout: float) -> SideProcess:
    """A side, which makes a step whenever it is asked to."""
    layers, width, heads, vocabulary = MODELS[args.model]
    settings = dict(
        side=side, layers=layers, width=width, heads=heads, vocabulary=vocabulary, batch=args.batch,
        length=args.length, accumulation=args.accumulation, device=args.device, half=args.half, threads=args.threads,
        dropout=dropout,
    )  # fmt: skip
    if side == "other":  # measured by this checkout's program, whatever its own knows of
        settings.update(side="ours", checkout=str(args.other))
    return SideProcess(train_step_sides.__file__, side, settings, args.device)


def compile_only(args: argparse.Namespace) -> None:
    """Start each side and make a step, which compiles. Nothing is measured."""
    for side in sides_of(args):
        worker = start(side, args, args.dropout[0])
        try:
            worker.ask("step")
        finally:
            worker.close()
        print(f"{side}: compiled, one step made", flush=True)


def measure(args: argparse.Namespace, dropout: float) -> dict[str, Any]:
    """Alternating rounds of all sides with this dropout: their medians, ratios and peak memory."""
    sides = sides_of(args)
    workers = {side: start(side, args, dropout) for side in sides}
    try:
        tokens = args.accumulation * args.batch * args.length
        for worker in workers.values():
            worker.ask("step")  # the first one compiles and allocates
        rounds: list[dict[str, float]] = []
        for index in range(args.rounds):
            product = workers["ours"].ask("product")
            row = {"gflops": product["gflops"]}
            for side in sides if index % 2 == 0 else sides[::-1]:
                row[side] = tokens / workers[side].ask("step")["seconds"]
            rounds.append(row)
            print(
                f"  round {index + 1}: "
                + ", ".join(f"{side} {row[side]:,.1f} ({row['ours'] / row[side]:.3f})" for side in sides)
                + f" tokens/s, {product['type']} product {row['gflops']:,.0f} GFLOP/s",
                flush=True,
            )
        memory = {side: worker.ask("memory") for side, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    gflops = statistics.median(row["gflops"] for row in rounds)
    ratios = {side: statistics.median(row["ours"] / row[side] for row in rounds) for side in sides[1:]}
    return {
        "dropout": dropout,
        "rounds": rounds,
        "tokens_per_second": {side: statistics.median(row[side] for row in rounds) for side in sides},
        **({"times_faster": ratios["transformers"]} if "transformers" in ratios else {}),
        "times_faster_than": ratios,
        "matrix_product_gflops": gflops,
        "matrix_product_type": product["type"],
        "share_of_ceiling": {
            side: statistics.median(row[side] * flops_per_token(args) / (row["gflops"] * 1e9) for row in rounds)
            for side in sides
        },
        "ceiling_tokens_per_second": gflops * 1e9 / flops_per_token(args),
        "peak_memory_gb": {side: memory[side]["peak_gb"] for side in sides},
        "loss_after": {side: memory[side]["loss"] for side in sides},
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
        ratios = {**result.get("times_faster_than", {}), "transformers": None, "ours": result.get("times_faster")}
        for side, speed in result["tokens_per_second"].items():
            ratio = "" if ratios[side] is None else f"{ratios[side]:6.2f}"  # ours to transformers, or to the side
            lines.append(
                f"{result['dropout']:7.1f} {side:<13} {speed:9,.1f} "
                f"{result['share_of_ceiling'][side]:10.0%} {result['peak_memory_gb'][side]:8.2f} {ratio:>6}"
            )
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/train_step.py", __doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="gpt2", help="size of the model")
    parser.add_argument("--batch", type=int, default=4, help="samples of a micro-batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample, at most 1024")
    parser.add_argument("--accumulation", type=int, default=1, metavar="N", help="micro-batches of a weight update")
    parser.add_argument("--rounds", type=int, default=5, help="steps that are measured on each side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1], help="one measurement for each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--half",
        action="store_true",
        help="half weights and a static loss scaling against autocast, to float16 on CUDA and to bfloat16 on a CPU",
    )
    parser.add_argument(
        "--compile", action="store_true", help="transformers with torch.compile too, as a side of its own"
    )
    parser.add_argument("--other", type=Path, metavar="DIR", help="another checkout of this tree, as a side of its own")
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=("ours", "other", "transformers", "compiled"),
        metavar="WORD",
        help="only these of other, transformers and compiled beside ours, which always takes part",
    )
    parser.add_argument("--compile-only", action="store_true", help="make one step on each side and measure nothing")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    counts = ("batch", "length", "accumulation", "rounds", "threads")
    problems = below_one(args, counts)
    needed = {"other": ("--other DIR", args.other), "compiled": ("--compile", args.compile)}
    problems += [
        f"--sides {side}: there is none without {flag}"
        for side, (flag, given) in needed.items()
        if side in (args.sides or ()) and not given
    ]
    if args.length > 1024:
        problems.append("--length must be at most 1024, the positions of GPT-2")
    if any(not 0 <= p < 1 for p in args.dropout):
        problems.append("--dropout must be in [0, 1)")
    if args.other is not None:
        args.other = args.other.absolute()
        if not all((args.other / part).is_dir() for part in ("model", "portable/poptorch")):
            problems.append(f"--other {args.other}: no model/ and portable/ there; name a checkout of this tree")
    if problems:
        parser.error("; ".join(problems))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    libraries = ("torch", *(["transformers"] if {"transformers", "compiled"} & set(sides_of(args)) else []))
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        print(f"train_step: {' and '.join(missing)} not installed. Run `make setup-dev` first.", file=sys.stderr)
        return 2
    results = []
    try:
        if args.compile_only:
            compile_only(args)
            return 0
        for dropout in args.dropout:
            batches = f"{args.accumulation} x " if args.accumulation > 1 else ""
            print(
                f"{args.model}, {batches}{args.batch} x {args.length} tokens, dropout {dropout}: "
                f"{', '.join(sides_of(args))}",
                flush=True,
            )
            results.append(measure(args, dropout))
    except RuntimeError as error:
        print(f"train_step: {error}", file=sys.stderr)
        return 1
    print(table(results))
    for result in results:
        print(
            f"ceiling with dropout {result['dropout']}: {result['ceiling_tokens_per_second']:,.1f} tokens/s, by a "
            f"{result['matrix_product_type']} product of {result['matrix_product_gflops']:,.0f} GFLOP/s"
        )
    if args.json:
        keys = ("model", "batch", "length", "accumulation", "rounds", "threads", "device", "half")
        head = record.head("train_step", argv, device=args.device)
        record.write(args.json, head, {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
