"""An optimizer over several processes: shards of states, and what depends on the parameters of all of them.

Replicated tensor sharding (TensorLocations.setOptimizerLocation): of a parameter that is large enough each process
of the group keeps the states of one shard only, updates it, and gets the others' shards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist

from ..processes.collecting import Owned
from ..processes.reduction import exchange, total


class Spread:
    """What one process has of the tensors of an optimizer. Without arguments: everything.

    Args:
        sizes: elements of the parameters that are sharded, by name.
        shards: the processes that share them, which have equal gradients.
        parts: the processes that have the other parameters of the replica.
        elsewhere: names of parameters that another one of these counts in sums over all parameters.
        block: shards begin at multiples of so many elements.
    """

    def __init__(
        self,
        sizes: Mapping[str, int] = {},  # noqa: B006 - never written to
        shards: dist.ProcessGroup | None = None,
        parts: dist.ProcessGroup | None = None,
        elsewhere: Collection[str] = (),
        block: int = 1,
    ):
        self.parts, self.elsewhere = parts, frozenset(elsewhere)
        self._group, self._block = shards, block
        self._sizes = dict(sizes) if shards is not None else {}
        self._processes = 1 if shards is None else dist.get_world_size(shards)
        self._rank = 0 if shards is None else dist.get_rank(shards)

    @property
    def is_alone(self) -> bool:
        """Whether no other process has anything of the parameters or of their states."""
        return self._group is None and self.parts is None

    def own(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The shard that this process updates, 1-D, a view; the tensor as it is if it is not sharded."""
        return self.own_entries(name, tensor, 1)

    def _each(self, name: str) -> int:
        return -(-self._sizes[name] // (self._processes * self._block)) * self._block

    def _gathered(self, name: str, shard: torch.Tensor) -> torch.Tensor:
        """All shards side by side, with what pads the last ones at the end."""
        each = self._each(name)
        whole = torch.empty(each * self._processes, dtype=shard.dtype, device=shard.device)
        if len(shard) == each:
            mine = shard.contiguous()
        else:
            mine = shard.new_zeros(each)
            mine[: len(shard)] = shard
        with exchange():
            dist.all_gather_single(whole, mine, group=self._group)
        return whole

    def owned(self, name: str, state: torch.Tensor, shape: torch.Size, elements: int = 1) -> Owned:
        """A state of this shape of a parameter, as this process has it: whole, or the shard of it.

        `elements` of the parameter belong to an entry of the state.
        """
        if name not in self._sizes:
            return Owned(shape, state.detach())
        return Owned(shape, state.detach(), self._rank * self._each(name) // elements)

    def own_entries(self, name: str, state: torch.Tensor, elements: int) -> torch.Tensor:
        """What `own` is for a parameter, of a whole state of which an entry belongs to so many elements."""
        if name not in self._sizes:
            return state
        each = self._each(name) // elements
        return state.view(-1)[self._rank * each : (self._rank + 1) * each]

    def spread(self, parameters: Mapping[str, torch.Tensor], names: Sequence[str]) -> None:
        """The updated shards of `names` reach every process's `parameters`."""
        for name in names:
            if name in self._sizes:
                tensor = parameters[name].view(-1)
                tensor.copy_(self._gathered(name, self.own(name, tensor))[: self._sizes[name]])

    def added(self, sums: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Sums over the parameters of the replica from those of the parameters that this process counts."""
        return total(sums, self.parts)

    def squares(self, names: Sequence[str], squares: torch.Tensor) -> torch.Tensor:
        """Sums of squares of whole tensors, (n,), from those of what this process has of them."""
        if not self._sizes:
            return squares
        sharded = torch.tensor([name in self._sizes for name in names], device=squares.device)
        return torch.where(sharded, total([squares], self._group)[0], squares)
