"""A pipeline over two processes, beside two independent processes that run all stages in turn.

    python -m benchmarks.pipeline
    python -m benchmarks.pipeline --rounds 1 --accumulation 2             # a smoke run
    python -m benchmarks.pipeline --json benchmarks/records/pipeline_cpu.json

Each of two processes of one thread makes weight updates of blocks of GPT-2 in float32, half of them on each of two
IPUs, by turns

    independent  as a program of its own: two updates at the same time
    pipeline     together, one IPU each: one update, whose micro-batches overlap

Both begin a turn together, and it takes as long as the slower one. With m micro-batches and p processes a pipeline
cannot be faster than m / (m + p - 1) of p independent processes. Reported are medians over the rounds; the first one
compiles.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import record  # noqa: E402
from benchmarks.replicas import PROCESSES, at_least_one, start  # noqa: E402

SIDES = ("independent", "pipeline")


def make_sides(args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """An update by each of the sides; it returns the last loss."""
    import popdist.poptorch
    import poptorch
    import torch

    from model.config import GPT2Config
    from model.gpt2 import Block

    config = GPT2Config(
        n_positions=args.length,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.width // 64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )

    class Objective(torch.nn.Module):
        """(B, T, n_embd) twice -> their mean squared distance after the blocks."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.blocks = torch.nn.ModuleList(Block(config, layer) for layer in range(args.layers))
            for parameter in self.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
            for layer, block in enumerate(self.blocks):
                if layer % (args.layers // PROCESSES) == 0:
                    poptorch.BeginBlock(block, ipu_id=layer // (args.layers // PROCESSES))

        def forward(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                hidden = block(hidden)
            return poptorch.identity_loss((hidden - target).square().mean(), "none")

    generator = torch.Generator().manual_seed(0)
    shape = (args.accumulation * args.batch, args.length, args.width)
    hidden, target = torch.randn(2, *shape, generator=generator)

    def side(options: poptorch.Options) -> Callable[[], float]:
        options.Training.gradientAccumulation(args.accumulation)
        model = Objective()
        executor = poptorch.trainingModel(model, options, torch.optim.AdamW(model.parameters(), lr=1e-4))
        return lambda: float(executor(hidden, target))

    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "1"
    return {"independent": side(poptorch.Options()), "pipeline": side(popdist.poptorch.Options(PROCESSES))}


def work(args: argparse.Namespace) -> dict[str, Any] | None:
    """One of the processes. The first returns the seconds of each turn, by round and side."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    sides = make_sides(args)
    rows: list[dict[str, float]] = []
    for index in range(args.rounds + 1):
        row = {}
        for name in SIDES if index % 2 == 0 else SIDES[::-1]:
            dist.barrier()
            begun = time.perf_counter()
            sides[name]()
            taken = torch.tensor(time.perf_counter() - begun)
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            row[name] = float(taken)
        rows.append(row)
    first = dist.get_rank() == 0
    dist.destroy_process_group()
    return summary(rows[1:], args.accumulation) if first else None


def summary(rows: list[dict[str, float]], micro_batches: int) -> dict[str, Any]:
    """Medians, of the quotients within a round too."""
    efficiency = statistics.median(row["independent"] / PROCESSES / row["pipeline"] for row in rows)
    ideal = micro_batches / (micro_batches + PROCESSES - 1)
    return {
        "rounds": rows,
        "seconds": {name: statistics.median(row[name] for row in rows) for name in SIDES},
        "efficiency": efficiency,
        "ideal": ideal,
        "of_ideal": efficiency / ideal,
    }


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="updates of each side that count")
    parser.add_argument("--accumulation", type=int, default=16, help="micro-batches of an update")
    parser.add_argument("--batch", type=int, default=4, help="samples of a micro-batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--layers", type=int, default=4, help="of both halves")
    parser.add_argument("--width", type=int, default=256, help="n_embd, a multiple of 64")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    at_least_one(parser, args)
    if args.layers % PROCESSES or args.width % 64:
        parser.error("--layers must be even" if args.layers % PROCESSES else "--width must be a multiple of 64")
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    if "RANK" not in os.environ:
        return start("benchmarks.pipeline", argv)
    results = work(args)
    if results is None:
        return 0
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in results["seconds"].items())
    print(f"seconds an update: {seconds}")
    print(
        f"efficiency {results['efficiency']:.1%} of two independent processes, {results['of_ideal']:.1%} of what "
        f"{args.accumulation} micro-batches allow"
    )
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        record.write(args.json, record.head("pipeline", argv), settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
