"""Numbers in 8 bits with a scale for each block of neighbours: optimizer states of a quarter of the size.

Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization": a block is divided by its largest number, and each
quotient becomes the nearest of 256 values that lie denser towards 0, over seven powers of ten. Largest is meant without
its sign, which the scale keeps: -1 is not among the values, and the largest number comes back as it was.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from training.optimizer_memory import BLOCK

_TENS = 7  # powers of ten that the values span
_DROPPED = 13  # last bits of a float32 that no code depends on; 10 of its fraction are left


@functools.lru_cache(maxsize=None)
def values(signed: bool) -> Tensor:
    """The 256 values of the codes 0 to 255, ascending: 0, 1 and others between -1 (0 without sign) and 1.

    An exponent costs a bit for each power of ten, and what bits are left divide [0.1, 1] evenly, the middle of each
    part is a value: 64 parts, 32, …, 1 on either side of 0 with a sign, twice as many on one side without.
    """
    found = [0.0, 1.0]
    for exponent in range(_TENS):
        parts = 2 ** (_TENS - 1 - exponent + (not signed))
        middles = [0.1 + 0.9 * (part + 0.5) / parts for part in range(parts)]
        found += [sign * middle * 10.0**-exponent for middle in middles for sign in ((1, -1) if signed else (1,))]
    return torch.tensor(sorted(found), dtype=torch.float64).float()


@functools.lru_cache(maxsize=None)
def _codes(signed: bool) -> Tensor:
    """The code of the nearest value to each float32, by its sign, exponent and first bits: (2^19,) uint8.

    A search among the values would take ten times as long. What is positive stays so without sign: a second moment of
    0 would be divided by.
    """
    patterns = torch.arange(1 << (32 - _DROPPED), dtype=torch.int64) << _DROPPED
    patterns += 1 << (_DROPPED - 1)  # the middle of the numbers that begin so
    numbers = torch.where(patterns >= 1 << 31, patterns - (1 << 32), patterns).int().view(torch.float32)
    each = values(signed)
    borders = (each[1:] + each[:-1]) / 2
    if not signed:
        borders[0] = 0.0
    codes = torch.bucketize(numbers, borders).to(torch.uint8)
    codes[0] = codes[1 << (31 - _DROPPED)] = each.tolist().index(0.0)  # 0, and what is as good as that
    return codes


def quantize(numbers: Tensor, codes: Tensor, scales: Tensor, signed: bool) -> None:
    """Float32 `numbers`, (n,), into `codes`, uint8 (n,), and `scales`, float32 (ceil(n / BLOCK),)."""
    blocks = _blocks(numbers)  # (blocks, BLOCK)
    least, most = blocks.amin(dim=1), blocks.amax(dim=1)  # torch.aminmax takes five times as long
    scales.copy_(torch.where(most >= -least, most, least))
    quotients = blocks / torch.where(scales == 0.0, torch.ones_like(scales), scales)[:, None]
    places = (quotients.view(torch.int32) >> _DROPPED).bitwise_and_((1 << (32 - _DROPPED)) - 1)
    found = _codes(signed).to(numbers.device).index_select(0, places.view(-1))
    codes.copy_(found[: len(numbers)])


def dequantize(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """The numbers that codes and scales stand for: (n,) float32, new."""
    numbers = values(signed).to(codes.device).index_select(0, codes.int())
    blocks = _blocks(numbers)
    return blocks.mul_(scales[:, None]).view(-1)[: len(codes)]


def _blocks(numbers: Tensor) -> Tensor:
    """(n,) -> (ceil(n / BLOCK), BLOCK), with zeros at the end."""
    missing = -len(numbers) % BLOCK
    whole = torch.cat([numbers, numbers.new_zeros(missing)]) if missing else numbers
    return whole.view(-1, BLOCK)
