"""Two replicas in two processes, beside two independent processes and torch's DistributedDataParallel.

    python -m benchmarks.replicas
    python -m benchmarks.replicas --rounds 1 --accumulation 2             # a smoke run
    python -m benchmarks.replicas --json benchmarks/records/replicas_cpu.json

Each of two processes of one thread has a GPT-2 in float32 and makes weight updates of several micro-batches, by turns

    independent  as a program of its own, on this runtime: what there is to reach
    replicas     as one of two processes of one program, on this runtime: gradients are reduced
    ddp          by a loop in plain torch with DistributedDataParallel and no_sync, AdamW fused
    plain        by that loop alone

Both processes begin a turn together, and it takes as long as the slower one. Reported are medians over the rounds of
its seconds, and of the quotients within a round: the efficiency is independent / replicas. The first round compiles.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import record  # noqa: E402

SIDES = ("independent", "replicas", "ddp", "plain")
PROCESSES = 2


def make_sides(args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """An update by each of the sides; it returns the last loss."""
    import poptorch
    import torch
    import torch.nn.functional as F

    from model.config import GPT2Config
    from model.gpt2 import GPT2LMHeadModel

    rank = int(os.environ["RANK"])
    config = GPT2Config(
        vocab_size=args.vocabulary,
        n_positions=args.length,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.width // 64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )

    class Objective(torch.nn.Module):
        """(B, T) ids -> the loss of the next ones."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.gpt2 = GPT2LMHeadModel(config)

        def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            logits = self.gpt2(ids)
            return poptorch.identity_loss(F.cross_entropy(logits.flatten(0, 1), labels.flatten().long()), "mean")

    generator = torch.Generator().manual_seed(rank)
    shape = (args.accumulation * args.batch, args.length)
    ids = torch.randint(0, args.vocabulary, shape, generator=generator).int()
    labels = torch.randint(0, args.vocabulary, shape, generator=generator).int()

    def ours(processes: int) -> Callable[[], float]:
        options = poptorch.Options()
        if processes > 1:
            options.Distributed.configureProcessId(rank, processes)
        options.Training.gradientAccumulation(args.accumulation)
        model = Objective()
        executor = poptorch.trainingModel(model, options, torch.optim.AdamW(model.parameters(), lr=1e-4))
        return lambda: float(executor(ids, labels))

    def by_hand(wrap: Callable[[torch.nn.Module], torch.nn.Module]) -> Callable[[], float]:
        model = wrap(Objective())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        parts = list(zip(ids.split(args.batch), labels.split(args.batch)))

        def step() -> float:
            optimizer.zero_grad()
            for number, (part, targets) in enumerate(parts):
                alone = number < len(parts) - 1 and hasattr(model, "no_sync")
                with model.no_sync() if alone else contextlib.nullcontext():
                    loss = model(part, targets) / len(parts)
                    loss.backward()
            optimizer.step()
            return loss.item() * len(parts)

        return step

    ddp = torch.nn.parallel.DistributedDataParallel
    return {"independent": ours(1), "replicas": ours(PROCESSES), "ddp": by_hand(ddp), "plain": by_hand(lambda m: m)}


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
    return summary(rows[1:]) if first else None


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, and of the quotients within a round those that are of interest."""
    return {
        "rounds": rows,
        "seconds": {name: statistics.median(row[name] for row in rows) for name in SIDES},
        "efficiency": statistics.median(row["independent"] / row["replicas"] for row in rows),
        "efficiency_of_ddp": statistics.median(row["plain"] / row["ddp"] for row in rows),
        "times_faster": {"ddp": statistics.median(row["ddp"] / row["replicas"] for row in rows)},
    }


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="updates of each side that count")
    parser.add_argument("--accumulation", type=int, default=8, help="micro-batches of an update in each process")
    parser.add_argument("--batch", type=int, default=4, help="samples of a micro-batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="n_embd, a multiple of 64")
    parser.add_argument("--vocabulary", type=int, default=16384)
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    at_least_one(parser, args)
    if args.width % 64:
        parser.error("--width must be a multiple of 64")
    return args


def at_least_one(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program with status 2 for a number below 1."""
    for name, value in vars(args).items():
        if isinstance(value, int) and value < 1:
            parser.error(f"--{name} must be at least 1")


def main(argv: list[str]) -> int:
    args = parse(argv)
    if "RANK" not in os.environ:
        return start("benchmarks.replicas", argv)
    results = work(args)
    if results is None:
        return 0
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in results["seconds"].items())
    print(f"seconds an update: {seconds}")
    print(
        f"efficiency {results['efficiency']:.1%}, DistributedDataParallel's {results['efficiency_of_ddp']:.1%}; "
        f"{results['times_faster']['ddp']:.2f} times as fast as it"
    )
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        record.write(args.json, record.head("replicas", argv), settings, results)
    return 0


def start(module: str, argv: list[str]) -> int:
    """The processes of `module`, with the environment that torchrun would give them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(PROCESSES)}
    common.update(OMP_NUM_THREADS="1", POPTORCH_LOG_LEVEL="ERR", POPTORCH_PORTABLE_DEVICE="cpu")
    words = [sys.executable, "-m", module, *argv]
    started = [
        subprocess.Popen(words, cwd=ROOT, env={**os.environ, **common, "RANK": str(rank)}) for rank in range(PROCESSES)
    ]
    return max(process.wait() for process in started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
