"""Collecting the outputs of micro-batches into what the call returns (spec section 3)."""

from __future__ import annotations

import torch

from ...enums import OutputMode

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
        self,
        mode: OutputMode,
        period: int,
        dtypes: list[torch.dtype],
        iterations: int,
        accumulation: int,
        replicas: int,
    ):
        self._mode = mode
        self._period = period
        self._dtypes = [device_dtype(dtype) for dtype in dtypes]
        self._iterations = iterations
        self._accumulation = accumulation
        self._replicas = replicas
        self._entries = replicas * self._steps()
        self._taken = 0  # entries so far
        self._results: list[torch.Tensor] = []

    def _steps(self) -> int:
        """Micro-batches of a replica that are returned."""
        if self._mode in (OutputMode.Final, OutputMode.Sum):
            return 1
        period = self._period if self._mode is OutputMode.EveryN else 1
        return self._iterations // period * self._accumulation

    def add(self, s: int, a: int, r: int, outputs: list[torch.Tensor]) -> bool:
        """Take the outputs of one micro-batch; what the mode does not ask for is not even copied.

        Returns whether the entry of the result that it belongs to is complete now.
        """
        wanted = self._wanted(s, a)
        if not self._results and (wanted or not self._entries):
            # Filled in place: joining copies at the end would need the memory twice. The program may write to the
            # memory of its outputs again (buffers, inputs), so they cannot be kept themselves.
            self._results = [
                torch.empty((self._entries, *output.shape), dtype=dtype, device=output.device)
                for output, dtype in zip(outputs, self._dtypes, strict=True)
            ]
        if not wanted:
            return False
        first_sum = self._mode is OutputMode.Sum and s == a == 0
        entry = r if self._mode is OutputMode.Sum else self._taken
        for result, output in zip(self._results, outputs, strict=True):
            if self._mode is not OutputMode.Sum or first_sum:
                result[entry].copy_(output.detach())
            else:
                result[entry] += output.detach().to(result.dtype)  # in the tensor's own type, as on the device
        self._taken += 1
        return self._mode is not OutputMode.Sum or (s == self._iterations - 1 and a == self._accumulation - 1)

    def _wanted(self, s: int, a: int) -> bool:
        if self._mode is OutputMode.Final:
            return s == self._iterations - 1 and a == self._accumulation - 1
        if self._mode is OutputMode.EveryN:
            return (s + 1) % self._period == 0
        return True

    def result(self) -> list[torch.Tensor]:
        """The outputs of the call, on the host: micro-batches joined along dim 0, scalars as one vector."""
        return [self._joined(result).cpu() for result in self._results]

    def _joined(self, result: torch.Tensor) -> torch.Tensor:
        """(entries, d0, …) -> (entries * d0, …); one scalar stays a scalar. None is a tensor without elements."""
        if result.dim() == 1:
            return result[0] if self._entries == 1 else result
        return result.flatten(0, 1)
