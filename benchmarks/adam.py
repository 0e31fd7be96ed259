"""What an update by AdamW costs on a CPU: the kernel beside torch's operations, which serve without it.

    python -m benchmarks.adam                                # all parameters of GPT-2 small, 2 threads
    python -m benchmarks.adam --model tiny --rounds 2        # a smoke run
    python -m benchmarks.adam --json benchmarks/records/adam_cpu.json

An update as a program in half has it: float32 master weights, gradients and first moment in float16, second moment in
float32, loss scaling; and then the copies in bfloat16 of the weights that matrix products read, which the kernel writes
on its way. Those weights are in two parts, of which the copy is one ("split"), or beside their copies ("kernel"). And
an update of a program in float32, where torch has a fused one, too. The sides take turns. Beside the seconds stand
those that the processors worked: on a machine that is busy with something else they tell more.
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
from benchmarks.train_step import MODELS  # noqa: E402
from benchmarks.train_step_sides import LOSS_SCALING, RATE, our_model  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402

PROGRAMS = ("half", "float32")


def updates_of(args: argparse.Namespace, program: str) -> dict[str, Callable[[], Any]]:
    """An update of all parameters by each side, which has weights and states of its own."""
    import poptorch
    import torch
    from poptorch.device import half_products, split_weights
    from poptorch.device.native import adam
    from poptorch.engine.updating.optimizer import DeviceOptimizer

    layers, width, heads, vocabulary = MODELS[args.model]
    half = program == "half"
    settings = dict(layers=layers, width=width, heads=heads, vocabulary=vocabulary, length=1024, dropout=0.0)
    model = our_model(settings)
    gradients = {name: 1e-3 * torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    states = {}
    if half:
        model.half()
        gradients = {name: (gradient * LOSS_SCALING).half() for name, gradient in gradients.items()}
        types = dict.fromkeys(("accum_type", "first_order_momentum_accum_type"), torch.float16)
        states = dict(loss_scaling=LOSS_SCALING, **types)
    host = dict(model.named_parameters())
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, **states)

    def side(kernel: bool, split: bool = False) -> Callable[[], None]:
        weights = {name: parameter.detach().float() for name, parameter in host.items()}
        read = []
        if half:  # the weights of products, but for the head's, which is rounded inside its product
            read = [name for name, weight in weights.items() if weight.dim() == 2 and ".h." in name]
        for name in read if split else ():
            weights[name], whole = split_weights.empty(weights[name].shape), weights[name]
            split_weights.assign(weights[name], whole)
        read = [weights[name] for name in read]
        for weight in read:
            half_products.keep_rounded(weight)
        made = DeviceOptimizer(
            optimizer,
            host,
            weights,
            param_dtypes={name: parameter.dtype for name, parameter in host.items()},
            stochastic_rounding=False,
            generator=None,
        )

        def update() -> None:
            made.step(gradients)
            for weight in read:
                half_products.rounded_weight(weight, torch.bfloat16)

        def without() -> None:
            with mock.patch.object(adam, "serves", return_value=False):
                update()

        return update if kernel else without

    sides = {"split": side(True, split=True)} if half else {}
    return {**sides, "kernel": side(True), "torch": side(False)}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/adam.py", __doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="gpt2", help="size of the model")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    problems = below_one(args, ("rounds", "threads"))
    if problems:
        parser.error("; ".join(problems))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    if lacking := what_is_lacking():
        print(f"adam: {lacking}", file=sys.stderr)
        return 2
    import torch
    from poptorch.device import native
    from poptorch.device.memory import keep_freed_memory

    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the runtime does
    results: dict[str, Any] = {"kernels": native.choose(None)}
    for program in PROGRAMS:
        updates = updates_of(args, program)
        for update in updates.values():  # the first one makes the copies
            update()
        turns = {side: (lambda update=update: timed(update)) for side, update in updates.items()}
        results[program] = measure(turns, args.rounds)
        print(table(f"AdamW, {program}, {results['kernels']}", results[program]), flush=True)
    if args.json:
        keys = ("model", "rounds", "threads")
        record.write(args.json, record.head("adam", argv), {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
