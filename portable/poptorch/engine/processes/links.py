"""How the processes that hold a replica together reach each other."""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist

from .channels import Channels
from .reduction import exchange

Form = tuple[torch.Size, torch.dtype]


@dataclasses.dataclass(frozen=True)
class Links:
    """Of one of these processes, number `part`.

    Args:
        replica: their group, and `ranks` their numbers in torch.distributed.
        ties: for each parameter that several of them use the group of those.
    """

    channels: Channels
    replica: dist.ProcessGroup
    ranks: list[int]
    part: int
    ties: dict[str, dist.ProcessGroup]

    def share(self, part: int, tensors: list[torch.Tensor], forms: list[Form] | None = None) -> list[torch.Tensor]:
        """Tensors of the host that process `part` has, in all of them; `forms` are their shapes and types if known.

        All must call it. Raises poptorch.Error if one of them has gone.
        """
        source = self.ranks[part]
        with exchange():
            if forms is None:
                told = [[(tensor.shape, tensor.dtype) for tensor in tensors]]
                dist.broadcast_object_list(told, source, group=self.replica)
                forms = told[0]
            found = tensors if part == self.part else [torch.empty(shape, dtype=dtype) for shape, dtype in forms]
            found = [tensor.contiguous() for tensor in found]
            for tensor in found:
                if tensor.numel():
                    dist.broadcast(tensor.reshape(-1).view(torch.uint8), source, group=self.replica)
        return found
