"""What one call of the training model consists of."""

from __future__ import annotations

import argparse

from model.config import GPT2Config
from model.pipeline import least_micro_batches


def samples_per_call(args: argparse.Namespace) -> int:
    """Samples in one call of the training model: micro-batch x accumulation x iterations x replicas."""
    return args.batch_size * args.gradient_accumulation * args.device_iterations * args.replication_factor


def arithmetic(args: argparse.Namespace) -> list[str]:
    """The two lines printed at the start: what a call consists of, and which flags make it smaller."""
    samples = samples_per_call(args)
    tokens = samples * args.max_len
    size = f"{tokens / 1e9:.1f} G" if tokens >= 1e9 else f"{tokens / 1e6:.1f} M" if tokens >= 1e6 else f"{tokens:,}"
    first = (
        f"batch {args.batch_size} x accumulation {args.gradient_accumulation} x iterations {args.device_iterations} "
        f"x replicas {args.replication_factor} = {samples:,} samples, {size} tokens a call"
    )
    flags = ("gradient_accumulation", "device_iterations", "replication_factor", "batch_size")
    shrink = sorted((f for f in flags if getattr(args, f) > 1), key=lambda f: -getattr(args, f))
    names = [f"--{name.replace('_', '-')} {getattr(args, name)}" for name in shrink]
    least = least_micro_batches(GPT2Config.from_json(args.config), args.layers_per_ipu)
    pipeline = f" (--gradient-accumulation at least {least} for this pipeline)" if least > 1 else ""
    return [first, "smaller calls: lower " + ", ".join(names + [f"--max-len {args.max_len}"]) + pipeline]
