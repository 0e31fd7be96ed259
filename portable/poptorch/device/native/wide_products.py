"""Matrix products with float32 results, of operands that are rounded to bfloat16 or are of float32.

Torch's library has none of the first kind. Its products of the second kind are slow on some CPUs: float32_products.py
knows.
"""

from __future__ import annotations

import ctypes

import torch

from .. import half_units
from . import library


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("row", "column")),
        ("narrow", ctypes.c_bool),
    ]


class _Product(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("left", "right")),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("out_row", "rows", "columns", "depth")),
        ("add", ctypes.c_bool),
        *((name, ctypes.c_void_p) for name in ("packed", "scratch")),
    ]


_TYPES = {torch.float32: 0, torch.bfloat16: 2}  # as Type in kernels.h


def available(dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether the library is there and this processor has instructions for products of `dtype`.

    They are AVX-512 for float32 and AVX512_BF16 for bfloat16, and no better ones (AMX).
    """
    found = library()
    if found is None or not found.poptorch_multiplies(_TYPES[dtype]):
        return False
    return dtype == torch.float32 or not half_units.has_tiles()


def multiply(
    left: torch.Tensor,
    right: torch.Tensor,
    out: torch.Tensor,
    add: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """out = left right, or out += left right; returns it.

    Args:
        left: (M, K); right: (K, N): float32, or, for products of that, bfloat16. Transposed ones are read as they lie;
            others whose elements do not follow each other in either dimension are copied first.
        out: (M, N) float32, whose rows are contiguous.
        dtype: what operands are rounded to on the way in: bfloat16, or float32.
    """
    (rows, depth), columns = left.shape, right.shape[1]
    left, right = _readable(left), _readable(right)
    operands = (_Matrix(each.data_ptr(), *each.stride(), each.dtype == torch.bfloat16) for each in (left, right))
    call = _Product(*operands, out.data_ptr(), out.stride(0), rows, columns, depth, add)
    if not depth:
        return out if add else out.zero_()
    found, threads = library(), torch.get_num_threads()
    sizes = ctypes.c_int64(), ctypes.c_int64()
    found.poptorch_product_memory(ctypes.byref(call), _TYPES[dtype], threads, *map(ctypes.byref, sizes))
    memory = [torch.empty(size.value, dtype=torch.uint8) for size in sizes]  # torch's allocator aligns to 64
    call.packed, call.scratch = (each.data_ptr() for each in memory)
    found.poptorch_product(ctypes.byref(call), _TYPES[dtype], threads)
    return out


def _readable(operand: torch.Tensor) -> torch.Tensor:
    return operand if 1 in operand.stride() else operand.contiguous()
