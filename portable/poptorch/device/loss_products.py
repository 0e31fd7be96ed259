"""The matrix products of a fused loss (linear_cross_entropy.py), by whatever is fastest for their type here."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch

from . import float32_products, half_products
from .native import wide_products


class LossProducts(NamedTuple):
    """Products of float32 matrices with float32 sums, the operands rounded to `dtype` unless that is None."""

    dtype: torch.dtype | None
    native: bool

    def prepared(self, operand: torch.Tensor) -> torch.Tensor:
        """`operand`, a device's weight perhaps, rounded once for several products unless they do it by themselves."""
        if not self._rounds:
            return operand
        return half_products.rounded_weight(operand, self.dtype).float()

    def rounded(self, operand: torch.Tensor) -> torch.Tensor:
        """`operand` rounded unless the product does it by itself."""
        return operand.to(self.dtype).float() if self._rounds else operand

    def mm(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        """out = a b, of operands that were rounded."""
        if self._by_kernel(a, b):
            wide_products.multiply(a, b, out, dtype=self.dtype)
            return
        with self._context():
            torch.mm(a, b, out=out)

    def addmm(self, total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: int) -> None:
        """total = beta total + a b, of operands that were rounded; beta: 0 or 1."""
        if self._by_kernel(a, b):
            wide_products.multiply(a, b, total, bool(beta), self.dtype)
            return
        with self._context():
            total.addmm_(a, b, beta=beta)

    @property
    def take_bfloat16(self) -> bool:
        """Whether mm() and addmm() take operands of bfloat16, too."""
        return self._inside and wide_products.available()

    def _by_kernel(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        if self.dtype == torch.float32:
            return self.native and float32_products.are_large(*a.shape, b.shape[1])
        return self.take_bfloat16

    @property
    def _rounds(self) -> bool:
        """Whether operands have to be rounded before a product."""
        return self.dtype not in (None, torch.float32) and not self._inside

    @property
    def _inside(self) -> bool:
        return self.native and self.dtype == torch.bfloat16

    def _context(self) -> contextlib.AbstractContextManager:
        return half_products.operands_rounded_inside() if self._inside else contextlib.nullcontext()
