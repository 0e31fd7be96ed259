"""Validation loss: held-out samples, scored by the scorer of the evaluation programs (model/scoring.py)."""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np
import poptorch

from data.batches import SampleDataset
from data.loading.datasets import SeveralDatasets
from model import ranks
from model.pretraining import IGNORED, PretrainingModel
from model.scoring import Item, Scorer


class HeldOut(Sequence[Item]):
    """Samples as items to score: the targets are the labels that count in `model`'s loss."""

    def __init__(self, samples: SampleDataset, model: PretrainingModel) -> None:
        self._samples, self._counted = samples, model.counted

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index):
        """Item number `index`, or a list of those of a slice. Raises IndexError."""
        if not isinstance(index, slice):
            return self[index : index + 1 or None][0]
        numbers = range(*index.indices(len(self)))
        if not numbers:
            return []
        inputs, labels = self._samples.__getitems__(list(numbers))  # (n, T) each
        labels = self._counted(inputs, labels).numpy()
        ats = [np.flatnonzero(row != IGNORED) for row in labels]
        return [Item(ids, at, row[at]) for ids, at, row in zip(inputs.numpy(), ats, labels)]


class Validator:
    """Runs the model that is being trained over held-out samples.

    Attributes:
        losses: of the last call of `loss`, (name, mean loss) of each data set; empty if there is but one.

    Args:
        model: the module of the training executor.
        samples: the held-out samples, at least one; of several data sets a SeveralDatasets.
        make_options: gives the options of a forward-only model; batch_size: its micro-batch.
        trained: the training executor, which has the newest weights; None: `model` has them.
        part: (i, n): this is process i of n, which share the samples; reads: as for ItemScorer.
    """

    def __init__(
        self,
        model: PretrainingModel,
        samples: SampleDataset,
        make_options: Callable[[], poptorch.Options],
        batch_size: int,
        trained: poptorch.PoplarExecutor | None = None,
        part: tuple[int, int] = (0, 1),
        reads: bool = True,
    ) -> None:
        several = isinstance(samples, SeveralDatasets)
        self.items = HeldOut(samples, model)
        self._parts = [HeldOut(part, model) for part in samples.parts] if several else [self.items]
        self._names = samples.names if several else []
        self.losses: list[tuple[str, float]] = []
        self._length, self._trained = samples.max_len, trained
        self._scorer = Scorer(model.gpt2, make_options, batch_size, part, model.end_id, reads)

    def follow(self, executor: poptorch.PoplarExecutor) -> None:
        """Another executor trains the model from now on."""
        self._trained = executor

    def loss(self) -> float:
        """Mean cross-entropy in nats over all labels of all samples; of several data sets the mean of theirs.

        Every process must call it.
        """
        if self._trained is not None and self._trained.isCompiled():
            self._trained.copyWeightsToHostIfNeeded()
        self._scorer.load_weights()
        means = []
        for items in self._parts:
            loss, labels = ranks.combine(self._scorer.score(items, self._length, None)).total()
            means.append(loss / labels)
        self.losses = list(zip(self._names, means))
        return sum(means) / len(means)
