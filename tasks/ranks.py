"""Several processes share an evaluation: each scores its part of the batches, then all have the whole."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from model.ipu_options import instance
from model.scoring import Scores


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return instance()[0] == 0


def combine(scores: Scores) -> Scores:
    """The scores of all processes: what one has not reached is zero there, so that they add up.

    Every process must call it. Raises RuntimeError if the processes cannot reach each other.
    """
    _add_up(scores)
    return scores


def agree(asked: bool) -> bool:
    """Whether any process asks. Every process must call it. Raises RuntimeError as `combine`."""
    votes = np.asarray([asked], np.int64)
    _add_up([votes])
    return bool(votes[0])


def _add_up(arrays: Sequence[np.ndarray]) -> None:
    """Each array becomes the sum over all processes of what they have there."""
    index, count = instance()
    if count == 1:
        return
    import torch
    import torch.distributed as dist

    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", rank=index, world_size=count)
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
