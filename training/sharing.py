"""One of several processes of a run: the replicas that it holds, and the samples that it takes."""

from __future__ import annotations

import argparse

from command_line.checks import BadFlags
from data.loading.sampler import Shard
from model.ipu_options import instance, local_replicas, share_replicas
from model.layout import launched


def join(args: argparse.Namespace) -> None:
    """One of several processes takes its part of the replicas.

    Raises BadFlags where that does not come out even, RuntimeError with a HINT where the processes do not meet.
    """
    try:
        share_replicas(args)
    except ValueError as error:
        raise BadFlags(
            f"--replication-factor {args.replication_factor}: the program was started as one of several processes: "
            f"{error}"
        ) from error
    batch = args.batch_size * args.gradient_accumulation * args.replication_factor
    if args.global_batch_size not in (None, batch):
        raise BadFlags(
            f"--global-batch-size {args.global_batch_size}: with the launcher's replicas a weight update has "
            f"{batch} samples; give --gradient-accumulation instead"
        )


def samples_of_this_process(args: argparse.Namespace) -> Shard:
    """The samples that this process takes of every call: those of its replicas' micro-batches."""
    micro_batches = args.gradient_accumulation * args.device_iterations
    return Shard(*instance(), block=args.batch_size * local_replicas(args), blocks=micro_batches)


def alone() -> bool:
    """Whether this is the only process of the run."""
    return launched()[1] == 1
