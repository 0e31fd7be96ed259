"""Causal attention with a bias of the scores, by the CPU's kernels, which add it to the scores of a tile.

The bias is ALiBi's, one of each key such as a mask of padding, or both. Where another kernel serves it goes in as
columns of queries and keys instead (alibi.py, key_bias.py), which are copies and make each head's products longer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import native
from .dropout_attention import NativeAttention
from .half_products import narrow

_MOST = 1e30  # of a bias, for infinity less itself is no number: a key that is lowered by this much is not seen


def biased_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    of_keys: torch.Tensor | None,
    slopes: tuple[float, ...] | None,
    scale: float,
    dropout: float = 0.0,
    dtype: torch.dtype | None = None,
    keys: Sequence[int] | None = None,
) -> torch.Tensor:
    """dropout(softmax(causal(query key^T scale + bias))) value: (B, H, T, D) each -> (B, H, T, D).

    Needs the kernels. `dropout` and `keys` are as in dropout_attention().

    Args:
        of_keys: (n, 1, 1, T), what is added to the scores of each key, for n equal parts of the samples.
        slopes: of the heads, for ALiBi: slopes[h] (j - i) is added to the score of query i and key j.
        dtype: the 16-bit type that operands and result are rounded to, or None.
    """
    operands = [query, key, value] if dtype is None else [narrow(each, dtype) for each in (query, key, value)]
    if not native.serves(*operands, narrow=True):  # float16
        operands = [operand.float() for operand in operands]
    if keys is None:
        keys = (native.new_key() if dropout else 0,)
    bias = None if of_keys is None else of_keys.float().clamp(-_MOST, _MOST).flatten(1).contiguous()
    context = NativeAttention.apply(*operands, dropout, scale, tuple(keys), slopes, bias)
    return context if dtype is None else context.to(dtype)
