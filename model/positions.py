"""Positions without parameters: a fixed table that is added to the embeddings, and a bias of the attention scores.

Shapes as in gpt2.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sinusoids(positions: int, width: int) -> Tensor:
    """(positions, width): sin(p / 10000^(2i / width)) in column 2i, the cosine of the same in column 2i + 1.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    columns = torch.arange(width)
    place = torch.arange(positions, dtype=torch.float64).unsqueeze(1)  # in float64: angles reach n_positions
    angles = place / 10000.0 ** ((columns - columns % 2).double() / width)
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos()).to(torch.get_default_dtype())


class SinusoidalEmbedding(nn.Module):
    """The rows of a fixed table, in place of a learned one."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", sinusoids(positions, width), persistent=False)

    def forward(self, position_ids: Tensor) -> Tensor:
        """(B or 1, T) integers -> (B or 1, T, width)"""
        return nn.functional.embedding(position_ids, self.table)


def alibi_slopes(n_head: int) -> list[float]:
    """The slope of each head: 2^(-8 / n), 2^(-16 / n), … 2^-8 for n heads, a power of two.

    Of other numbers the slopes of the next lower power come first, then every other one of its double. (Press et al.
    2022, "Train Short, Test Long", section 3 and its code.)
    """
    power = 1 << (n_head.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * step / power) for step in range(1, power + 1)]
    return slopes + [2.0 ** (-4.0 * step / power) for step in range(1, 2 * (n_head - power), 2)]


def alibi_bias(slopes: Tensor, queries: Tensor, keys: int) -> Tensor:
    """What is added to the scaled scores: the distance of the key times the negative slope of the head.

    Args:
        slopes: (H,), whose dtype the result has.
        queries: (T,) or (B, T) positions of the queries; those of the keys are 0 to keys - 1.

    Returns:
        (H, T, keys) or (B, H, T, keys); positive behind the query, where nothing is seen.
    """
    distance = torch.arange(keys, device=queries.device) - queries.unsqueeze(-1)  # ((B,) T, keys), at most 0
    return distance.to(slopes.dtype).unsqueeze(-3) * slopes.view(-1, 1, 1)
