"""Slices at indices that only the device knows, decoding, and operations on point clouds (spec section 11)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..engine.running.beam_search import beam_search
from ..engine.running.point_cloud import farthest_points, sample_counts
from ..engine.tracing import export as tracing
from ..engine.tracing import opaque
from ..poptorch_core import createPoptorchError


def _dimension(function: str, tensor: torch.Tensor, dim: int) -> int:
    """`dim` of `tensor` counted from the front. poptorch.Error if there is no such dimension."""
    if not isinstance(tensor, torch.Tensor):
        raise createPoptorchError(f"{function} needs a tensor, not {type(tensor)}.")
    if not isinstance(dim, int) or not -tensor.dim() <= dim < tensor.dim():
        raise createPoptorchError(f"{function}: dim must be one of the tensor's {tensor.dim()} dimensions, got {dim}.")
    return dim % tensor.dim()


def _indices(start: torch.Tensor, size: int, step: int, extent: int, name: str) -> torch.Tensor:
    """start, start + step, … below start + size, as int64; a negative start counts from the end."""
    if not isinstance(start, torch.Tensor) or start.is_floating_point() or start.numel() != 1:
        found = f"{start.dtype}{list(start.shape)}" if isinstance(start, torch.Tensor) else type(start)
        raise createPoptorchError(f"{name}: start must be an integer tensor of one element, got {found}.")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= extent:
        raise createPoptorchError(
            f"{name}: size must be an integer from 1 to {extent}, the size of the dimension, got {size}."
        )
    if not isinstance(step, int) or step < 1:
        raise createPoptorchError(f"{name}: step must be an integer of at least 1, got {step}.")
    first = start.reshape(()).long()
    first = torch.where(first < 0, first + extent, first)
    return first + torch.arange(0, size, step, device=start.device)


def dynamic_slice(tensor: torch.Tensor, dim: int, start: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """`tensor[start : start + size : step]` along `dim`, where `start` is a value of the device's.

    Args:
        start: integer tensor of one element, from -d to d - 1 for a dimension of size d.
        size: elements spanned; the result has ceil(size / step).
    Raises poptorch.Error for arguments of another type or range.
    """
    dim = _dimension("dynamic_slice", tensor, dim)
    return tensor.index_select(dim, _indices(start, size, step, tensor.shape[dim], "dynamic_slice"))


def dynamic_update(input: torch.Tensor, src: torch.Tensor, dim: int, start: torch.Tensor, size: int) -> torch.Tensor:
    """A copy of `input` with `src` in the place of `input[start : start + size]` along `dim`.

    `start` is an integer tensor of one element that the device knows; `src` has the shape of `input`, but for `size`
    elements along `dim`. Raises poptorch.Error for arguments of another type or range, or different shapes or dtypes.
    """
    dim = _dimension("dynamic_update", input, dim)
    _dimension("dynamic_update", src, 0)
    if input.dtype != src.dtype:
        raise createPoptorchError(f"dynamic_update: input is {input.dtype} but src is {src.dtype}.")
    indices = _indices(start, size, 1, input.shape[dim], "dynamic_update")
    expected = [*input.shape[:dim], size, *input.shape[dim + 1 :]]
    if list(src.shape) != expected:
        raise createPoptorchError(
            f"dynamic_update: src must have the shape {expected}, that of input but for size elements along dimension "
            f"{dim}, got {list(src.shape)}."
        )
    return input.index_copy(dim, indices, src)


def ctc_beam_search_decoder(
    probs: torch.Tensor, lengths: torch.Tensor, blank: int = 0, beam_width: int = 100, top_paths: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The most probable label sequences under CTC, by prefix beam search (Graves et al. 2006; Hannun et al. 2014).

    Args:
        probs: (T, N, C) log-probabilities.
        lengths: (N,) steps of each sequence.
        blank: the blank's class.
        beam_width: prefixes kept at each step; top_paths of them are returned.
    Returns:
        Log-probabilities (N, top_paths), lengths (N, top_paths), labels (N, top_paths, T) padded with `blank`.
    Raises ValueError for arguments of another shape or range.
    """
    if probs.dim() != 3 or lengths.dim() != 1 or lengths.shape[0] != probs.shape[1]:
        raise ValueError(
            "ctc_beam_search_decoder expects probs of shape (T, N, C) and lengths of shape (N), got "
            f"{tuple(probs.shape)} and {tuple(lengths.shape)}."
        )
    if not 0 <= blank < probs.shape[2]:
        raise ValueError(
            f"ctc_beam_search_decoder: blank must be a class, from 0 to {probs.shape[2] - 1}, got {blank}."
        )
    if not 1 <= top_paths <= beam_width:
        raise ValueError(f"ctc_beam_search_decoder: top_paths must be from 1 to beam_width, got {top_paths}.")

    def decode(probs: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        return beam_search(probs, lengths, blank, beam_width, top_paths)

    if tracing.current() is None:
        return tuple(decode(probs, lengths))
    shape = torch.Size((probs.shape[1], top_paths))
    outputs = [(shape, probs.dtype), (shape, torch.int32), (torch.Size((*shape, probs.shape[0])), torch.int32)]
    return tuple(opaque.record(decode, [probs, lengths], outputs))


def fps(src: torch.Tensor, ptr: Sequence[int], ratio: float = 0.5, random_start: bool = False) -> torch.Tensor:
    """Indices of points far from each other in each group: farthest point sampling (Qi et al. 2017, PointNet++).

    Args:
        src: (N, F) coordinates.
        ptr: where the groups begin, and N: group i is src[ptr[i] : ptr[i + 1]]. Known when the model is compiled.
        ratio: share of each group's points to take, rounded up.
        random_start: begin at a random point instead of the first of a group.
    Returns the indices into src, group by group, in the order chosen. Raises ValueError for arguments out of range.
    """
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"fps: ratio must be above 0 and at most 1, got {ratio}.")
    bounds = [int(bound) for bound in ptr]
    if len(bounds) < 2 or bounds != sorted(set(bounds)) or bounds[0] != 0 or bounds[-1] != src.shape[0]:
        raise ValueError(f"fps: ptr must rise from 0 to the number of points ({src.shape[0]}), got {bounds}.")

    def sample(src: torch.Tensor) -> list[torch.Tensor]:
        return [farthest_points(src, bounds, ratio, random_start)]

    if tracing.current() is None:
        return sample(src)[0]
    return opaque.record(sample, [src], [(torch.Size((sum(sample_counts(bounds, ratio)),)), torch.int64)])[0]


def nearest(
    x: torch.Tensor,
    y: torch.Tensor,
    batch_x: torch.Tensor | list[int] | None = None,
    batch_y: torch.Tensor | list[int] | None = None,
) -> torch.Tensor:
    """For each point of `x` (N, F) the index of the nearest point of `y` (M, F).

    `batch_x` (N,) and `batch_y` (M,) are the sorted numbers of the examples that points belong to: only points of the
    same example are near. Raises ValueError unless both or neither are given.
    """
    if (batch_x is None) != (batch_y is None):
        raise ValueError("nearest: give both batch_x and batch_y, or neither.")
    x, y = (tensor.unsqueeze(-1) if tensor.dim() == 1 else tensor for tensor in (x, y))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"nearest: points of x have {x.shape[1]} coordinates, those of y {y.shape[1]}.")
    distances = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(-1)  # (N, M)
    if batch_x is not None:
        numbers_x, numbers_y = (
            batch if isinstance(batch, torch.Tensor) else torch.tensor(batch) for batch in (batch_x, batch_y)
        )
        if numbers_x.shape[0] != x.shape[0] or numbers_y.shape[0] != y.shape[0]:
            raise ValueError("nearest: batch_x and batch_y need a number for each point.")
        apart = numbers_x.unsqueeze(1) != numbers_y.unsqueeze(0)
        distances = distances.masked_fill(apart, float("inf"))
    return distances.argmin(1)
