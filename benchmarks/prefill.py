"""Speed of reading a prompt, in float32 and in half, beside the fastest matrix product of that type.

    python -m benchmarks.prefill                       # GPT-2 small, prompt 512, 2 threads
    python -m benchmarks.prefill --model tiny --rounds 1      # a smoke run
    python -m benchmarks.prefill --json benchmarks/records/prefill_cpu.json

A prompt is one call of text_generate_gpt2.py's program: all blocks for all tokens, the head for the last one, and the
choice of the next token. With --poptorch-loop the call is the whole program's, for a text of one token. Weights are
random. Each side lives in a process of its own, and they take turns, with a square matrix product just before each
prompt as the measure of what the machine can do at that moment: of float32, and for half of bfloat16 where that is the
faster one. Reported are medians over the rounds of milliseconds and GFLOP/s, and of the shares within a round.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import generate_sides, record  # noqa: E402
from benchmarks.flags import below_one  # noqa: E402
from benchmarks.generate import MODELS, write_checkpoint  # noqa: E402
from benchmarks.side_process import SideProcess  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

WAYS = {"float32": ("float32", "steps"), "half": ("float16", "steps")}
LOOPS = {"float32, loop": ("float32", "loop"), "half, loop": ("float16", "loop")}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Alternating rounds of all sides: medians of what a prompt takes, and its share of a matrix product's speed."""
    workers = {}
    try:
        for name, (precision, way) in {**WAYS, **(LOOPS if args.poptorch_loop else {})}.items():
            settings = dict(side="ours", folder=str(folder), precision=precision, way=way, batch=1, tokens=1)
            settings.update(prompt=args.tokens, threads=args.threads)
            workers[name] = SideProcess(generate_sides.__file__, name, settings, "cpu")
        for worker in workers.values():
            worker.ask("prefill")  # warms up
        rounds: list[dict[str, dict[str, Any]]] = []
        for index in range(args.rounds):
            row = {}
            for name in workers if index % 2 == 0 else reversed(workers):
                product, prompt = workers[name].ask("product"), workers[name].ask("prefill")
                row[name] = {**product, "milliseconds": 1e3 * prompt["seconds"]}
            rounds.append(row)
            shown = ", ".join(f"{name} {row[name]['milliseconds']:.1f} ms" for name in workers)
            print(f"  round {index + 1}: {shown}", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return {"rounds": rounds, "sides": {name: summary(args, [row[name] for row in rounds]) for name in workers}}


def summary(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of a side."""
    operations = flops(*MODELS[args.model], args.tokens)
    speeds = [operations / row["milliseconds"] / 1e6 for row in rows]
    return {
        "milliseconds": statistics.median(row["milliseconds"] for row in rows),
        "gflops": statistics.median(speeds),
        "matrix_product_gflops": statistics.median(row["gflops"] for row in rows),
        "matrix_product_type": rows[-1]["type"],
        "share_of_matrix_product": statistics.median(
            speed / row["gflops"] for speed, row in zip(speeds, rows, strict=True)
        ),
    }


def flops(layers: int, width: int, heads: int, vocabulary: int, tokens: int) -> float:
    """Multiplications and additions of a prompt's matrix products.

    2 for each weight of a matrix and token, attention's two products over the positions that are seen, and the head.
    """
    return 2.0 * 12 * layers * width**2 * tokens + 2.0 * layers * width * tokens**2 + 2.0 * width * vocabulary


def table(results: dict[str, Any]) -> str:
    """The results as aligned text."""
    lines = [f"{'side':<14} {'ms':>8} {'GFLOP/s':>8} {'of a product':>13} {'of GFLOP/s':>10}"]
    for name, row in results["sides"].items():
        lines.append(
            f"{name:<14} {row['milliseconds']:8.1f} {row['gflops']:8.1f} {row['share_of_matrix_product']:13.0%} "
            f"{row['matrix_product_gflops']:10.1f} {row['matrix_product_type']}"
        )
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/prefill.py", __doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="gpt2", help="size of the model")
    parser.add_argument("--tokens", type=int, default=512, help="of the prompt, at most 1023")
    parser.add_argument("--rounds", type=int, default=5, help="prompts of each side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument("--poptorch-loop", action="store_true", help="the same with --poptorch-loop, too")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    problems = below_one(args, ("tokens", "rounds", "threads"))
    if args.tokens > 1023:
        problems.append("--tokens must be at most 1023: one of GPT-2's 1024 positions is the next token's")
    if problems:
        parser.error("; ".join(problems))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    if importlib.util.find_spec("torch") is None:
        print("prefill: torch is not installed. Run `make setup` first.", file=sys.stderr)
        return 2
    print(f"{args.model}, a prompt of {args.tokens} tokens", flush=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), args.model)
            results = measure(args, Path(folder))
    except RuntimeError as error:
        print(f"prefill: {error}", file=sys.stderr)
        return 1
    print(table(results))
    if args.json:
        keys = ("model", "tokens", "rounds", "threads", "poptorch_loop")
        record.write(args.json, record.head("prefill", argv), {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
