"""The order of samples over a memory-mapped corpus, and reading them: data/ next to the megatron-core package.

    python -m benchmarks.index_and_read                    # 10 million documents, 1 billion tokens
    python -m benchmarks.index_and_read --documents 100000 --rounds 1     # a smoke run
    python -m benchmarks.index_and_read --json benchmarks/records/index_and_read_cpu.json

Each side lives in a process of its own, one thread each, and they take turns; reported are medians over the rounds and
the median of the quotients within a round. Both sides must build the same arrays and hand out the same samples.

`index` is the three arrays of one epoch in memory: megatron-core's C++ helper and numpy's shuffles, against
build_order. `open` is a data set from its files, the first time and with its index cached. `read` hands out batches of
512 samples of 1,024 inputs and labels from the page cache through torch's DataLoader, in the order of a run or as they
follow each other (sequential), from corpora of short, medium and long documents; ours checks every id against the
vocabulary, the package adds a loss mask and position ids. `wait` is the share of its time that a loop with a stand-in
step (it sleeps) waits for the training program's loader: no device is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from corpora.program import ProgramParser  # noqa: E402

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import record  # noqa: E402

SIDES = ("ours", "megatron")
T = 1024
MEAN = 100  # tokens in a document of the index
# documents of this mean length; ours then reads about 200 MB
CORPORA = {"short": 100, "medium": 800, "long": 100_000}
READ_TOKENS = 100_000_000
THEIR_LIMIT = 16_384  # samples: the package is slower by far


def alternate(rounds: int, call: Callable[[str], dict[str, Any]], value: str) -> dict[str, Any]:
    """`call` for both sides in turn: medians of `value` (a rate, or "seconds"), times_faster, and all the answers."""
    rows = []
    for index in range(rounds):
        rows.append({side: call(side) for side in (SIDES if index % 2 == 0 else SIDES[::-1])})
    for row in rows:
        for key in ("checksum", "checksums"):
            assert row["ours"].get(key) == row["megatron"].get(key), "the two sides have the same samples"
    fast, slow = SIDES[::-1] if value == "seconds" else SIDES
    return {
        value: {side: statistics.median(row[side][value] for row in rows) for side in SIDES},
        "times_faster": statistics.median(row[fast][value] / row[slow][value] for row in rows),
        "rounds": rows,
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything, with its progress on stdout."""
    from benchmarks import index_and_read_sides as measured  # brings numpy, which --help need not wait for

    context = multiprocessing.get_context("spawn")
    results: dict[str, Any] = {}
    pools = {side: ProcessPoolExecutor(1, context, measured.start, (side,)) for side in SIDES}
    try:
        sizes = (args.documents, MEAN, T)
        index = alternate(
            args.rounds, lambda side: pools[side].submit(measured.build_index, side, *sizes).result(), "seconds"
        )
        index["peak_gb"] = {side: max(row[side]["peak_gb"] for row in index["rounds"]) for side in SIDES}
        show(results, "index", index, "s", index["peak_gb"])
        tokens = min(READ_TOKENS, args.documents * MEAN)
        for name, mean in CORPORA.items():
            prefix, cache = str(folder / name), str(folder / f"{name}-cache")
            measured.make_corpus(prefix, max(2, tokens // mean), mean)
            if name == "short":
                opening(results, args, pools, folder, prefix)
            for order in ("run", "sequential"):

                def read(side: str, prefix: str = prefix, cache: str = cache, order: str = order) -> dict[str, Any]:
                    counted = limit(side, tokens)
                    return pools[side].submit(measured.read_all, side, prefix, T, cache, order, 0, counted).result()

                show(results, f"read {name} {order}", alternate(args.rounds, read, "samples_per_second"), "/s")
        workers(results, args, pools["ours"], prefix, tokens)
    finally:
        for pool in pools.values():
            pool.shutdown()
    return results


def opening(
    results: dict[str, Any], args: argparse.Namespace, pools: dict[str, Any], folder: Path, prefix: str
) -> None:
    """Opening the corpus for the first time, and again."""
    from benchmarks import index_and_read_sides as measured

    def call(side: str, fresh: bool) -> dict[str, Any]:
        cache = folder / "opening"
        if fresh:
            shutil.rmtree(str(cache), ignore_errors=True)
            for index in folder.glob("*.cache-v*"):
                shutil.rmtree(str(index))
        return pools[side].submit(measured.time_opening, side, prefix, T, str(cache)).result()

    show(results, "open first", alternate(args.rounds, lambda side: call(side, True), "seconds"), "s")
    for side in SIDES:
        call(side, False)
    show(results, "open again", alternate(args.rounds, lambda side: call(side, False), "seconds"), "s")


def workers(results: dict[str, Any], args: argparse.Namespace, pool: Any, prefix: str, tokens: int) -> None:
    """Ours with loader processes, and the wait of a training loop."""
    from benchmarks import index_and_read_sides as measured

    for count in (1, 2):
        rates = [
            pool.submit(measured.read_all, "ours", prefix, T, "", "sequential", count, limit("ours", tokens)).result()
            for _ in range(args.rounds)
        ]
        rate = statistics.median(rate["samples_per_second"] for rate in rates)
        results[f"read long sequential, {count} workers"] = rate
        print(f"read long sequential, {count} loader processes: {rate:12,.0f} samples/s", flush=True)
    calls = (64, args.step_rate, 2, 200)  # 64 samples a call
    share = statistics.median(
        pool.submit(measured.wait_for_data, prefix, T, *calls).result() for _ in range(args.rounds)
    )
    results["wait"] = {"share": share, "stand_in_samples_per_second": args.step_rate}
    print(f"waiting for data, next to a stand-in step of {args.step_rate:,.0f} samples/s: {share:.2%}", flush=True)


def limit(side: str, tokens: int) -> int:
    """Samples to read."""
    return tokens // T if side == "ours" else min(THEIR_LIMIT, tokens // T)


def show(
    results: dict[str, Any], name: str, result: dict[str, Any], unit: str, peak: dict[str, float] | None = None
) -> None:
    """Keep a result and print its line."""
    results[name] = result
    value = result["seconds" if unit == "s" else "samples_per_second"]
    digits = 3 if unit == "s" else 0
    memory = f"   {peak['ours']:.2f} and {peak['megatron']:.2f} GB" if peak else ""
    print(
        f"{name:<24} {value['ours']:12,.{digits}f} {value['megatron']:12,.{digits}f} {unit:<2} "
        f"ours {result['times_faster']:7.2f} times as fast{memory}",
        flush=True,
    )


def main(argv: list[str]) -> int:
    parser = ProgramParser("benchmarks/index_and_read.py", __doc__)
    parser.add_argument("--documents", type=int, default=10_000_000, help="documents of 100 tokens (default: 10000000)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side (default: 3)")
    parser.add_argument("--step-rate", type=float, default=500.0, help="samples/s of the stand-in step (default: 500)")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    if args.documents < 10_000 or args.rounds < 1 or args.step_rate <= 0:
        parser.error("--documents must be at least 10000, --rounds at least 1, --step-rate above 0")
    missing = [name for name in ("poptorch", "megatron") if importlib.util.find_spec(name) is None]
    if missing:
        remedy = "`make setup-dev` and `pip install -r requirements-benchmarks.txt -c constraints.txt`"
        print(f"index_and_read: {' and '.join(missing)} not installed. Run {remedy} first.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, Path(folder))
    if args.json:
        head = record.head("index_and_read", argv, ["megatron-core"])
        record.write(args.json, head, {"documents": args.documents, "rounds": args.rounds}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
