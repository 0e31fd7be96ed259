"""What the head's cross-entropy and its gradient cost on a CPU between the products: the kernel beside torch.

    python -m benchmarks.cross_entropy                       # 256 rows of GPT-2's vocabulary, 2 threads
    python -m benchmarks.cross_entropy --rows 16 --rounds 2  # a smoke run
    python -m benchmarks.cross_entropy --json benchmarks/records/cross_entropy_cpu.json

Each side is given logits before the bias and makes of them losses, the largest's places and the gradient, as the
products behind it take it: in float32, or in bfloat16. The sides take turns. Beside the seconds stand those that the
processors worked: on a machine that is busy with something else they tell more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Callable
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record  # noqa: E402
from benchmarks.dropout import measure, table, timed, what_is_lacking  # noqa: E402
from benchmarks.flags import below_one  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402


def sides_of(args: argparse.Namespace, narrow: bool) -> dict[str, Callable[[], Any]]:
    """The kernel and the operations that serve without it. Each overwrites logits of its own, which stay finite."""
    import torch
    from poptorch.device import linear_cross_entropy

    bias = torch.zeros(args.columns)
    target = torch.randint(args.columns, (args.rows,))
    best = torch.empty_like(target)

    def by(kernel: bool) -> Callable[[], Any]:
        logits = torch.randn(args.rows, args.columns)

        def work() -> None:
            with mock.patch.object(linear_cross_entropy, "_kernel_serves", return_value=kernel):
                _, delta, _ = linear_cross_entropy._differentiate(logits, bias, target, best, narrow and kernel)
            if narrow:
                delta.to(torch.bfloat16)  # at no cost where it is that already

        return work

    return {"kernel": by(True), "torch": by(False)}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/cross_entropy.py", __doc__)
    parser.add_argument("--rows", type=int, default=256, help="tokens of a block")
    parser.add_argument("--columns", type=int, default=50272, help="words of the vocabulary")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    names = ("rows", "columns", "rounds", "threads")
    problems = below_one(args, names)
    if problems:
        parser.error("; ".join(problems))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    if lacking := what_is_lacking():
        print(f"cross_entropy: {lacking}", file=sys.stderr)
        return 2
    import torch
    from poptorch.device import native
    from poptorch.device.memory import keep_freed_memory

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as the runtime does
    results: dict[str, Any] = {"kernels": native.choose(None)}
    for name, narrow in (("float32", False), ("bfloat16", True)):
        works = sides_of(args, narrow)
        for work in works.values():
            work()
        turns = {side: (lambda work=work: timed(work)) for side, work in works.items()}
        results[name] = measure(turns, args.rounds)
        print(table(f"gradient in {name}, {results['kernels']}", results[name]), flush=True)
    if args.json:
        keys = ("rows", "columns", "rounds", "threads")
        record.write(args.json, record.head("cross_entropy", argv), {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
