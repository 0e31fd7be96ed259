"""What dropout costs on a CPU: in causal attention, and in a training step of GPT-2.

    python -m benchmarks.dropout                             # attention and steps of GPT-2 small, 1 x 1,024, 2 threads
    python -m benchmarks.dropout --model tiny --length 256 --rounds 2       # a smoke run
    python -m benchmarks.dropout --json benchmarks/records/dropout_cpu.json

Attention, forward and backward: the kernel with dropout, the same without, torch's fused kernel without, which has no
dropout on a CPU, and with dropout the operations in plain torch that serve without the kernel. On tensors of bfloat16
the kernel and torch's again, and on a CPU with AVX512_BF16 the kernel with products of float32, as others have it.
Training: a step with dropout, one without, and one with dropout in plain torch (POPTORCH_PORTABLE_KERNELS=none). The
sides take turns. Beside the seconds stand those that the processors worked: on a machine that is busy with something
else they tell more.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record, train_step_sides  # noqa: E402
from benchmarks.flags import below_one  # noqa: E402
from benchmarks.side_process import SideProcess  # noqa: E402
from benchmarks.train_step import MODELS  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

KERNELS = "POPTORCH_PORTABLE_KERNELS"
DROPOUT = 0.1
HEAD_SIZE = 64


def attention_sides(args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Each side's forward and backward pass over (B, H, T, 64)."""
    import torch
    import torch.nn.functional as F
    from poptorch.device import dropout_attention as module
    from poptorch.device import native

    heads = MODELS[args.model][2]
    shape = (args.batch, args.length, heads, HEAD_SIZE)
    scale = HEAD_SIZE**-0.5
    fastest = native.choose(None)

    def both(forward: Callable[..., Any], dtype: torch.dtype = torch.float32) -> Callable[[], None]:
        parts = torch.randn(args.batch, args.length, 3 * heads * HEAD_SIZE, dtype=dtype).split(heads * HEAD_SIZE, 2)
        operands = [part.view(shape).transpose(1, 2).requires_grad_() for part in parts]
        above = torch.randn(shape, dtype=dtype).transpose(1, 2)
        return lambda: torch.autograd.grad(forward(*operands), operands, above)

    def kernel(dropout: float) -> Callable[..., Any]:
        return lambda *o: module.dropout_attention(*o, dropout, scale)

    def with_float32_products(work: Callable[[], None]) -> Callable[[], None]:
        def chosen() -> None:
            native.choose("avx512")
            work()
            native.choose(None)

        return chosen

    fused = functools.partial(F.scaled_dot_product_attention, is_causal=True)
    sides = {
        "kernel with dropout": both(kernel(DROPOUT)),
        "kernel without": both(kernel(0.0)),
        "torch without": both(fused),
        "plain torch with dropout": both(lambda *o: module._DropoutAttention.apply(*o, DROPOUT, scale)),
        "bfloat16: kernel with dropout": both(kernel(DROPOUT), torch.bfloat16),
        "bfloat16: kernel without": both(kernel(0.0), torch.bfloat16),
        "bfloat16: torch without": both(fused, torch.bfloat16),
    }
    if fastest == "avx512_bf16":
        slower = both(kernel(0.0), torch.bfloat16)
        sides["bfloat16: float32's products"] = with_float32_products(slower)
    return sides


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds, and those of all processors together in this process."""
    start, worked = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - worked}


def training_sides(args: argparse.Namespace) -> dict[str, SideProcess]:
    """A process for each side, with its first step, which compiles, made."""
    layers, width, heads, vocabulary = MODELS[args.model]
    settings = dict(
        side="ours", layers=layers, width=width, heads=heads, vocabulary=vocabulary, batch=args.batch,
        length=args.length, device="cpu", half=False, threads=args.threads,
    )  # fmt: skip
    sides = {}
    wanted = [("with dropout", DROPOUT, {}), ("without", 0.0, {})]
    if not args.kernels_only:
        wanted.append(("with dropout in plain torch", DROPOUT, {KERNELS: "none"}))
    for name, dropout, variables in wanted:
        sides[name] = SideProcess(train_step_sides.__file__, name, {**settings, "dropout": dropout}, "cpu", variables)
    for side in sides.values():
        side.ask("step")
    return sides


def measure(sides: dict[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, Any]:
    """Medians of each side over `rounds` in which they take turns, and of the quotients by the first one."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for index in range(rounds):
        for name in list(sides) if index % 2 == 0 else list(sides)[::-1]:
            seen[name].append(sides[name]())
    first = seen[next(iter(sides))]
    results: dict[str, Any] = {"sides": {}, "times_faster": {}}
    for name, rows in seen.items():
        results["sides"][name] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        if rows is not first:
            quotients = [
                other["processor_seconds"] / row["processor_seconds"] for row, other in zip(first, rows, strict=True)
            ]
            results["times_faster"][name] = statistics.median(quotients)
    return results


def table(title: str, results: dict[str, Any]) -> str:
    lines = [f"{title:<32} {'ms':>10} {'ms worked':>10} {'over the first':>15}"]
    for name, row in results["sides"].items():
        quotient = results["times_faster"].get(name)
        lines.append(
            f"  {name:<30} {1e3 * row['seconds']:10,.1f} {1e3 * row['processor_seconds']:10,.1f} "
            f"{'' if quotient is None else format(quotient, '15.3f')}"
        )
    return "\n".join(lines)


def what_is_lacking() -> str:
    """What must be done before the kernels can be measured; empty if nothing."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("poptorch") is None:
        return "torch or poptorch is not installed. Run `make setup` first."
    from poptorch.device import native

    return "" if native.available() else "the kernels are not built. Run `make` first."


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/dropout.py", __doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="gpt2", help="size of the model")
    parser.add_argument("--batch", type=int, default=1, help="samples of a micro-batch")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sample, at most 1024")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--kernels-only", action="store_true", help="no training steps in plain torch: saves 4 GB")
    parser.add_argument("--attention-only", action="store_true", help="no training steps")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    names = ("batch", "length", "rounds", "threads")
    problems = below_one(args, names)
    if args.length > 1024:
        problems.append("--length must be at most 1024, the positions of GPT-2")
    if problems:
        parser.error("; ".join(problems))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    if lacking := what_is_lacking():
        print(f"dropout: {lacking}", file=sys.stderr)
        return 2
    import torch
    from poptorch.device import native

    torch.set_num_threads(args.threads)
    works = attention_sides(args)
    for work in works.values():
        work()
    sides = {name: (lambda work=work: timed(work)) for name, work in works.items()}
    results = {"kernels": native.choose(None), "attention": measure(sides, 3 * args.rounds)}
    print(table(f"attention, {results['kernels']}", results["attention"]), flush=True)
    if not args.attention_only:
        processes: dict[str, SideProcess] = {}
        try:
            processes = training_sides(args)
            steps = {name: (lambda side=side: side.ask("step")) for name, side in processes.items()}
            results["training"] = measure(steps, args.rounds)
        except RuntimeError as error:
            print(f"dropout: {error}", file=sys.stderr)
            return 1
        finally:
            for side in processes.values():
                side.close()
        print(table("a training step", results["training"]))
    if args.json:
        keys = ("model", "batch", "length", "rounds", "threads")
        record.write(args.json, record.head("dropout", argv), {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
