"""What the processes of one run tell each other: sums of what they found, and votes. Alone none of it does anything."""

from __future__ import annotations

import datetime
import os
from contextlib import contextmanager, suppress
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import popdist
import poptorch

from model.layout import launched
from model.scoring import Scores

_PATIENCE = 1800.0  # seconds for another process: it may compile, or write a large checkpoint


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return launched()[0] == 0


def combine(scores: Scores) -> Scores:
    """The scores of all processes: what one has not reached, or not read, is zero there, so that they add up.

    Every process must call it. Raises RuntimeError if the processes cannot reach each other.
    """
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
    return (array / launched()[1]).tolist()


def of_first(value: Any) -> Any:
    """The first process's value, which is plain. Every process must call it. Raises RuntimeError as `combine`."""
    return _tell(value)[0]


def check_same(facts: Mapping[str, Any]) -> None:
    """That all processes were started alike. Every process must call it.

    Args:
        facts: plain values, by the flag or by what else they are of.

    Raises:
        ValueError: in every process, naming one that has something else; `args` are what. RuntimeError: as `combine`.
    """
    told = _tell(dict(facts))
    for number, other in enumerate(told):
        different = [name for name, value in told[0].items() if other.get(name) != value]
        if different:
            raise ValueError(
                *(
                    f"{name}: process {number} has {other.get(name)}, process 0 {told[0][name]}; start all processes "
                    "with the same flags, data and checkpoint"
                    for name in different
                )
            )


@contextmanager
def first_before_others() -> Iterator[None]:
    """What is inside the first process does before the others begin: it finds files as they do, but tidies them up.

    Every process must enter it. A ValueError in one of them is raised in all: the first one's as it is, another's with
    the number of its process. Where the first one fails otherwise, the others are let in too, and not left waiting for
    it. Raises RuntimeError as `combine`.
    """
    if not is_first():
        agree(False)
    problem: ValueError | None = None
    try:
        yield
    except ValueError as error:
        problem = error
    except BaseException:
        with suppress(RuntimeError):  # what is under way is the error to tell
            if is_first():
                agree(False)
            _tell([])
        raise
    if is_first():
        agree(False)
    told = _tell([] if problem is None else [str(line) for line in problem.args])
    if told[0] and problem is not None:
        raise problem
    for number, lines in enumerate(told):
        if lines:
            raise ValueError(*(line if number == 0 else f"process {number}: {line}" for line in lines))


def _tell(what: Any) -> list[Any]:
    """What each process has to tell, plain values, by their numbers. Every process must call it."""
    told = [what] * launched()[1]
    if len(told) > 1:
        with _exchange():
            import torch.distributed as dist

            dist.all_gather_object(told, what)
    return told


def _add_up(arrays: Sequence[np.ndarray]) -> None:
    """Each array becomes the sum over all processes of what they have there."""
    if launched()[1] == 1:
        return
    with _exchange():
        import torch
        import torch.distributed as dist

        for array in arrays:
            tensor = torch.from_numpy(array).to(torch.float64)  # exact for counts below 2^53
            dist.all_reduce(tensor)
            array[...] = tensor.numpy()


@contextmanager
def _exchange() -> Iterator[None]:
    """Around what needs the other processes, which meet if they have not. Raises RuntimeError as `combine`."""
    try:
        _meet(*launched())
        yield
    except (ValueError, RuntimeError, poptorch.Error) as error:
        raise RuntimeError(
            f"the processes of this run cannot exchange their results ({_reason(error)})\n"
            "HINT: start them with torchrun, or set MASTER_ADDR and MASTER_PORT for all of them; if one has ended with "
            "an error of its own, correct that first"
        ) from error


def _reason(error: Exception) -> str:
    """What is behind a failed exchange: the runtime knows a process that has gone."""
    if isinstance(error, poptorch.Error):
        return str(error.message)
    try:
        popdist.init()
    except poptorch.Error as known:
        return str(known.message)
    return str(error).splitlines()[0]


def _meet(index: int, count: int) -> None:
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    if os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(count):  # poprun on one host names no place to meet
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
    popdist.init()
    if dist.is_initialized():  # off-IPU that has done it
        return
    patience = datetime.timedelta(seconds=_PATIENCE)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, rank=index, world_size=count, timeout=patience)
