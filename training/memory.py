"""What to do when a run does not fit into memory: the next setting to try, by what it costs."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import contextmanager
from typing import Iterator

import poptorch

from model.config import GPT2Config
from model.layout import Layout, launched
from training.as_one import VARIABLE, micro_batches_as_one
from training.inputs import dropouts
from training.log.machine import computes_on_cuda, computes_on_ipus
from training.stage_memory import CPU, GPU

# Parts of what PyTorch (CPU and CUDA) and Poplar say when an allocation fails.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "memory_allocation", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a failed allocation, on the host, on a CUDA device, or of an IPU's tiles."""
    if isinstance(error, MemoryError):
        return True
    text = f"{getattr(error, 'type', '')} {error}".lower()
    return isinstance(error, (RuntimeError, poptorch.Error)) and any(sign in text for sign in _SIGNS)


def next_settings(args: argparse.Namespace) -> list[str]:
    """What makes a run with these flags smaller, the first one to be tried first.

    What leaves the weights' course as it is comes before what changes it, and what costs no time before what does.
    """
    settings = []
    as_one = _run_as_one(args)
    if as_one > 1:  # whatever makes a micro-batch smaller makes more of them run as one
        settings.append(f"{VARIABLE}=1 in the environment ({as_one:,} micro-batches run as one, in up to 1 GiB)")
    batch = args.batch_size
    if batch > 1:
        smaller = max(size for size in range(1, batch) if batch % size == 0)
        accumulation = args.gradient_accumulation * batch // smaller
        pieces = f"--batch-size {smaller} --gradient-accumulation {accumulation}"
        settings.append(f"{pieces} (the same batch in smaller pieces)")
    if not args.enable_sequence_serialized and args.max_len > 1:
        settings.append("--enable-sequence-serialized True (head and loss in blocks of positions)")
    if len(args.recompute_checkpoint_layers) < sum(args.layers_per_ipu):
        settings.append("--recompute-checkpoint-every-layer True (a third more work)")
    if computes_on_ipus():
        settings.append("--embedding-serialization-factor, --layers-per-ipu over more IPUs, --matmul-proportion")
    if args.max_len > 2:
        settings.append(f"--max-len {args.max_len // 2} (shorter samples)")
    return [*settings, "a smaller --model"]


def _run_as_one(args: argparse.Namespace) -> int:
    """The micro-batches that run as one, as far as the flags say it."""
    if computes_on_ipus():
        return 1
    config = dataclasses.replace(GPT2Config.from_json(args.config), **dropouts(args))
    layout = Layout(launched()[1], args.replication_factor, args.ipus_per_replica)
    return micro_batches_as_one(config, args, layout, GPU if computes_on_cuda() else CPU)


@contextmanager
def explained(args: argparse.Namespace) -> Iterator[None]:
    """What fails inside for want of memory raises RuntimeError with the next setting to try, as a HINT."""
    try:
        yield
    except (MemoryError, RuntimeError, poptorch.Error) as error:
        if not is_out_of_memory(error):
            raise
        raise RuntimeError(_advice(error, args)) from error


def _advice(error: BaseException, args: argparse.Namespace) -> str:
    first, *others = next_settings(args)
    said = " ".join(str(error).split())[:200] or type(error).__name__
    lines = [f"out of memory: {said}", f"HINT: try next {first}"]
    if isinstance(error, MemoryError):
        lines[1] += "; if it was the data of a call: a lower --gradient-accumulation or --device-iterations"
    return "\n".join([*lines, *(f"      or {other}" for other in others)])
