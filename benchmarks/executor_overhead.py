"""What the contract costs: the executor's call next to the same loop written by hand, and `import poptorch`.

    python -m benchmarks.executor_overhead                 # the GPT-2 of `make demo`, 4 micro-batches of 2 x 128 tokens
    python -m benchmarks.executor_overhead --rounds 3 --imports 1       # a smoke run
    python -m benchmarks.executor_overhead --other ../earlier           # and compiling GPT-2 small, beside a checkout's
    python -m benchmarks.executor_overhead --json benchmarks/records/executor_overhead_cpu.json

Both sides are the application's model and loss in one process, with the same weights and data: on one side
`poptorch.trainingModel` makes a call of gradientAccumulation micro-batches, on the other forward, backward,
accumulation and torch.optim.AdamW's fused step are written out. They take turns; reported are the medians and the
median of the ratios of neighbours. The runtime's fused loss would hide what the contract costs: it is measured
without it, and as programs run. With --other compiling is measured too (first_call.py). Imports are timed in fresh
processes, `import torch` and `import torch, poptorch` in turn.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import first_call, record  # noqa: E402
from benchmarks.train_step import MODELS  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402


def executor_step(model: Any, ids: Any, labels: Any, accumulation: int) -> Callable[[], float]:
    """A call of a training executor: one update."""
    import poptorch

    options = poptorch.Options()
    options.Training.gradientAccumulation(accumulation)
    executor = poptorch.trainingModel(model, options, poptorch.optim.AdamW(model.parameters(), lr=1e-4))
    return lambda: float(executor(ids, labels)[0])


def hand_step(model: Any, ids: Any, labels: Any, accumulation: int) -> Callable[[], float]:
    """The loop that the call replaces."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        for part, wanted in zip(ids.chunk(accumulation), labels.chunk(accumulation)):
            loss = model(part, wanted)[0]
            (loss / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def timed(step: Callable[[], float]) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure_steps(args: argparse.Namespace, fused: bool) -> dict[str, Any]:
    """Alternating rounds of both sides; seconds, and by hand / ours."""
    import torch

    from model.config import GPT2Config
    from model.gpt2 import GPT2LMHeadModel
    from model.pretraining import PretrainingModel

    torch.manual_seed(0)
    config = GPT2Config.from_json(ROOT / "config" / "config_tiny.json")
    config = dataclasses.replace(config, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = PretrainingModel(GPT2LMHeadModel(config)).train()
    shape = (args.batch * args.accumulation, args.length)
    ids, labels = torch.randint(0, 50257, shape), torch.randint(0, 50257, shape)
    by_hand = hand_step(copy.deepcopy(model), ids, labels, args.accumulation)
    ours = executor_step(model, ids, labels, args.accumulation)
    if fused:
        first = ours()
    else:
        with mock.patch("poptorch.engine.passes.fuse_losses"), mock.patch("poptorch.engine.passes.fuse_attention"):
            first = ours()  # compiles
    losses = [first, by_hand()]
    rows = []
    for index in range(args.rounds):
        sides = {"ours": ours, "by_hand": by_hand}
        order = list(sides) if index % 2 == 0 else list(sides)[::-1]
        rows.append({side: timed(sides[side]) for side in order})
    return {
        "rounds": rows,
        "seconds": {side: statistics.median(row[side] for row in rows) for side in ("ours", "by_hand")},
        "times_faster": statistics.median(row["by_hand"] / row["ours"] for row in rows),
        "first_losses": losses,
    }


def measure_imports(rounds: int) -> dict[str, Any]:
    """Seconds of both imports in fresh processes, in turn."""
    program = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
    rows = []
    for _ in range(rounds):
        rows.append(
            {
                names: float(subprocess.run([sys.executable, "-c", program.format(names)], **_CAPTURED).stdout)
                for names in ("torch", "torch, poptorch")
            }
        )
    return {
        "rounds": rows,
        "seconds": {names: statistics.median(row[names] for row in rows) for names in rows[0]},
        "added_seconds": statistics.median(row["torch, poptorch"] - row["torch"] for row in rows),
    }


def measure_compiling(args: argparse.Namespace) -> dict[str, Any]:
    """Compiling GPT-2 at each of the lengths, beside the other checkout."""
    results = {}
    layers, width, heads, vocabulary = MODELS[args.model]
    for length in args.compile_lengths:
        settings = dict(
            layers=layers, width=width, heads=heads, vocabulary=vocabulary, batch=4, length=length,
            half=False, threads=args.threads, dropout=args.compile_dropout, calls=3,
        )  # fmt: skip
        found = first_call.measure(args.other, args.python, args.compile_rounds, settings)
        results[f"{args.model}, 4 x {length}"] = found
        print("\n".join(first_call.describe(found, length)), flush=True)
    return results


_CAPTURED: dict[str, Any] = dict(capture_output=True, text=True, check=True, cwd=ROOT)


def _check_other(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    args.other = args.other.absolute()
    args.python = (args.python or args.other / ".venv" / "bin" / "python").absolute()
    if args.compile_rounds < 1 or min(args.compile_lengths) < 1:
        parser.error("--compile-rounds and --compile-lengths must be at least 1")
    if not (args.other / "benchmarks" / "train_step_sides.py").is_file():
        parser.error(f"--other {args.other}: no benchmarks/train_step_sides.py there; name a checkout of this tree")
    if not args.python.is_file():
        parser.error(f"{args.python}: no interpreter there; run `make setup` in {args.other}, or name it with --python")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the record if one is asked for."""
    parser = ProgramParser("benchmarks/executor_overhead.py", __doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="steps of each side")
    parser.add_argument("--imports", type=int, default=5, help="imports of each kind")
    parser.add_argument("--batch", type=int, default=2, help="samples in a micro-batch")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches in a step")
    parser.add_argument("--length", type=int, default=128, help="tokens in a sample")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--other", type=Path, metavar="DIR", help="a checkout whose compiling is compared with ours")
    parser.add_argument("--python", type=Path, metavar="FILE", help="its interpreter (default: DIR/.venv/bin/python)")
    parser.add_argument("--model", choices=MODELS, default="gpt2", help="what is compiled")
    parser.add_argument("--compile-lengths", type=int, nargs="+", default=[256, 1024], metavar="N", help="tokens")
    parser.add_argument("--compile-rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--compile-dropout", type=float, default=0.1, help="of all three kinds")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    if args.other is not None:
        _check_other(parser, args)
    import torch

    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    for name, fused in (("contract alone", False), ("as programs run", True)):
        results[name] = found = measure_steps(args, fused)
        ours, by_hand = found["seconds"]["ours"], found["seconds"]["by_hand"]
        sides = f"{ours * 1e3:7.1f} ms a call, by hand {by_hand * 1e3:7.1f} ms"
        print(f"{name:16} {sides}, {found['times_faster']:.3f} times as fast")
    if args.other is not None:
        try:
            results["compiling"] = measure_compiling(args)
        except RuntimeError as error:
            print(f"executor_overhead: {error}", file=sys.stderr)
            return 1
    if args.imports:
        results["imports"] = found = measure_imports(args.imports)
        print(
            f"import poptorch  {found['added_seconds']:.2f} s more than the {found['seconds']['torch']:.2f} s of torch"
        )
    if args.json is not None:
        keys = ("batch", "accumulation", "length", "rounds", "threads")
        settings = {key: getattr(args, key) for key in keys}
        if args.other is not None:
            commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=args.other, capture_output=True, text=True)
            settings.update(other=args.other.name, other_commit=commit.stdout.strip() or None)
            settings.update({key: getattr(args, key) for key in ("compile_rounds", "compile_dropout")})
        head = record.head("executor_overhead", sys.argv[1:] if argv is None else argv)
        record.write(args.json, head, settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
