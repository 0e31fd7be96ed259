"""Gradient accumulation over the micro-batches of one weight update (spec section 5)."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.distributed as dist
from torch.utils.hooks import RemovableHandle

from ...device.tied_embedding import SharedGradient, shared_gradient
from ..processes.reduction import GradientReduction
from ..updating.pieces import chunk_elements


@dataclasses.dataclass(frozen=True)
class _Share:
    """accumulator = kept accumulator + weight gradient.

    A running mean m of k gradients takes a sum g of n more by m_{k+n} = m_k k / (k + n) + g / (k + n).
    """

    kept: float  # 0 where the accumulator has nothing of this update yet
    weight: float

    def add(self, accumulator: torch.Tensor, gradient: torch.Tensor) -> None:
        """Of equal shapes."""
        if self.kept == 0.0:
            accumulator.copy_(gradient if self.weight == 1.0 else gradient * self.weight)
            return
        if self.kept != 1.0:
            accumulator.mul_(self.kept)
        accumulator.add_(gradient, alpha=self.weight)

    def add_rows(self, accumulator: torch.Tensor, gradient: torch.Tensor) -> None:
        """Of a sparse gradient: rows of the accumulator, of which one may be there several times."""
        rows, which = gradient._indices()[0].unique(return_inverse=True)
        values = gradient._values()
        values = values.new_zeros(len(rows), values.shape[1]).index_add_(0, which, values)
        if self.kept != 1.0:
            accumulator.mul_(self.kept) if self.kept else accumulator.zero_()
        part = accumulator.index_select(0, rows).add_(values, alpha=self.weight)
        accumulator.index_copy_(0, rows, part)


class GradientAccumulator:
    """Sums, or keeps the running mean of, the gradients of micro-batches.

    A parameter whose accumulator has its own type lets autograd add into `.grad`. Otherwise each gradient goes into an
    accumulator of the type asked for as soon as it is complete, and is freed. Where there is nothing to add up it may
    go on from there (allocate()): of such a parameter there is no accumulator. Or the accumulator is made anew before
    each update, in the memory of the gradient or of what that is made of (tied_embedding.py).

    Args:
        parameters: leaf tensors by name.
        dtypes: the accumulator's type by name.
        micro_batches: gradients in one update, A times the replicas of all processes.
        mean: divide by that number.
        running: keep a running mean, which cannot overflow a half accumulator where a sum would.
        group: the processes that have the other replicas, or None.
        passes: backward passes of one micro-batch that reach a parameter, where that is not one: several spans of a
            pipeline use it.
    """

    def __init__(
        self,
        parameters: dict[str, torch.Tensor],
        dtypes: dict[str, torch.dtype],
        micro_batches: int,
        mean: bool,
        running: bool,
        group: dist.ProcessGroup | None = None,
        passes: Mapping[str, int] = {},  # noqa: B006 - never written to
    ):
        self._parameters = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
        self._dtypes = dtypes
        self._accumulators: dict[str, torch.Tensor] = {}
        self._rooms: dict[str, torch.Tensor] = {}  # memory that accumulators are in and that is not theirs
        self._handed_on: frozenset[str] = frozenset()
        self._hand_on: Callable[[str, torch.Tensor], None] | None = None
        self._running = running and mean
        self._count, self._together = 0, 1
        # Dividing the loss divides the gradients: no pass over them is needed at the end. Half gradients would
        # underflow: these are divided once they are accumulated.
        narrow = any(tensor.dtype != torch.float32 for tensor in self._parameters.values())
        divide = mean and not self._running and micro_batches > 1
        self.loss_factor = 1.0 / micro_batches if divide and not narrow else 1.0
        self._divisor = micro_batches if divide and narrow else 1
        if self._running and group is not None:
            self._divisor = dist.get_world_size(group)  # the mean of their running means
        self._passes = passes
        self._hooks: dict[str, RemovableHandle] = {}
        # Python's collector does not see what torch's hooks hold, nor does a weight let go of what is shared for it.
        self._this = weakref.ref(self)
        for name, tensor in self._parameters.items():
            if self._has_own(name):
                shared = shared_gradient(tensor)
                shared.takes_rows = True
                if group is None and passes.get(name, 1) == 1:
                    shared.accumulate = self._taking_parts(name)
                self._hooks[name] = self._hook(name)
        self._events: dict[str, int] = {}  # gradients so far of parameters that have several of a micro-batch
        self._received: set[str] = set()  # whose accumulators have something of the current update
        self._begun: set[str] = set()  # and of the current backward pass
        self._complete: set[str] = set()  # parameters whose gradients were asked for in this update
        self._reduction = None if group is None else GradientReduction(self._parameters, self._gradient, group, passes)

    def last_backward(self, last: bool = True) -> None:
        """The next backward pass is of the last micro-batch before gradients() is called, or (False) is not."""
        if self._reduction is not None:
            self._reduction.last_backward(last)

    def _has_own(self, name: str) -> bool:
        """Whether gradients are not added up in `.grad`."""
        return self._dtypes[name] != self._parameters[name].dtype or self._running

    def allocate(
        self, handed_on: frozenset[str], to: Callable[[str, torch.Tensor], None], lodged: frozenset[str] = frozenset()
    ) -> None:
        """Make the accumulators that the next passes need, before these fill the memory.

        Unless every backward pass is the only one of its update both sets of parameters are empty.

        Args:
            handed_on: they need none: to() gets each gradient as soon as it is complete, reduced. None of these are of
                several spans, and there is no group.
            lodged: theirs are made in the memory of the gradients, or of what these are made of if they come in parts,
                on a CPU.
        """
        for name in self._handed_on - handed_on:
            if not self._has_own(name):
                self._hooks.pop(name).remove()
        for name in handed_on - self._hooks.keys():
            self._hooks[name] = self._hook(name)
        self._handed_on, self._hand_on = handed_on, to
        for name, tensor in self._parameters.items():
            if name in handed_on:
                self._accumulators.pop(name, None)
            elif self._has_own(name):
                shared = shared_gradient(tensor)
                is_lodged = name in lodged and shared.accumulate is not None and tensor.device.type == "cpu"
                shared.accumulator_size = tensor.numel() * self._dtypes[name].itemsize if is_lodged else 0
                if not is_lodged:
                    self._accumulator(name)

    def take_whole(self) -> None:
        """Every gradient is to come as torch has it, for somebody watches: none in parts."""
        for tensor in self._parameters.values():
            shared_gradient(tensor).accumulate = None

    def _accumulator(self, name: str) -> torch.Tensor:
        if name not in self._accumulators:
            self._accumulators[name] = self._zeros(name)
        return self._accumulators[name]

    def _zeros(self, name: str) -> torch.Tensor:
        tensor = self._parameters[name]
        return torch.zeros(tensor.shape, dtype=self._dtypes[name], device=tensor.device)

    def _hook(self, name: str) -> RemovableHandle:
        tensor, this = self._parameters[name], self._this
        shared = shared_gradient(tensor)
        return tensor.register_post_accumulate_grad_hook(lambda parameter: this()._take(name, parameter, shared))

    @torch.no_grad()
    def _take(self, name: str, parameter: torch.Tensor, shared: SharedGradient) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:  # it has gone in by parts, or there is none
            return
        if name in self._handed_on:
            self._hand_on(name, self._reduced(name, gradient))
            return
        count = self._count
        if self._passes.get(name, 1) > 1:
            count = self._events[name] = self._events.get(name, -self._together) + self._together
        dense = not gradient.is_sparse
        if dense and gradient.is_contiguous() and gradient.nbytes >= shared.accumulator_size > 0:
            self._lodge(name, gradient)
        accumulator, share = self._accumulator(name), self._share(name, count)
        if not dense:
            share.add_rows(accumulator, gradient)
            return
        # piece by piece: the sum of two types makes float32 copies of both
        pieces, lodged = chunk_elements(accumulator.device), self._rooms.get(name) is gradient
        parts = zip(accumulator.view(-1).split(pieces), gradient.reshape(-1).split(pieces), strict=True)
        for number, (part, fresh) in enumerate(parts):
            # In the gradient's own memory the later pieces go where earlier ones have been read.
            share.add(part, fresh.clone() if lodged and number == 0 else fresh)
        if not lodged:
            shared.give_back(gradient)

    def _reduced(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """What an accumulator would have after this gradient, the only one of an update."""
        if self._has_own(name):
            accumulator = torch.empty(gradient.shape, dtype=self._dtypes[name], device=gradient.device)
            self._share(name, 0).add(accumulator, gradient)
            gradient = accumulator
        return gradient if self._divisor == 1 else gradient.div_(self._divisor)

    def _taking_parts(self, name: str) -> Callable[[Iterable[tuple[int, torch.Tensor]], torch.Tensor | None], None]:
        this = self._this
        return lambda parts, room: this()._take_parts(name, parts, room)

    @torch.no_grad()
    def _take_parts(
        self, name: str, parts: Iterable[tuple[int, torch.Tensor]], room: torch.Tensor | None = None
    ) -> None:
        """A gradient in parts, which torch never sees: more of it may come through the hook."""
        if room is not None:
            self._lodge(name, room)
        accumulator, share = self._accumulator(name), self._share(name, self._count)
        for first, fresh in parts:
            share.add(accumulator[first : first + len(fresh)], fresh)

    def _lodge(self, name: str, room: torch.Tensor) -> None:
        """Make an accumulator in this memory unless there is one that has something of this update."""
        if name not in self._received:
            shape = self._parameters[name].shape
            self._accumulators[name] = room.view(-1).view(self._dtypes[name])[: shape.numel()].view(shape)
            self._rooms[name] = room

    def _share(self, name: str, count: int) -> _Share:
        """How the next gradient, of the micro-batches from number `count` of the update on, is added up."""
        after = count + self._together
        kept, weight = (count / after, 1 / after) if self._running else (1.0, 1.0)
        if name in self._begun:
            kept = 1.0
        if name not in self._received:
            kept = 0.0
        self._begun.add(name)
        self._received.add(name)
        return _Share(kept, weight)

    def begin_micro_batch(self, number: int, together: int = 1) -> None:
        """The next backward pass is of micro-batch `number` of this update, and of those after it that run with it."""
        self._count, self._together = number, together
        self._begun.clear()

    def gradients(self) -> dict[str, torch.Tensor]:
        """The reduced gradients, of the parameters that have one. To be asked for once an update."""
        if self._reduction is not None:
            self._reduction.finish()
        found = {name: self._gradient(name) for name in self._parameters}
        return {name: gradient for name, gradient in found.items() if gradient is not None}

    def _gradient(self, name: str) -> torch.Tensor | None:
        """What the micro-batches of this process gave, divided where that is done at the end."""
        if self._has_own(name):
            gradient = self._accumulators.get(name) if name in self._received else None
        else:
            gradient = self._parameters[name].grad
        # A running mean over several gradients of each micro-batch is one over their sums when multiplied by how many.
        divisor = self._divisor / (self._passes.get(name, 1) if self._running else 1)
        if gradient is not None and divisor != 1 and name not in self._complete:
            gradient.div_(divisor)
        self._complete.add(name)
        return gradient

    def seen(self) -> dict[str, torch.Tensor]:
        """What has been accumulated so far, not reduced yet."""
        found = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        return {**found, **{n: a for n, a in self._accumulators.items() if n in self._received}}

    def clear(self) -> None:
        """Begin the next update."""
        for parameter in self._parameters.values():
            parameter.grad = None
        self._received.clear()
        self._begun.clear()
        self._complete.clear()
        self._events.clear()
        self._count = 0
        for name, room in self._rooms.items():
            del self._accumulators[name]
            shared_gradient(self._parameters[name]).give_back(room)
        self._rooms.clear()

    def release(self) -> None:
        """Give the accumulators' memory back and take the hooks off."""
        for name, hook in self._hooks.items():
            hook.remove()
            shared_gradient(self._parameters[name]).release()
        if self._reduction is not None:
            self._reduction.release()
        self._accumulators.clear()
        self._rooms.clear()
        self._hand_on = None  # has the runner and all that is on the device, which has this accumulator
