"""What GELU with the bias before it costs on a CPU, exact and by tanh, forward and backward: the kernel beside torch.

    python -m benchmarks.gelu                                # as GPT-2 small has it, 4 x 256 tokens, 2 threads
    python -m benchmarks.gelu --batch 1 --length 16 --rounds 2       # a smoke run
    python -m benchmarks.gelu --json benchmarks/records/gelu_cpu.json

Each side is given the product x W^T; torch's is given the bias in it, which costs a product nothing, and adds up the
bias's gradient afterwards. The sides take turns. Beside the seconds stand those that the processors worked: on a
machine that is busy with something else they tell more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record  # noqa: E402
from benchmarks.dropout import measure, table, timed, what_is_lacking  # noqa: E402
from benchmarks.flags import below_one  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

FORMS = {"exact": "none", "by tanh": "tanh"}  # and what torch calls them


def sides_of(args: argparse.Namespace, form: str) -> dict[str, dict[str, Callable[[], Any]]]:
    """Each pass over (B, T, width): the kernel's and torch's."""
    import torch
    import torch.nn.functional as F
    from poptorch.device import native

    product, above = (torch.randn(args.batch, args.length, args.width) for _ in range(2))
    bias = torch.randn(args.width)
    total = product + bias
    approximate, by_tanh = FORMS[form], form == "by tanh"
    return {
        "forward": {
            "kernel": lambda: native.gelu_forward(product, bias, by_tanh),
            "torch": lambda: F.gelu(total, approximate=approximate),
        },
        "backward": {
            "kernel": lambda: native.gelu_backward(above, product, bias, bias_too=True, by_tanh=by_tanh),
            "torch": lambda: torch.ops.aten.gelu_backward(above, total, approximate=approximate).sum((0, 1)),
        },
    }


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/gelu.py", __doc__)
    parser.add_argument("--batch", type=int, default=4, help="samples of a micro-batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--width", type=int, default=3072, help="elements of a token between the two products")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    names = ("batch", "length", "width", "rounds", "threads")
    problems = below_one(args, names)
    if problems:
        parser.error("; ".join(problems))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    if lacking := what_is_lacking():
        print(f"gelu: {lacking}", file=sys.stderr)
        return 2
    import torch
    from poptorch.device import native
    from poptorch.device.memory import keep_freed_memory

    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the runtime does
    results: dict[str, Any] = {"kernels": native.choose(None)}
    for form in FORMS:
        results[form] = {}
        for name, works in sides_of(args, form).items():
            for work in works.values():
                work()
            turns = {side: (lambda work=work: timed(work)) for side, work in works.items()}
            results[form][name] = measure(turns, args.rounds)
            print(table(f"GELU {form} {name}, {results['kernels']}", results[form][name]), flush=True)
    if args.json:
        keys = ("batch", "length", "width", "rounds", "threads")
        record.write(args.json, record.head("gelu", argv), {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
