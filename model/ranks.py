"""What the processes of one run tell each other: sums of what they found, and votes. Alone none of it does anything."""

from __future__ import annotations

import datetime
import os
from contextlib import contextmanager, suppress
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from model.ipu_options import process, replica_part
from model.scoring import Scores

_PATIENCE = 1800.0  # seconds for another process: it may compile, or write a large checkpoint


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return process()[0] == 0


def combine(scores: Scores) -> Scores:
    """The scores of all processes: what one has not reached is zero there, so that they add up.

    Those that hold a replica together have the same. Every process must call it. Raises RuntimeError if the processes
    cannot reach each other.
    """
    if replica_part()[0]:
        for array in scores:
            array[...] = 0
    _add_up(scores)
    return scores


def agree(asked: bool) -> bool:
    """Whether any process asks. Every process must call it. Raises RuntimeError as `combine`."""
    votes = np.asarray([asked], np.int64)
    _add_up([votes])
    return bool(votes[0])


def means(values: Sequence[float]) -> list[float]:
    """Each the mean over all processes. Every process must call it. Raises RuntimeError as `combine`."""
    array = np.asarray(values, np.float64)
    _add_up([array])
    return (array / process()[1]).tolist()


def check_same(facts: Mapping[str, Any]) -> None:
    """That all processes were started alike. Every process must call it.

    Args:
        facts: plain values, by the flag or by what else they are of.

    Raises:
        ValueError: in every process, naming one that has something else. RuntimeError: as `combine`.
    """
    if process()[1] == 1:
        return
    agree(False)  # meets the others
    import torch.distributed as dist

    told: list[Any] = [None] * process()[1]
    dist.all_gather_object(told, dict(facts))
    for number, other in enumerate(told):
        for name, value in told[0].items():
            if other.get(name) != value:
                raise ValueError(
                    f"{name}: process {number} has {other.get(name)}, process 0 {value}; start all processes with "
                    "the same flags, data and checkpoint"
                )


@contextmanager
def first_before_others() -> Iterator[None]:
    """What is inside the first process does before the others begin: it finds files as they do, but tidies them up.

    Every process must enter it. Where the first one fails the others are let in too, and not left waiting for it.
    Raises RuntimeError as `combine`.
    """
    if not is_first():
        agree(False)
        yield
        return
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # what is under way is the error to tell
            agree(False)
        raise
    agree(False)


def _add_up(arrays: Sequence[np.ndarray]) -> None:
    """Each array becomes the sum over all processes of what they have there."""
    index, count = process()
    if count == 1:
        return
    import torch
    import torch.distributed as dist

    try:
        if not dist.is_initialized():
            _meet(index, count)
        for array in arrays:
            tensor = torch.from_numpy(array).to(torch.float64)  # exact for counts below 2^53
            dist.all_reduce(tensor)
            array[...] = tensor.numpy()
    except (ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"the processes of this run cannot exchange their results ({str(error).splitlines()[0]})\n"
            "HINT: start them with torchrun, or set MASTER_ADDR and MASTER_PORT for all of them; if one has ended with "
            "an error of its own, correct that first"
        ) from error


def _meet(index: int, count: int) -> None:
    import torch
    import torch.distributed as dist

    if os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(count):  # poprun on one host names no place to meet
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
    from torch.distributed.rendezvous import rendezvous

    patience = datetime.timedelta(seconds=float(os.environ.get("POPTORCH_PORTABLE_TIMEOUT", _PATIENCE)))
    store, _, _ = next(rendezvous("env://", index, count, timeout=patience))
    # torchrun may keep its store when it starts processes again, with what the earlier ones wrote.
    store = dist.PrefixStore("attempt " + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=index, world_size=count, timeout=patience)
