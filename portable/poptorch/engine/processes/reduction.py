"""Gradients of all replicas together: sums over processes that overlap the last backward pass of a weight update."""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.distributed as dist

from ...device import memory
from ...poptorch_core import createPoptorchError
from . import watch

# Smaller tensors travel together; a larger one where it lies, without a copy.
_ALONE_BYTES = 1 << 20


@contextlib.contextmanager
def exchange() -> Iterator[None]:
    """Around what needs the other processes. Raises poptorch.Error if one of them has gone or does not answer.

    A want of memory of this process's own is raised as it is.
    """
    watched = watch.current()
    with contextlib.nullcontext() if watched is None else watched.wait():
        try:
            yield
        except RuntimeError as error:
            if memory.ran_out(error):
                raise
            said = _in_short(error)
            known = said if watched is None else watched.explanation(said)
            raise createPoptorchError(
                f"another process of this program has ended or does not answer: {known}"
            ) from error


def _in_short(error: RuntimeError) -> str:
    """What torch.distributed says, without its place in the source and the advice that follows."""
    return re.sub(r"^\[\S+:\d+\] ", "", str(error).splitlines()[0]).partition(". ")[0][:200]


class GradientReduction:
    """Adds up gradients over the processes of `group`, in buckets of the order in which they usually are complete.

    Every process sends the same buckets in the same order, whatever the order in which its own are ready.

    Args:
        parameters: leaf tensors that have gradients, by name, in the order of the forward pass.
        complete: gives the gradient of a parameter as it is to be sent, and None if there is none.
        passes: backward passes of a micro-batch that reach a parameter, where that is not one.
    """

    def __init__(
        self,
        parameters: dict[str, torch.Tensor],
        complete: Callable[[str], torch.Tensor | None],
        group: dist.ProcessGroup,
        passes: Mapping[str, int] = {},  # noqa: B006 - never written to
    ):
        self._group = group
        self._complete = complete
        self._passes = passes
        self._buckets = _buckets(parameters)
        self._bucket_of = {name: number for number, names in enumerate(self._buckets) for name in names}
        self._armed = False
        self._missing: list[int] = []
        self._sent = 0
        self._under_way: list[tuple[dist.Work, list[torch.Tensor], torch.Tensor]] = []
        # By a weak reference: Python's collector does not see what torch's hooks hold, and this has all that trains.
        this = weakref.ref(self)
        self._hooks = [
            tensor.register_post_accumulate_grad_hook(lambda _, name=name: this()._ready(name))
            for name, tensor in parameters.items()
        ]

    def _ready(self, name: str) -> None:
        if self._armed:
            self._missing[self._bucket_of[name]] -= 1
            while self._sent < len(self._buckets) and self._missing[self._sent] <= 0:
                self._send()

    def last_backward(self, last: bool = True) -> None:
        """The backward pass that begins now belongs to the last micro-batch of this update, or (False) does not."""
        self._armed = last
        if last and not self._missing:
            self._missing = [sum(self._passes.get(name, 1) for name in names) for names in self._buckets]

    def finish(self) -> None:
        """All gradients are sums over the group then. The same parameters have one in every process."""
        self._armed = False
        self._missing = []
        while self._sent < len(self._buckets):
            self._send()
        for work, parts, sent in self._under_way:
            with exchange():
                work.wait()
            if sent is not parts[0]:
                for part, summed in zip(parts, sent.split([part.numel() for part in parts]), strict=True):
                    part.copy_(summed.view(part.shape))
        self._under_way.clear()
        self._sent = 0

    @torch.no_grad()
    def _send(self) -> None:
        gradients = [self._complete(name) for name in self._buckets[self._sent]]
        self._sent += 1
        alike: dict[torch.dtype, list[torch.Tensor]] = {}
        for gradient in gradients:
            if gradient is not None:
                alike.setdefault(gradient.dtype, []).append(gradient)
        for parts in alike.values():
            whole = len(parts) == 1 and parts[0].is_contiguous()
            sent = parts[0] if whole else torch.cat([part.reshape(-1) for part in parts])
            with exchange():
                work = dist.all_reduce(sent, group=self._group, async_op=True)
            self._under_way.append((work, parts, sent))

    def release(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()


def _buckets(parameters: dict[str, torch.Tensor]) -> list[list[str]]:
    """Names in the order of the backward pass; small tensors that follow each other share a bucket."""
    made: list[list[str]] = []
    room = 0
    for name, tensor in reversed(parameters.items()):
        size = tensor.numel() * tensor.element_size()
        if size >= _ALONE_BYTES:
            made.append([name])
            room = 0
        elif size <= room:
            made[-1].append(name)
            room -= size
        else:
            made.append([name])
            room = _ALONE_BYTES - size
    return made


def total(tensors: Iterable[torch.Tensor], group: dist.ProcessGroup | None) -> list[torch.Tensor]:
    """Sums of small tensors over a group; themselves where there is none."""
    tensors = list(tensors)
    if group is not None and tensors:
        flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors])
        with exchange():
            dist.all_reduce(flat, group=group)
        parts = flat.split([tensor.numel() for tensor in tensors])
        tensors = [part.view(old.shape).to(old.dtype) for part, old in zip(parts, tensors, strict=True)]
    return tensors
