"""A bias of the scores that depends on the key alone, such as a mask of padding, inside fused attention.

What is added to the scores of key j, whatever the query, is a product of 1 in the query with the bias in the key: one
column more of both. Of operands in 16 bits there are two, the bias in bfloat16 and what that lacks. Zeros round the
width up for the kernels, and no (B, H, T, T) scores are held.
"""

from __future__ import annotations

import torch

COLUMNS = 8
_MOST = 6e4  # what 16 bits hold; a score that is lowered by this much vanishes


def with_key_bias(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, scale: float, narrow: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, H, T, D) each -> (B, H, T, D + COLUMNS) each, whose products times `scale` have the bias in them.

    Args:
        bias: (B or 1, 1, 1, T).
        narrow: the product is of operands in 16 bits.
    """
    column = bias.transpose(-1, -2) / scale  # (B or 1, 1, T, 1)
    parts = [column]
    if narrow or column.dtype in (torch.float16, torch.bfloat16):
        column = column.clamp(-_MOST, _MOST)
        coarse = column.to(torch.bfloat16).to(column.dtype)
        parts = [coarse, column - coarse]
    of_keys = torch.nn.functional.pad(torch.cat(parts, -1), (0, COLUMNS - len(parts)))
    of_queries = query.new_zeros(COLUMNS)
    of_queries[: len(parts)] = 1.0
    shape = (*query.shape[:-1], COLUMNS)
    query = torch.cat([query, of_queries.expand(shape)], -1)
    key = torch.cat([key, of_keys.to(key.dtype).expand(shape)], -1)
    return query, key, torch.nn.functional.pad(value, (0, COLUMNS))
