"""Training speed of every system beside GPT-2 (docs/systems.md) next to plain GPT-2 of the same size.

    python -m benchmarks.variants                                   # GPT-2 small, 4 x 256 tokens, float32, 2 threads
    python -m benchmarks.variants --model tiny --rounds 1           # a smoke run
    python -m benchmarks.variants --variants algpt2 "position_embedding=alibi" --rounds 9
    python -m benchmarks.variants --json benchmarks/records/variants_cpu.json

A variant is a name of --model, in the size of the plain model (layers, width, heads, vocabulary, dropout; E and the MLP
keep their shares of the width), or fields of the configuration in place of the plain model's, FIELD=VALUE with a comma
between two. A step is forward, backward and AdamW on one micro-batch. Each side lives in a process of its own and the
two take turns, one step at a time, for machines drift: the figure is the median over the rounds of the variant's
operations a second (tokens a second times the operations of a token, of README's formula) divided by the plain model's
in the same round. Processor time gives the same quotient where other programs want the cores. A system with fewer
operations a token is faster by more than its figure says: the column of tokens has that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import record, train_step_sides  # noqa: E402
from benchmarks.flags import below_one  # noqa: E402
from benchmarks.side_process import SideProcess  # noqa: E402
from benchmarks.train_step import MODELS as SIZES  # noqa: E402
from corpora.program import ProgramParser  # noqa: E402
from model.config import MODELS, GPT2Config, padded_rows  # noqa: E402
from model.derived_config import resized  # noqa: E402

# Every system that computes otherwise than GPT-2, once; then what they are made of, one change at a time.
SYSTEMS = (
    *("tfchat-preln-unshared", "tfchat-preln-relu", "tfchat-preln", "tfchat-postln", "mingpt-tf"),
    *("algpt2-unfactorised", "algpt2-512", "algpt2-256", "algpt2", "gpt-127-star", "gpt-1b-star"),
)
CHANGES = ("position_embedding=alibi", "parallel_residual=true", "share_layers=true", "norm_position=post")
AT_LEAST = 0.97  # of the plain model's operations a second


def plain_model(args: argparse.Namespace) -> GPT2Config:
    """GPT-2 of the size asked for."""
    layers, width, heads, vocabulary = SIZES[args.model]
    config = GPT2Config(
        vocab_size=padded_rows(vocabulary), real_vocab_size=vocabulary, n_positions=args.length, n_layer=layers,
        n_embd=width, n_head=heads, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return with_dropout(config, args.dropout)


def with_dropout(config: GPT2Config, dropout: float) -> GPT2Config:
    """The configuration with the same dropout everywhere."""
    return dataclasses.replace(config, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)


def variant_of(plain: GPT2Config, variant: str) -> GPT2Config:
    """The configuration of a variant in the size of the plain model. Raises ValueError, naming the variant."""
    if variant in MODELS:
        config = resized(GPT2Config.from_json(MODELS[variant]), plain.n_layer, plain.n_embd, plain.n_head)
        same = ("vocab_size", "real_vocab_size", "n_positions", "bos_token_id", "eos_token_id")
        config = dataclasses.replace(config, **{name: getattr(plain, name) for name in same})
        return with_dropout(config, plain.resid_pdrop)
    changes = {}
    for change in variant.split(","):
        name, equals, text = change.partition("=")
        if not equals or name not in vars(plain):
            known = ", ".join(MODELS)
            raise ValueError(f"--variants {variant}: is no name of --model ({known}) and no FIELD=VALUE of a config")
        changes[name] = _value(text)
    try:
        return dataclasses.replace(plain, **changes)
    except ValueError as error:
        raise ValueError(f"--variants {variant}: {error}") from error


def _value(text: str) -> Any:
    """true, false, null and numbers as in JSON, anything else as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def start(name: str, config: GPT2Config, args: argparse.Namespace) -> SideProcess:
    """A side, which makes a step whenever it is asked to; the first compiles and allocates."""
    settings = dict(
        side="ours", config=config.to_dict(), vocabulary=config.real_vocab_size, batch=args.batch, length=args.length,
        device=args.device, half=args.half, threads=args.threads,
    )  # fmt: skip
    side = SideProcess(train_step_sides.__file__, name, settings, args.device)
    try:
        side.ask("step")
    except BaseException:
        side.close()
        raise
    return side


def measure(variant: str, config: GPT2Config, plain: GPT2Config, beside: SideProcess, args: argparse.Namespace) -> Any:
    """Alternating rounds of a variant and the plain model, which stays for the next one."""
    from training.log.machine import flops_per_token

    tokens = args.batch * args.length
    operations = flops_per_token(config, args.length) / flops_per_token(plain, args.length)
    side, rounds = start(variant, config, args), []
    try:
        for index in range(args.rounds):
            row: dict[str, Any] = {}
            order = [("variant", side), ("plain", beside)]
            for label, worker in order if index % 2 == 0 else order[::-1]:
                row[label] = worker.ask("step")
            rounds.append(row)
        memory = {"variant": side.ask("memory"), "plain": beside.ask("memory")}
    finally:
        side.close()

    def quotient(measured: str) -> list[float]:
        return [operations * row["plain"][measured] / row["variant"][measured] for row in rounds]

    by_time, by_processor = quotient("seconds"), quotient("processor_seconds")
    speeds = {label: statistics.median(tokens / row[label]["seconds"] for row in rounds) for label in memory}
    return {
        "name": variant,
        "tokens_per_second": speeds,
        "tokens_to_plain": statistics.median(each / operations for each in by_time),
        "operations_a_token_to_plain": operations,
        "operations_a_second_to_plain": statistics.median(by_time),
        "operations_a_second_to_plain_of_each_round": by_time,
        "by_processor_time": statistics.median(by_processor),
        "peak_memory_gb": {label: found["peak_gb"] for label, found in memory.items()},
        "loss_after": memory["variant"]["loss"],
    }


HEADER = (
    f"{'variant':<26} {'tokens/s':>9} {'plain':>9} {'to plain':>8} {'ops/token':>9} "
    f"{'ops/second':>10} {'least':>6} {'most':>6} {'processor':>9} {'peak GB':>7}"
)


def row_of(result: dict[str, Any]) -> str:
    """A result as a line under HEADER; what is not tokens a second or GB is a quotient, to plain."""
    speeds, each = result["tokens_per_second"], result["operations_a_second_to_plain_of_each_round"]
    return (
        f"{result['name']:<26} {speeds['variant']:9,.1f} {speeds['plain']:9,.1f} {result['tokens_to_plain']:8.3f} "
        f"{result['operations_a_token_to_plain']:9.3f} {result['operations_a_second_to_plain']:10.3f} {min(each):6.3f} "
        f"{max(each):6.3f} {result['by_processor_time']:9.3f} {result['peak_memory_gb']['variant']:7.2f}"
    )


def verdict(results: list[dict[str, Any]]) -> str:
    """Which variants make fewer than AT_LEAST of the plain model's operations a second."""
    slow = [each for each in results if each["operations_a_second_to_plain"] < AT_LEAST]
    if not slow:
        return f"every variant makes at least {AT_LEAST:.0%} of the plain model's operations a second"
    named = ", ".join(f"{each['name']} ({each['operations_a_second_to_plain']:.3f})" for each in slow)
    return f"below {AT_LEAST:.0%} of the plain model's operations a second: {named}"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = ProgramParser("benchmarks/variants.py", __doc__)
    parser.add_argument("--model", choices=sorted(SIZES), default="gpt2", help="size of both")
    parser.add_argument("--variants", nargs="+", metavar="NAME", default=[*SYSTEMS, *CHANGES], help="default: all")
    parser.add_argument("--batch", type=int, default=4, help="samples of a micro-batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side, for each variant")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--half", action="store_true", help="half weights and a static loss scaling")
    record.add_json_flag(parser)
    args = parser.parse_args(argv)
    counts = ("batch", "length", "rounds", "threads")
    problems = below_one(args, counts)
    if not 0 <= args.dropout < 1:
        problems.append("--dropout must be in [0, 1)")
    if not problems:
        for variant in args.variants:
            try:
                variant_of(plain_model(args), variant)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        parser.error("; ".join(problems))
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    # Sides inherit how OpenMP's threads wait, which poptorch sets. It was set after the start of the plain side, whose
    # threads alone then spun at barriers: on a busy machine that made its steps several times as long.
    import poptorch  # noqa: F401

    plain, results = plain_model(args), []
    size = f"{args.model}, {args.batch} x {args.length} tokens"
    print(f"{size}, dropout {args.dropout}, {args.rounds} rounds", flush=True)
    try:
        beside = start("plain", plain, args)
        try:
            print(HEADER, flush=True)
            for variant in args.variants:
                results.append(measure(variant, variant_of(plain, variant), plain, beside, args))
                print(row_of(results[-1]), flush=True)
        finally:
            beside.close()
    except RuntimeError as error:
        print(f"variants: {error}", file=sys.stderr)
        return 1
    print(verdict(results))
    if args.json:
        keys = ("model", "batch", "length", "rounds", "threads", "dropout", "device", "half")
        head = record.head("variants", argv, device=args.device)
        record.write(args.json, head, {key: getattr(args, key) for key in keys}, results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
