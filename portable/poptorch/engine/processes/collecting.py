"""Tensors of which each process owns a part, whole in the first one: piece by piece, into memory that is no memory.

Nothing is added to what a process owns: what the first one receives lies in a file without a name, of which the kernel
keeps in memory what there is room for.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import IO, Any

import torch
import torch.distributed as dist

from ...device import split_weights
from ...poptorch_core import createPoptorchError
from .reduction import exchange

_WINDOW = 16 << 20  # bytes that travel at a time
_ALIGNED = 64  # bytes: where a tensor may begin
# What posix_fallocate says on a file system that cannot, where the C library does not write in its place.
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@dataclasses.dataclass(frozen=True)
class Owned:
    """What one process has of a tensor.

    Args:
        shape: the whole one's.
        tensor: elements from number `start` on of the flattened whole one, contiguous; any shape, any device. Or a
            whole weight in two parts (split_weights.py).
    """

    shape: torch.Size
    tensor: torch.Tensor
    start: int = 0

    @classmethod
    def whole(cls, tensor: torch.Tensor) -> Owned:
        """All of it."""
        return cls(tensor.shape, tensor.detach())


@dataclasses.dataclass(frozen=True)
class _Described:
    """An Owned as the others are told of it. `value`: of a number, which needs no further message."""

    shape: torch.Size
    dtype: torch.dtype
    start: int
    stop: int
    value: float | None


@dataclasses.dataclass(frozen=True)
class _Part:
    """Elements `start` to `stop` of tensor `name`, as process `source` has them."""

    name: str
    source: int
    start: int
    stop: int


def copies(owned: Mapping[str, Owned]) -> dict[str, torch.Tensor]:
    """Of tensors that this process has whole: copies on the host."""
    return {name: split_weights.whole(each.tensor).to("cpu", copy=True) for name, each in owned.items()}


def copies_on_disk(owned: Mapping[str, Owned]) -> dict[str, torch.Tensor]:
    """The same where there is room in the temporary folder: beside other processes, memory is scarce."""
    try:
        found = on_disk({name: (each.shape, each.tensor.dtype) for name, each in owned.items()})
    except OSError:
        return copies(owned)
    for name, tensor in found.items():
        tensor.copy_(split_weights.whole(owned[name].tensor))
    return found


def collect(
    owned: Mapping[str, Owned], group: dist.ProcessGroup, *, everywhere: bool = False
) -> dict[str, torch.Tensor]:
    """Whole tensors on the host from what the processes of `group` own of them, each of which must call it.

    What several own comes from the first of them. Numbers (0-d tensors) are known in every process; of other tensors
    all but the first process get shape and type only, on the device "meta", unless they are wanted `everywhere`.

    Raises:
        poptorch.Error: in every process, if the temporary folder of one has no room for the tensors, or nobody owns
            some elements of one of them; or if another process has ended or does not answer.
    """
    rank = dist.get_rank(group)
    with exchange():
        described, parts = _agreed(owned, group)
    large = {name: each for name, each in described.items() if each.value is None}
    error, found = None, {}
    if rank == 0 or everywhere:
        try:
            found = on_disk({name: (each.shape, each.dtype) for name, each in large.items()})
        except OSError as failed:
            size = sum(math.prod(each.shape) * each.dtype.itemsize for each in large.values())
            error = (
                f"process {rank}: {tempfile.gettempdir()} cannot take the {size:,} bytes of what all processes own "
                f"({failed.strerror}); make room there, or let TMPDIR name a folder on a larger disk"
            )
    errors: list[str | None] = [None] * dist.get_world_size(group)
    with exchange():
        dist.all_gather_object(errors, error, group=group)
        for told in filter(None, errors):
            raise createPoptorchError(told)
        for part in parts:
            _travel(part, owned.get(part.name), found.get(part.name), group, everywhere)
    for name, each in described.items():
        if each.value is not None:
            found[name] = torch.tensor(each.value, dtype=each.dtype)
        elif name not in found:
            found[name] = torch.empty(each.shape, dtype=each.dtype, device="meta")
    return {name: found[name] for name in described}


def union(numbers: Mapping[str, torch.Tensor], group: dist.ProcessGroup) -> dict[str, torch.Tensor]:
    """0-d tensors of all processes of `group` in the first one, whose own stay as they are; elsewhere one's own."""
    found = dict(numbers)
    rank, told = dist.get_rank(group), [None] * dist.get_world_size(group)
    mine = {name: (number.item(), number.dtype) for name, number in numbers.items()}
    with exchange():
        dist.gather_object(mine, told if rank == 0 else None, dst=dist.get_global_rank(group, 0), group=group)
    shared: dict[Any, torch.Tensor] = {}  # equal ones are one tensor, which keeps a file small
    for other in filter(None, told):
        for name, (value, dtype) in other.items():
            if name not in found:
                found[name] = shared.setdefault((value, dtype), torch.tensor(value, dtype=dtype))
    return found


def _agreed(owned: Mapping[str, Owned], group: dist.ProcessGroup) -> tuple[dict[str, _Described], list[_Part]]:
    """All tensors that any process has a piece of, and which pieces make them whole."""
    rank, first = dist.get_rank(group), dist.get_global_rank(group, 0)
    told: list[Any] = [None] * dist.get_world_size(group)
    mine = {name: _describe(each) for name, each in owned.items()}
    dist.gather_object(mine, told if rank == 0 else None, dst=first, group=group)
    plan: list[Any] = [None]
    if rank == 0:
        described: dict[str, _Described] = {}
        for each in told:
            described = {**each, **described}
        described = {name: described[name] for each in told for name in each}
        try:
            plan = [(described, [part for name in described for part in _parts(name, told)])]
        except ValueError as error:
            plan = [str(error)]
    dist.broadcast_object_list(plan, src=first, group=group)
    if isinstance(plan[0], str):
        raise createPoptorchError(plan[0])
    return plan[0]


def _describe(each: Owned) -> _Described:
    count = each.tensor.numel()
    value = None if each.shape else each.tensor.item()
    return _Described(each.shape, each.tensor.dtype, each.start, each.start + count, value)


def _parts(name: str, told: list[dict[str, _Described]]) -> list[_Part]:
    """Pieces that cover a tensor, each from the first process that has it. Raises ValueError if they do not."""
    pieces = [(rank, mine[name]) for rank, mine in enumerate(told) if name in mine]
    shape, position, parts = pieces[0][1].shape, 0, []
    whole = 0 if pieces[0][1].value is not None else math.prod(shape)
    while position < whole:
        source = next((piece for piece in pieces if piece[1].start <= position < piece[1].stop), None)
        if source is None:
            raise ValueError(f"no process has element {position:,} of {name}, of shape {list(shape)}")
        parts.append(_Part(name, source[0], position, source[1].stop))
        position = source[1].stop
    return parts


def _travel(
    part: _Part, mine: Owned | None, whole: torch.Tensor | None, group: dist.ProcessGroup, everywhere: bool
) -> None:
    """One part, a window at a time, from the process that has it into `whole` wherever that is wanted."""
    rank, source = dist.get_rank(group), dist.get_global_rank(group, part.source)
    here = None
    if rank == part.source:
        here = split_weights.whole(mine.tensor).reshape(-1)[part.start - mine.start : part.stop - mine.start]
        if whole is not None:
            whole.view(-1)[part.start : part.stop].copy_(here)
        if dist.get_world_size(group) == 1 or (part.source == 0 and not everywhere):
            return
    elif whole is None:
        return
    else:
        here = whole.view(-1)[part.start : part.stop]
    for window in here.view(torch.uint8).split(_WINDOW):
        if everywhere:
            window = window.cpu()  # the window itself if it is there
            dist.broadcast(window, src=source, group=group)
        elif rank == part.source:
            dist.send(window.cpu(), dst=dist.get_global_rank(group, 0), group=group)
        else:
            dist.recv(window, src=source, group=group)


def _reserve(file: IO[bytes], size: int) -> None:
    """Room that is really there: on a full disk the first write to mapped memory would be a signal."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return
    except AttributeError:  # macOS has no such call
        pass
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    zeros = bytes(min(size, _WINDOW))
    for written in range(0, size, len(zeros)):
        file.write(zeros[: size - written])
    file.flush()


def on_disk(wanted: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, torch.Tensor]:
    """Zeros of these shapes and types, in a file of the temporary folder (TMPDIR) that has no name.

    Raises OSError if it has no room for them.
    """
    places, size = {}, 0
    for name, (shape, dtype) in wanted.items():
        places[name] = size
        size += -(-math.prod(shape) * dtype.itemsize // _ALIGNED) * _ALIGNED
    if size == 0:
        return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in wanted.items()}
    with tempfile.TemporaryFile() as file:
        _reserve(file, size)
        memory = mmap.mmap(file.fileno(), size)
    tensors = {}
    for name, (shape, dtype) in wanted.items():
        count = math.prod(shape)
        flat = (
            torch.frombuffer(memory, dtype=dtype, count=count, offset=places[name])
            if count
            else torch.empty(0, dtype=dtype)
        )
        tensors[name] = flat.view(shape)
    return tensors
