"""The kernels in C++ as functions: attention with dropout, dropout in a residual sum, GELU. Start with kernels.h.

Matrix products, cross-entropy and Adam's updates are in modules of their own.

`make` builds a library beside this file, with a C++ compiler and nothing of torch: tensors are handed over as pointers
and strides, and torch's threads do the work. device/ and engine/ import this. Without a library available() is False
and plain torch serves, with its generator's numbers. POPTORCH_PORTABLE_KERNELS names another one, or is "none".
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ... import notices

LIBRARY = Path(__file__).with_name("poptorch_kernels.so")
VARIABLE = "POPTORCH_PORTABLE_KERNELS"
VERSION = 12  # of the structures below and of the random numbers, as in kernels.h
PHILOX, TORCH = "philox 1", "torch"  # generators of dropout: the kernels' with its version, and torch's
_GELU_PART = 1 << 16  # elements that a thread works on at a time, in 8 to 64 rows; each part has sums of its own
HINT = "run `make` in the repository again"


class _View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "row"))]


_VIEWS = ("query", "key", "value", "out", "grad_out", "grad_query", "grad_key", "grad_value")
_SIZES = ("samples_per_key", "samples_per_bias", "batch", "heads", "length", "width", "value_width")


class _Attention(ctypes.Structure):
    _fields_ = [
        *((name, _View) for name in _VIEWS),
        *((name, ctypes.c_void_p) for name in ("log_sums", "scratch", "keys", "slopes", "bias", "grad_bias")),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_float),
        ("threshold", ctypes.c_uint32),
        ("narrow", ctypes.c_bool),
    ]


class _Residual(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "residual", "out")),
        ("key", ctypes.c_uint64),
        ("count", ctypes.c_int64),
        ("threshold", ctypes.c_uint32),
    ]


class _Gelu(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "grad", "bias", "out", "sums", "grad_bias")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "part")),
        *((name, ctypes.c_bool) for name in ("by_tanh", "narrow")),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels' library, if there is one of this version."""
    wanted = os.environ.get(VARIABLE, "")
    path = Path(wanted) if wanted else LIBRARY
    if wanted == "none" or not (wanted or path.is_file()):
        return None
    try:
        found = ctypes.CDLL(str(path))
        version = found.poptorch_kernels_version()
    except (OSError, AttributeError) as error:
        notices.once("kernels", f"The kernels cannot be loaded ({error}): plain torch serves; {HINT}.")
        return None
    if version != VERSION:
        message = f"{path} is version {version} of the kernels, not {VERSION}: plain torch serves; {HINT}."
        notices.once("kernels", message)
        return None
    found.poptorch_kernels_choose.restype = ctypes.c_char_p
    found.poptorch_kernels_choose.argtypes = [ctypes.c_char_p]
    found.poptorch_attention_scratch.restype = ctypes.c_int64
    found.poptorch_attention_scratch.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool]
    found.poptorch_attention.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool]
    found.poptorch_residual.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    found.poptorch_gelu.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    found.poptorch_cross_entropy.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    found.poptorch_adam.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    found.poptorch_multiplies.restype = ctypes.c_bool
    found.poptorch_multiplies.argtypes = [ctypes.c_int32]
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    found.poptorch_product_memory.argtypes = [pointer, ctypes.c_int32, integer, pointer, pointer]
    found.poptorch_product.argtypes = [pointer, ctypes.c_int32, integer]
    return found


def available() -> bool:
    """Whether there is a library of this version."""
    return library() is not None


def serves(*tensors: torch.Tensor, narrow: bool = False) -> bool:
    """Whether the kernels take tensors of these types: all of float32, or (only attention and GELU) all `narrow`.

    Narrow is bfloat16, in memory alone: the arithmetic is that of float32. Only the products inside attention have
    operands of bfloat16 then, with float32 sums, on a CPU with AVX512_BF16.
    """
    types = {tensor.dtype for tensor in tensors}
    fit = types == {torch.float32} or (narrow and types == {torch.bfloat16})
    return fit and all(tensor.device.type == "cpu" for tensor in tensors) and available()


def generator() -> str:
    """The generator that dropout in float32 on a CPU has here: PHILOX or TORCH."""
    return PHILOX if available() else TORCH


def asked_by() -> str | None:
    """The setting that decides about the generator, if there is one: "POPTORCH_PORTABLE_KERNELS=none"."""
    word = os.environ.get(VARIABLE)
    return f"{VARIABLE}={word}" if word else None


def choose(name: str | None) -> str | None:
    """Take the kernels for one kind of processor, for tests; None: the fastest.

    They are "avx512_bf16", "avx512", "avx2" and "portable". Returns the name, or None where this processor does not run
    them. Needs the library.
    """
    found = library().poptorch_kernels_choose(name.encode() if name else None)
    return found.decode() if found else None


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """One block of Philox 4x32-10, for tests: four words of 32 bits. Needs the library."""
    words = ctypes.c_uint32 * 4
    result = words()
    library().poptorch_philox(words(*counter), (ctypes.c_uint32 * 2)(*key), result)
    return tuple(result)


def new_key() -> int:
    """A key for one call, from the CPU's generator: as its state is kept and restored, so are the masks."""
    return int(torch.empty((), dtype=torch.int64).random_())


def threshold(dropout: float) -> int:
    """Of 65536 values those that keep an element: dropout, a probability below 1, in steps of 1 / 65536."""
    return max(1, round((1.0 - dropout) * 65536))


def keeps(dropout: float) -> float:
    """The share that is kept: what is kept is divided by it."""
    return threshold(dropout) / 65536


def attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    dropout: float,
    keys: Sequence[int],
    slopes: Sequence[float] | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention with dropout.

    Args:
        query, key: (B, H, T, D); value: (B, H, T, E), of float32 or all of bfloat16. Views of one projection are read
            where they are.
        keys: from new_key(), one for each of as many equal parts of the samples.
        slopes: ALiBi's of the heads: slopes[h] (j - i) is added to the scaled score of query i and key j.
        bias: (n, T) float32, what is added to the scores of each key, for n equal parts of the samples.
    Returns:
        (B, H, T, E) of their type, which is a view of (B, T, H, E), and log2 of the sums of exponentials (B, H, T).
    """
    samples, heads, length, _ = query.shape
    query, key, value = (_rows(tensor) for tensor in (query, key, value))
    out = torch.empty(samples, length, heads, value.shape[-1], dtype=query.dtype, device="cpu").transpose(1, 2)
    log_sums = torch.empty(samples, heads, length, dtype=torch.float32, device="cpu")
    views = {"query": query, "key": key, "value": value, "out": out}
    _attention(views, log_sums, scale, dropout, keys, slopes, bias, None, backward=False)
    return out, log_sums


def attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    log_sums: torch.Tensor,
    scale: float,
    dropout: float,
    keys: Sequence[int],
    slopes: Sequence[float] | None = None,
    bias: torch.Tensor | None = None,
    grad_bias: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Gradients of query, key and value. `out` and `log_sums` are what attention_forward() gave for `keys`.

    That of the bias is written to `grad_bias`, (B, H, T) float32, of each sample and head alone.
    """
    query, key, value, out, grad = tensors = [_rows(tensor) for tensor in (query, key, value, out, grad)]
    grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
    views = dict(zip(_VIEWS, [*tensors, *grads], strict=True))
    _attention(views, log_sums, scale, dropout, keys, slopes, bias, grad_bias, backward=True)
    return grads


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its last dimension contiguous; itself if it is."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _attention(
    views: dict[str, torch.Tensor],
    log_sums: torch.Tensor,
    scale: float,
    dropout: float,
    keys: Sequence[int],
    slopes: Sequence[float] | None,
    bias: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    backward: bool,
) -> None:
    query = views["query"]
    samples, heads, length, width = query.shape
    call = _Attention()
    for name, tensor in views.items():
        setattr(call, name, _View(tensor.data_ptr(), *tensor.stride()[:3]))
    held = (ctypes.c_uint64 * len(keys))(*keys)
    call.keys, call.samples_per_key = ctypes.addressof(held), samples // len(keys)
    if slopes is not None:
        held_slopes = (ctypes.c_float * heads)(*slopes)
        call.slopes = ctypes.addressof(held_slopes)
    if bias is not None:
        call.bias, call.samples_per_bias = bias.data_ptr(), samples // len(bias)
    if grad_bias is not None:
        call.grad_bias = grad_bias.data_ptr()
    call.log_sums = log_sums.data_ptr()
    call.batch, call.heads, call.length, call.width = samples, heads, length, width
    call.value_width = views["value"].shape[-1]
    call.scale, call.threshold, call.narrow = scale, threshold(dropout), query.dtype == torch.bfloat16
    found, threads = library(), torch.get_num_threads()
    size = found.poptorch_attention_scratch(ctypes.byref(call), threads, backward)
    scratch = torch.empty(size, dtype=torch.float32, device="cpu")
    call.scratch = scratch.data_ptr()
    found.poptorch_attention(ctypes.byref(call), threads, backward)


def dropout_add(x: torch.Tensor, residual: torch.Tensor | None, dropout: float, keys: Sequence[int]) -> torch.Tensor:
    """residual + dropout(x), or dropout(x): contiguous float32 tensors of one shape, with a key for each equal part."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    count = x.numel() // len(keys)
    for part, key in enumerate(keys):
        start = part * count * x.element_size()
        other = None if residual is None else residual.data_ptr() + start
        call = _Residual(x.data_ptr() + start, other, out.data_ptr() + start, key, count, threshold(dropout))
        library().poptorch_residual(ctypes.byref(call), torch.get_num_threads())
    return out


def gelu_forward(x: torch.Tensor, bias: torch.Tensor | None, by_tanh: bool) -> torch.Tensor:
    """gelu(x + bias), exactly or by tanh: contiguous (..., N) of float32 or bfloat16, and float32 (N,), or no bias."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _gelu(x, bias, None, out, None, by_tanh)
    return out


def gelu_backward(
    grad: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, bias_too: bool, by_tanh: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of x and, if `bias_too`, of the bias, for `grad`, that of the result: contiguous, and of x's type."""
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_bias = torch.empty_like(bias) if bias_too else None
    _gelu(x, bias, grad, grad_x, grad_bias, by_tanh)
    return grad_x, grad_bias


def _gelu(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    grad: torch.Tensor | None,
    out: torch.Tensor,
    grad_bias: torch.Tensor | None,
    by_tanh: bool,
) -> None:
    width = x.shape[-1]
    rows = x.numel() // max(1, width)
    part = min(64, max(8, _GELU_PART // max(1, width)))
    # The kernel adds up the bias's gradient wherever there is a bias and a gradient.
    sums = None
    if grad is not None and bias is not None:
        sums = torch.empty(-(-rows // part), width, dtype=torch.float32, device="cpu")
    tensors = (x, grad, bias, out, sums, grad_bias)
    pointers = (None if each is None else each.data_ptr() for each in tensors)
    call = _Gelu(*pointers, rows, width, part, by_tanh, x.dtype == torch.bfloat16)
    library().poptorch_gelu(ctypes.byref(call), torch.get_num_threads())
