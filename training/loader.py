"""The DataLoader of a training run: which processes read samples, and how far ahead."""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import poptorch

from command_line.interruption import ignore_in_worker
from data.batches import SampleDataset
from data.loading.datasets import collate
from data.loading.sampler import ResumableSampler

# Token ids in a combined batch from which on every copy of it counts (two int32 tensors: 32 MB).
_LARGE_BATCH = 4_000_000


def _asynchronous(args: argparse.Namespace, large: bool) -> dict[str, Any]:
    """What --async-dataloader adds to the DataLoader's arguments.

    The process is forked: the data set may be a large file that is mapped. An epoch begins when it is asked for, from
    where the sampler then stands. Workers make parts of a large batch, which are joined in the ring.
    """
    process = {"sharing_strategy": poptorch.SharingStrategy.Fork, "load_indefinitely": False}
    if not large:
        return {"mode": poptorch.DataLoaderMode.Async, "async_options": process}
    return {
        "mode": poptorch.DataLoaderMode.AsyncRebatched,
        "rebatched_worker_size": max(1, _LARGE_BATCH // (4 * args.max_len)),
        "async_options": {**process, "buffer_size": 2},
    }


def make_loader(
    args: argparse.Namespace, options: poptorch.Options, samples: SampleDataset, sampler: ResumableSampler
) -> poptorch.DataLoader:
    """Combined batches of `samples` in the order of `sampler`, (samples a call, T) int32 each of ids and labels."""
    # Loader processes hold a combined batch each. One of them, with one batch under way, keeps it at two in all
    # where batches are large; where they are small more of them may work ahead.
    workers = args.num_workers
    large = sampler.shard.own * args.max_len > _LARGE_BATCH
    mode = _asynchronous(args, large) if args.async_dataloader else {}
    if args.train_path == "generated" or (large and not mode):
        workers = min(workers, 1)
    if mode:
        sampler.share()
    # They mostly wait, so that more of them than cores do no harm: --num-workers says how many.
    warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes", UserWarning)
    return poptorch.DataLoader(
        options,
        samples,
        batch_size=args.batch_size,
        num_workers=workers,
        sampler=sampler,
        collate_fn=collate,
        worker_init_fn=ignore_in_worker,
        auto_distributed_partitioning=False,  # the sampler shares the samples out
        **({"prefetch_factor": 1} if workers else {}),
        **mode,
    )
