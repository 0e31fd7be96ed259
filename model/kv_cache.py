"""A static key/value cache: what attention computed for earlier positions is kept, at the place of its position.

Rows of a batch may have different lengths: each key lies at its own position, whatever the others do, so that a row
never sees padding and its positions count from 0 on its own. Shapes as in gpt2.py, with S slots.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one layer and the positions of the tokens at hand.

    Args:
        keys, values: (B, H, S, D), changed in place. The last slot is for padding: no token's position.
        positions: (B, T) int64, the slot of each token; S - 1 for padding.
        hidden: (B, S) bool, the slots whose tokens are not seen (the model's padding_id); None: all are.
    """

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor, hidden: Tensor | None = None) -> None:
        self.keys, self.values, self.positions, self.hidden = keys, values, positions, hidden

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take (B, H, T, D) new keys and values; all of them, and (B, 1, T, S): which slots each token may see."""
        slots = self.positions[:, None, :, None].expand(keys.shape)
        self.keys.scatter_(2, slots, keys)
        self.values.scatter_(2, slots, values)
        every = torch.arange(self.keys.shape[2], device=keys.device)
        seen = every <= self.positions[:, None, :, None]
        if self.hidden is not None:
            seen = not_padding(seen, self.hidden, self.positions)
        return self.keys, self.values, seen


def not_padding(seen: Tensor, padding: Tensor, queries: Tensor) -> Tensor:
    """What is seen without the keys that are padding. A query that would see nothing sees itself.

    Args:
        seen: (B or 1, 1, T, S) bool.
        padding: (B, S) bool.
        queries: (T,) or (B, T), which of the S keys each query is itself.
    """
    seen = seen & ~padding[:, None, None, :]  # (B, 1, T, S)
    itself = queries.unsqueeze(-1) == torch.arange(padding.shape[1], device=padding.device)  # ((B,) T, S)
    return seen | (itself.unsqueeze(-3) & ~seen.any(dim=-1, keepdim=True))


def token_positions(start: Tensor, count: Tensor, width: int, slots: int) -> Tensor:
    """(B,) first positions and numbers of tokens -> (B, width) positions, slots - 1 where there is no token."""
    column = torch.arange(width, device=start.device)
    return torch.where(column < count[:, None], start[:, None] + column, slots - 1)


def layer_caches(
    keys: Sequence[Tensor], values: Sequence[Tensor], positions: Tensor, hidden: Tensor | None = None
) -> list[LayerCache]:
    """One cache a layer for the tokens at `positions`."""
    return [LayerCache(k, v, positions, hidden) for k, v in zip(keys, values)]
