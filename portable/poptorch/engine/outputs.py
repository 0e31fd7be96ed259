"""Collecting the outputs of micro-batches into what the call returns (spec section 3)."""

from __future__ import annotations

import torch

from ..enums import OutputMode

_DEVICE_TYPES = {torch.int64: torch.int32, torch.float64: torch.float32}


def device_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type a tensor of `dtype` has on the device: there are no 64-bit ones."""
    return _DEVICE_TYPES.get(dtype, dtype)


class OutputCollector:
    """Takes the outputs of micro-batch (s, a, r) in order and gives the tensors of the whole call.

    Args:
        mode: OutputMode other than Default; `period` is EveryN's.
        dtypes: the types the program gave its outputs.
        iterations, accumulation, replicas: S, A and R.
    """

    def __init__(
        self, mode: OutputMode, period: int, dtypes: list[torch.dtype], iterations: int, accumulation: int, replicas: int
    ):
        self._mode = mode
        self._period = period
        self._dtypes = [device_dtype(dtype) for dtype in dtypes]
        self._iterations = iterations
        self._accumulation = accumulation
        self._replicas = replicas
        # All, EveryN: micro-batches in order. Final, Sum: one entry a replica.
        self._kept: list[list[torch.Tensor]] = [[] for _ in dtypes]

    def add(self, s: int, a: int, r: int, outputs: list[torch.Tensor]) -> None:
        """Take the outputs of one micro-batch; what the mode does not ask for is not even copied."""
        if not self._wanted(s, a):
            return
        for kept, output, dtype in zip(self._kept, outputs, self._dtypes, strict=True):
            value = output.detach().to(dtype)
            if self._mode is OutputMode.Sum and len(kept) > r:
                kept[r] += value  # in the tensor's own type, as on the device
            elif value.data_ptr() == output.data_ptr():
                kept.append(value.clone())  # the program may write to this memory again (buffers, inputs)
            else:
                kept.append(value)

    def _wanted(self, s: int, a: int) -> bool:
        if self._mode is OutputMode.Final:
            return s == self._iterations - 1 and a == self._accumulation - 1
        if self._mode is OutputMode.EveryN:
            return (s + 1) % self._period == 0
        return True

    def result(self) -> list[torch.Tensor]:
        """The outputs of the call, on the host: micro-batches joined along dim 0, scalars as one vector."""
        return [_join(kept).cpu() for kept in self._kept]


def _join(kept: list[torch.Tensor]) -> torch.Tensor:
    if len(kept) == 1:
        return kept[0]
    return torch.stack(kept) if kept[0].dim() == 0 else torch.cat(kept)
