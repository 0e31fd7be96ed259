"""ALiBi inside fused attention: the bias of the scores as further columns of queries and keys.

The bias of head h is -m_h (i - j) for query i and key j. Of it m_h i is the same for all keys of a query, so that the
softmax does not see it; m_h j is a product of a number of the query with one of the key. Both are split in two, such
that each part is exact in 16 bits: j into a multiple of 256 and a rest, m_h / scale into a bfloat16 and what it lacks.
That makes four columns, four of zeros round the width up for the kernels, and no (T, T) bias is held.
"""

from __future__ import annotations

import functools

import torch
from torch._subclasses.fake_tensor import FakeTensor

COLUMNS = 8
LONGEST = 1 << 16  # positions beyond are not exact in 16 bits
_PART = 256


def with_alibi(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slopes: tuple[float, ...], scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, H, T, D) each -> (B, H, T, D + COLUMNS) each, whose products times `scale` have the bias in them.

    The kernels want one width for all three, so that the value has columns of zeros.
    """
    length = query.shape[-2]
    columns = _columns.__wrapped__ if isinstance(query, FakeTensor) else _columns  # what is kept must be real
    of_queries, of_keys = columns(slopes, scale, length, query.dtype, query.device)
    shape = (*query.shape[:-1], COLUMNS)
    query = torch.cat([query, of_queries.expand(shape)], -1)
    key = torch.cat([key, of_keys.expand(shape)], -1)
    return query, key, torch.nn.functional.pad(value, (0, COLUMNS))


@functools.lru_cache(maxsize=32)
def _columns(
    slopes: tuple[float, ...], scale: float, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(H, 1, COLUMNS) of the queries, (length, COLUMNS) of the keys. Kept: on a GPU making them would wait for it."""
    with torch.inference_mode(False):  # whoever asks first
        return _made(slopes, scale, length, dtype, device)


def _made(
    slopes: tuple[float, ...], scale: float, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    place = torch.arange(length) - length // 2  # from the middle: smaller numbers are more exact
    high = torch.div(place, _PART, rounding_mode="floor") * _PART
    low = place - high
    keys = torch.stack([high, low, high, low], 1)  # (T, 4)
    whole = torch.tensor(slopes, dtype=torch.float64) / scale
    coarse = whole.to(torch.bfloat16).double()
    queries = torch.stack([coarse, coarse, whole - coarse, whole - coarse], 1)  # (H, 4)
    padded = (torch.nn.functional.pad(part.to(dtype), (0, COLUMNS - 4)) for part in (queries, keys))
    of_queries, of_keys = (part.to(device) for part in padded)
    return of_queries.unsqueeze(1), of_keys
