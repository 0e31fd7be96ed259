"""Values that one process of a pipeline makes and another one uses: one message for each edge and micro-batch."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from .reduction import exchange

_ALIGNMENT = 64  # bytes: every tensor of a message begins where any type may


@dataclasses.dataclass(frozen=True)
class Edge:
    """From one span of stages to another one. Gradients travel on an edge of their own."""

    source: int
    target: int
    gradient: bool = False

    @property
    def tag(self) -> int:
        """The number that the two ends know its messages by."""
        return 1 + 2 * (self.source * 4096 + self.target) + self.gradient


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor was in values that may be nested."""

    number: int


@dataclasses.dataclass(frozen=True)
class _Form:
    """What all messages of an edge have in common: tensors one after another in a buffer, and how they are nested."""

    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    gradients: tuple[bool, ...]
    values: list[Any]  # with a _Place for each tensor

    @classmethod
    def of(cls, values: list[Any]) -> tuple[_Form, list[torch.Tensor]]:
        tensors: list[torch.Tensor] = []

        def place(tensor: torch.Tensor) -> _Place:
            tensors.append(tensor)
            return _Place(len(tensors) - 1)

        nested = pytree.tree_map_only(torch.Tensor, place, values)
        facts = [(tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in tensors]
        shapes, dtypes, gradients = zip(*facts, strict=True) if facts else ((), (), ())
        return cls(shapes, dtypes, gradients, nested), tensors

    def places(self) -> tuple[list[tuple[int, int]], int]:
        """(begin, bytes) of each tensor in the buffer, and the buffer's size."""
        found, end = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            size = shape.numel() * dtype.itemsize
            found.append((end, size))
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        return found, end

    def unpack(self, buffer: torch.Tensor) -> list[Any]:
        """The values in a message; tensors that had a gradient are leaves that collect one."""
        tensors = []
        places, _ = self.places()
        described = zip(places, self.shapes, self.dtypes, self.gradients, strict=True)
        for (begin, size), shape, dtype, gradient in described:
            tensor = buffer[begin : begin + size].view(dtype).view(shape)
            tensors.append(tensor.detach().requires_grad_(gradient))
        return pytree.tree_map_only(_Place, lambda place: tensors[place.number], self.values)


def tensors_of(values: list[Any]) -> list[torch.Tensor]:
    """The tensors in values that may be nested, in order."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Channels:
    """The edges between this process and others.

    Args:
        ranks: of torch.distributed, by number of the process in the pipeline.
        spans: the number in the pipeline of the process of each span.
        device: where received tensors are.
        groups: for NCCL, which knows no tags: a group of the two ends by edge.
    """

    def __init__(
        self,
        ranks: list[int],
        spans: list[int],
        device: torch.device,
        groups: dict[Edge, dist.ProcessGroup] | None = None,
    ):
        self._ranks, self._spans, self._device = ranks, spans, device
        self._groups = groups or {}
        self._forms: dict[Edge, _Form] = {}
        self._expected: dict[tuple[Edge, int], tuple[dist.Work, torch.Tensor]] = {}
        self._sent: list[tuple[dist.Work, torch.Tensor]] = []

    def send(self, edge: Edge, values: list[Any]) -> None:
        """One message, begun. The first one on an edge is preceded by what all have in common."""
        form, tensors = _Form.of(values)
        if edge not in self._forms:
            self._forms[edge] = form
            text = torch.frombuffer(bytearray(pickle.dumps(form)), dtype=torch.uint8).to(self._device)
            self._begin(edge, torch.tensor([len(text)], device=self._device))
            self._begin(edge, text)
        places, total = form.places()
        if not total:
            return
        if len(tensors) == 1:
            buffer = tensors[0].detach().contiguous().view(-1).view(torch.uint8)
            if len(buffer) != total:
                buffer = torch.nn.functional.pad(buffer, (0, total - len(buffer)))
        else:
            buffer = torch.empty(total, dtype=torch.uint8, device=self._device)
            for (begin, size), tensor in zip(places, tensors, strict=True):
                buffer[begin : begin + size].view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
        self._begin(edge, buffer)
        self._sent = [(work, kept) for work, kept in self._sent if not work.is_completed()]

    def _begin(self, edge: Edge, buffer: torch.Tensor) -> None:
        rank = self._ranks[self._spans[edge.target]]
        with exchange():
            self._sent.append((dist.isend(buffer, rank, group=self._groups.get(edge), tag=edge.tag), buffer))

    def expect(self, edge: Edge, micro_batch: int) -> None:
        """The message for a micro-batch may come in while something else is computed. In order of the sender."""
        if edge not in self._forms or (edge, micro_batch) in self._expected:
            return
        _, total = self._forms[edge].places()
        if total:
            buffer = torch.empty(total, dtype=torch.uint8, device=self._device)
            self._expected[edge, micro_batch] = (self._receive(edge, buffer), buffer)

    def _receive(self, edge: Edge, buffer: torch.Tensor) -> dist.Work:
        rank = self._ranks[self._spans[edge.source]]
        with exchange():
            return dist.irecv(buffer, rank, group=self._groups.get(edge), tag=edge.tag)

    def receive(self, edge: Edge, micro_batch: int) -> list[Any]:
        """What `send` was given there."""
        if edge not in self._forms:
            size = torch.zeros(1, dtype=torch.int64, device=self._device)
            self._wait(self._receive(edge, size))
            text = torch.empty(int(size), dtype=torch.uint8, device=self._device)
            self._wait(self._receive(edge, text))
            self._forms[edge] = pickle.loads(text.cpu().numpy().tobytes())
        self.expect(edge, micro_batch)
        form = self._forms[edge]
        if (edge, micro_batch) not in self._expected:
            return form.unpack(torch.empty(0, dtype=torch.uint8, device=self._device))
        work, buffer = self._expected.pop((edge, micro_batch))
        self._wait(work)
        return form.unpack(buffer)

    def finish(self) -> None:
        """Everything that was sent has left this process."""
        for work, _ in self._sent:
            self._wait(work)
        self._sent.clear()

    @staticmethod
    def _wait(work: dist.Work) -> None:
        with exchange():
            work.wait()
