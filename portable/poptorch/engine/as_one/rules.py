"""How an operation of a micro-batch computes several at once.

A value that differs between micro-batches is stacked, (n, …) for n of them; one that does not, such as a weight, is
shared. Each rule gives for every micro-batch what the operation gives for it alone; what they have no rule of their own
for goes through torch.vmap, whose batching rules are those of the operator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...device import memory, native
from ..tracing.writes import written
from .streams import Streams


class Rule(torch.nn.Module):
    """An operation on stacked and shared operands, which are given in the order of `operands`.

    Args:
        node: the operation on one micro-batch.
        stacked: names of the values that are stacked.
    """

    def __init__(self, node: torch.fx.Node, stacked: frozenset[str]):
        super().__init__()
        self.operation: Callable[..., Any] = node.target
        self._leaves, self._structure = pytree.tree_flatten((node.args, node.kwargs))
        self._places = [place for place, leaf in enumerate(self._leaves) if isinstance(leaf, torch.fx.Node)]
        self.operands: tuple[torch.fx.Node, ...] = tuple(self._leaves[place] for place in self._places)
        self.stacked = tuple(operand.name in stacked for operand in self.operands)
        self._leaves = [None if isinstance(leaf, torch.fx.Node) else leaf for leaf in self._leaves]
        self._makes = not written([node], {})  # new tensors, and changes none
        self._batches = True  # as far as is known

    @property
    def sure(self) -> bool:
        """Whether there is a way to compute this in any case: torch may have no rule for a change in place."""
        return self._makes or type(self) is not Rule

    def call(self, operands: Sequence[Any], **further: Any) -> Any:
        """The operation with these operands in the places of its own, and `further` arguments."""
        leaves = list(self._leaves)
        for place, operand in zip(self._places, operands, strict=True):
            leaves[place] = operand
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        return self.operation(*args, **kwargs, **further)

    def one(self, operands: Sequence[Any], number: int) -> Any:
        """What the operation gives for micro-batch `number`."""
        pairs = zip(operands, self.stacked, strict=True)
        return self.call([operand[number] if stacked else operand for operand, stacked in pairs])

    def vmapped(self, operands: Sequence[Any]) -> Any:
        """What torch's batching rule for the operation gives. RuntimeError if it has none and one can do without."""
        differing = [operand for operand, stacked in zip(operands, self.stacked, strict=True) if stacked]

        def alone(*parts: torch.Tensor) -> Any:
            rest = iter(parts)
            pairs = zip(operands, self.stacked, strict=True)
            return self.call([next(rest) if stacked else operand for operand, stacked in pairs])

        with _without_fallback() if self._makes else _without_warnings():
            return torch.vmap(alone)(*differing)

    def one_by_one(self, operands: Sequence[Any]) -> Any:
        """What the operation gives for each micro-batch, stacked."""
        count = next(operand.shape[0] for operand, stacked in zip(operands, self.stacked, strict=True) if stacked)
        return stack_results([self.one(operands, number) for number in range(count)])

    def forward(self, *operands: Any) -> Any:
        """The results, stacked."""
        if self._batches:
            try:
                return self.vmapped(operands)
            except RuntimeError as error:  # there is no such rule, or the operation fails, which it then does again
                if not self._makes or memory.ran_out(error):
                    raise
                self._batches = False
        return self.one_by_one(operands)


@contextlib.contextmanager
def _without_fallback() -> Iterator[None]:
    """In here torch.vmap fails where it would compute one after the other and warn of that, in each call."""
    before = torch._C._functorch._is_vmap_fallback_enabled()
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(before)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """In here torch.vmap does not warn in each call, past Python's filters, that it computes one after another."""
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_warning_enabled(True)  # torch does not tell what it was


class Unchanged(Rule):
    """Operations that treat leading dimensions alike: of whatever stands before the last ones they make nothing."""

    def forward(self, *operands: Any) -> Any:
        """The results, stacked."""
        return self.call(operands)


class Pointwise(Rule):
    """Operations element by element, whose operands are broadcast from their last dimensions on."""

    def forward(self, *operands: Any) -> Any:
        """The results, stacked."""
        pairs = list(zip(operands, self.stacked, strict=True))
        ranks = [operand.dim() - stacked for operand, stacked in pairs]
        if len({operand.dtype for operand in operands}) > 1 and 0 in ranks:
            return self.vmapped(operands)  # a tensor without dimensions has less of a say in the type of the result
        rank = max(ranks)
        return self.call(
            [
                operand.reshape(-1, *[1] * (rank - own), *operand.shape[1:]) if stacked and own < rank else operand
                for (operand, stacked), own in zip(pairs, ranks, strict=True)
            ]
        )


class Linear(Rule):
    """x W^T + b with a shared weight: all rows of all micro-batches in one product."""

    def forward(self, x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        """(n, …, K) -> (n, …, N)"""
        result = self.call((x.reshape(-1, x.shape[-1]), *weights))
        return result.view(*x.shape[:-1], result.shape[-1])


class Product(Rule):
    """torch.matmul and its like, which multiply whatever matrices stand behind leading dimensions that fit."""

    def forward(self, *operands: torch.Tensor) -> torch.Tensor:
        """The results, stacked."""
        ranks = [operand.dim() - stacked for operand, stacked in zip(operands, self.stacked, strict=True)]
        if self.stacked == (True, False) and ranks[1] == 2 <= ranks[0]:
            x = operands[0]
            return self.call((x.flatten(0, -2), operands[1])).unflatten(0, x.shape[:-1])
        if self.stacked == (True, True) and ranks[0] == ranks[1] >= 2:
            return self.call(operands)
        return self.one_by_one(operands)


class Samples(Rule):
    """Operations on samples that do not know of each other, such as attention: (n, B, …) is (n B, …) to them."""

    def forward(self, *operands: torch.Tensor) -> torch.Tensor:
        """The results, stacked."""
        pairs = list(zip(operands, self.stacked, strict=True))
        sizes = {operand.shape[int(stacked)] for operand, stacked in pairs}
        if any(operand.dim() != 4 + stacked for operand, stacked in pairs) or len(sizes) > 1:
            return super().forward(*operands)  # one sample of this may stand for all of that
        count = operands[0].shape[0]
        return self.call(joined_samples(operands, self.stacked, count)).unflatten(0, (count, -1))


class MaskedSamples(Rule):
    """Attention with a mask behind query, key and value, which is broadcast to the scores (B, H, T, S)."""

    def forward(self, *operands: torch.Tensor) -> torch.Tensor:
        """The results, stacked."""
        *samples, mask = operands
        count, size = samples[0].shape[:2]
        if any(operand.dim() != 5 or operand.shape[1] != size for operand in samples):
            return super().forward(*operands)
        if self.stacked[3]:
            mask = mask.reshape(count, *[1] * (5 - mask.dim()), *mask.shape[1:])
        scores = mask.shape[-3:] if mask.dim() > 2 else (1, *mask.shape)
        mask = mask.expand(count, size, *scores).flatten(0, 1)
        return self.call([*joined_samples(samples, self.stacked[:3], count), mask]).unflatten(0, (count, -1))


class LinearCrossEntropy(Rule):
    """Projection and cross-entropy of linear_cross_entropy.py, which keeps the losses apart itself."""

    def forward(self, *operands: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (n,) and argmaxes (n, rows)."""
        count = operands[0].shape[0]
        losses, best = self.call(operands, groups=count)
        return losses, best.view(count, -1)


class OneByOne(Rule):
    """Operations whose gradient is not that of what they compute: micro-batch by micro-batch."""

    def forward(self, *operands: Any) -> Any:
        """The results, stacked."""
        return self.one_by_one(operands)


class Drawing(Rule):
    """Operations that draw random numbers: micro-batch by micro-batch, each from its own stream."""

    def forward(self, streams: Streams, *operands: Any) -> tuple[Any, Streams]:
        """The results, stacked, and the streams afterwards."""
        results, streams = streams.draw(lambda number: self.one(operands, number))
        return stack_results(results), streams


class Dropout(Drawing):
    """Dropout on a CPU: only the noise is drawn micro-batch by micro-batch. The values are torch's."""

    def __init__(self, node: torch.fx.Node, stacked: frozenset[str]):
        super().__init__(node, stacked)
        self._dropped = float(node.args[1])

    def forward(self, streams: Streams, x: torch.Tensor) -> tuple[torch.Tensor, Streams]:
        """x with zeros, the rest divided by the share of what is kept; and the streams afterwards."""
        if not self.stacked[0] or x.is_cuda or not x.is_contiguous() or not 0.0 < self._dropped < 1.0:
            return super().forward(streams, x)
        noise = torch.empty_like(x)
        _, streams = streams.draw(lambda number: noise[number].bernoulli_(1.0 - self._dropped))
        return x * noise.div_(1.0 - self._dropped), streams


class Keyed(Drawing):
    """Dropout of device/native, whose numbers follow from a key: that alone is drawn micro-batch by micro-batch."""

    def forward(self, streams: Streams, *operands: torch.Tensor) -> tuple[torch.Tensor, Streams]:
        """The results, stacked, and the streams afterwards."""
        if not self.serves(operands):
            return super().forward(streams, *operands)
        keys, streams = streams.draw(lambda number: native.new_key())
        return self.keyed(operands, keys), streams

    def serves(self, operands: Sequence[torch.Tensor]) -> bool:
        """Whether the kernel takes these operands."""
        return all(self.stacked) and native.serves(*operands, narrow=True)

    def keyed(self, operands: Sequence[torch.Tensor], keys: Sequence[int]) -> torch.Tensor:
        """The results, stacked, of micro-batches with these keys."""
        return self.call(operands, keys=keys)


class KeyedSamples(Keyed):
    """Attention of that kind: (n, B, …) is (n B, …) to it. Behind query, key and value there may be a bias."""

    def serves(self, operands: Sequence[torch.Tensor]) -> bool:
        """Whether the kernel takes these operands."""
        return all(self.stacked[:3]) and native.serves(*operands[:3], narrow=True)

    def keyed(self, operands: Sequence[torch.Tensor], keys: Sequence[int]) -> torch.Tensor:
        """The results, stacked, of micro-batches with these keys."""
        joined = joined_samples(operands, self.stacked, len(keys))
        return super().keyed(joined, keys).unflatten(0, (len(keys), -1))


def joined_samples(operands: Sequence[torch.Tensor], stacked: Sequence[bool], count: int) -> list[torch.Tensor]:
    """(n, B, …) and, of operands that all `count` micro-batches share, (B, …) -> (n B, …) each."""
    pairs = zip(operands, stacked, strict=True)
    return [(each if differs else each.expand(count, *each.shape)).flatten(0, 1) for each, differs in pairs]


def stack_results(results: Sequence[Any]) -> Any:
    """The results of micro-batches, stacked, with the memory of each as it is: heads may lie side by side, say."""
    first = results[0]
    if isinstance(first, (tuple, list)):
        return [stack_results(each) for each in zip(*results, strict=True)]
    order = sorted(range(first.dim()), key=lambda dim: -first.stride(dim))
    stacked = torch.stack([result.permute(order) for result in results])
    return stacked.permute(0, *[1 + order.index(dim) for dim in range(first.dim())])
