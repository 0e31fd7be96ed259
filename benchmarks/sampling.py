"""What choosing a token costs on the host, by settings: with the operator TopScores, and with torch alone.

    python -m benchmarks.sampling                            # GPT-2's vocabulary, a row a call, 2 threads
    python -m benchmarks.sampling --rows 2 --rounds 2        # a smoke run
    python -m benchmarks.sampling --json benchmarks/records/sampling_cpu.json

The sides take turns, and each call has other logits. A server chooses in this way for each text of its batch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record  # noqa: E402
from benchmarks.dropout import measure, table, timed  # noqa: E402
from benchmarks.flags import below_one  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

# Fields of generation.sampling.Sampling, which brings torch along: --help does not need it.
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"top_k": 1},
    "top-k 50": {"top_k": 50},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.9, temperature 0.7": {"top_p": 0.9, "temperature": 0.7},
}


def sides_of(args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """`choose` of one of the rows after the other, by each side."""
    import itertools

    import torch

    from custom_ops.top_scores import host_top_scores, top_scores
    from generation.sampling import Sampling, choose

    sampling = Sampling(**settings)
    logits, numbers = torch.randn(args.rows, args.vocabulary) * 3, torch.rand(args.rows, 1)

    def side(best: Callable) -> Callable[[], Any]:
        rows = itertools.cycle(range(args.rows))

        def once() -> Any:
            row = next(rows)
            return choose(logits[row : row + 1], None, numbers[row], sampling, best)

        return once

    return {"operator": side(host_top_scores), "torch": side(top_scores)}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/sampling.py", __doc__)
    parser.add_argument("--vocabulary", type=int, default=50257, help="scores of a row")
    parser.add_argument("--rows", type=int, default=16, help="rows that the calls go through")
    parser.add_argument("--rounds", type=int, default=100, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    names = ("vocabulary", "rows", "rounds", "threads")
    problems = below_one(args, names)
    if problems:
        parser.error("; ".join(problems))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    import torch

    import custom_ops
    from custom_ops import decode_blocks

    if custom_ops.load() != "native" or not decode_blocks.available():
        print("sampling: the native operators are not built. Run `make` first.", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        works = sides_of(args, settings)
        for work in works.values():
            work()
        results[name] = measure({side: (lambda work=work: timed(work)) for side, work in works.items()}, args.rounds)
        print(table(name, results[name]), flush=True)
    if args.json:
        keys = ("vocabulary", "rows", "rounds", "threads")
        record.write(args.json, record.head("sampling", argv), {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
