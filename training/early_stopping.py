"""--early-stopping: a run ends when its held-out loss has stopped to fall."""

from __future__ import annotations

import math
from typing import Iterable


class EarlyStopping:
    """Counts held-out losses in a row of which none is below the lowest before them.

    Args:
        patience: so many end the run; None: none do.
        losses: those of an earlier start of the run, in order.
    """

    def __init__(self, patience: int | None, losses: Iterable[float] = ()) -> None:
        self._patience, self._lowest, self._in_vain = patience, math.inf, 0
        for loss in losses:
            self.judge(loss)

    def judge(self, loss: float) -> None:
        """A validation has found this loss."""
        self._in_vain = 0 if loss < self._lowest else self._in_vain + 1
        self._lowest = min(self._lowest, loss)

    @property
    def reached(self) -> bool:
        """Whether the run is to end."""
        return self._patience is not None and self._in_vain >= self._patience

    def line(self) -> str:
        """Why it ends."""
        times = f"{self._in_vain} validation{'s'[: self._in_vain != 1]} in a row"
        return f"--early-stopping {self._patience}: no lower held-out loss than {self._lowest:.4f} in {times}"
