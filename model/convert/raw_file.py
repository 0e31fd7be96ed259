"""Tensors that lie in a file as they are in memory."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from model.convert.source import Weight


class RawFile:
    """A file that is mapped, its bytes uint8 (size,). Raises ValueError naming it if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            # Not shared: nothing that is done to the tensors reaches the file.
            self.content = torch.from_file(str(path), shared=False, size=self.size, dtype=torch.uint8)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise ValueError(f"{path}: cannot be read ({reason})") from error

    def bytes(self, name: str, place: int, count: int) -> Tensor:
        """uint8 (count,). Raises ValueError naming the tensor `name` if the file ends before."""
        if place < 0 or count < 0 or place + count > self.size:
            raise ValueError(
                f"{self.path}: ends within the tensor {name} (at byte {self.size:,}, it needs {place + count:,}); the "
                "file is cut short, copy or download it again"
            )
        return self.content[place : place + count]

    def weight(self, name: str, place: int, shape: tuple[int, ...], dtype: torch.dtype) -> Weight:
        """A tensor at a place. Raises ValueError as `bytes`."""
        count = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
        raw = self.bytes(name, place, count)

        def read() -> Tensor:
            aligned = raw if place % 8 == 0 else raw.clone()
            return aligned.view(dtype).view(shape)

        return Weight(shape, dtype, read)
