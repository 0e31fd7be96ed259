"""Validation loss: the training objective on held-out samples, forward only."""

from __future__ import annotations

import poptorch
import torch

from data.batches import Pair, SampleDataset
from model.pretraining import IGNORED, PretrainingModel


class Validator:
    """Runs the model that is being trained over held-out samples.

    Args:
        model: the module that the training executor has; its newest weights are used.
        samples: the held-out samples.
        options: of a forward-only model; batch_size: its micro-batch.
    """

    def __init__(
        self, model: PretrainingModel, samples: SampleDataset, options: poptorch.Options, batch_size: int
    ) -> None:
        self.samples = samples
        self.rows = batch_size * options.device_iterations * options.replication_factor
        self._counted = model.counted
        self._executor = poptorch.inferenceModel(model, options)

    def loss(self) -> float:
        """Mean cross-entropy in nats over all labels of all samples, of which there is at least one."""
        total, labels = 0.0, 0
        for start in range(0, len(self.samples), self.rows):
            indices = list(range(start, min(start + self.rows, len(self.samples))))
            inputs, targets = self._padded(self.samples.__getitems__(indices))
            losses, _ = self._executor(input_ids=inputs, labels=targets)  # (iterations x replicas,)
            # Each micro-batch gives the mean over its own labels.
            counts = (self._counted(inputs, targets) != IGNORED).reshape(losses.numel(), -1).sum(dim=1)
            total += float((losses.double().reshape(-1) * counts).sum())
            labels += int(counts.sum())
        return total / labels

    def _padded(self, batch: Pair) -> Pair:
        """The last batch filled up with rows that have no labels."""
        inputs, targets = batch
        missing = self.rows - inputs.shape[0]
        if not missing:
            return inputs, targets
        length = inputs.shape[1]
        return (
            torch.cat([inputs, inputs.new_zeros(missing, length)]),
            torch.cat([targets, targets.new_full((missing, length), IGNORED)]),
        )
