"""Scoring with a PopTorch model that is running already, whatever the model: an executor from token ids to logits."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import poptorch
import torch
from torch import Tensor

from model.gpt2 import at_positions
from model.ipu_options import instance, reads_samples
from model.scoring import Item, ItemScorer, batch_of, token_scores


def as_it_is(output: Any) -> Any:
    """The `pick` of a model that returns nothing but logits."""
    return output


class LogitsScorer(ItemScorer):
    """Scores by the logits that an executor brings to the host: for a model that is there; a Scorer is faster.

    Args:
        executor: of a causal model, (rows, window) int32 token ids -> (rows, window, V) logits. What it is given is
            always of this shape.
        rows: micro-batch x device iterations x replicas.
        window: its sequence length.
        pick: the logits in what the executor returns.

    Of several processes each scores its part (model/ranks.py).
    """

    def __init__(
        self,
        executor: poptorch.PoplarExecutor,
        rows: int,
        window: int,
        pick: Callable[[Any], Tensor] = as_it_is,
    ) -> None:
        super().__init__(window, instance(), reads_samples())
        self._executor, self._rows, self._pick = executor, rows, pick

    def _prepare(self, length: int, width: int | None) -> int:
        return self._rows

    def _run(self, items: Sequence[Item], rows: int, length: int, width: int | None) -> tuple[Tensor, Tensor]:
        ids, targets, *positions = batch_of(items, rows, length, width)
        padded = torch.zeros(rows, self.window, dtype=torch.int32)  # causality keeps what is behind an item out of it
        padded[:, :length] = ids
        logits = self._pick(self._executor(padded))
        if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != padded.shape:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the executor gives {got} for ids of {tuple(padded.shape)}; expected logits ({rows}, {self.window}, "
                "V): check rows and window, its output mode (All), and `pick`"
            )
        logits = at_positions(logits, positions[0].long()) if positions else logits[:, :length]
        return token_scores(logits, targets)
