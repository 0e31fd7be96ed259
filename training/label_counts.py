"""How many labels the micro-batches of a call have, so that its loss is a mean over tokens and not over micro-batches.

Padded samples and isolated documents have fewer labels than others. A mean of the micro-batches' means would count a
token of a short sample more than one of a long sample, and differently in every split of the same batch.
"""

from __future__ import annotations

import functools
import itertools
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from data.batches import Pair, SampleDataset
from data.loading.sampler import ResumableSampler
from model.pretraining import IGNORED

_PIECE = 1 << 20  # ids looked at at once: beside the batch nothing of its size exists


class Call(NamedTuple):
    """What one call of the training model takes, by the names of its inputs.

    S iterations, A accumulation steps, R replicas, micro-batches of B samples of T ids.
    """

    input_ids: Tensor  # (S A R B, T) int32
    labels: Tensor  # (S A R B, T) int32
    label_counts: Tensor  # (S A R, 2) float32: see PretrainingModel.forward


class LabelCounter:
    """Counts the labels of calls.

    Args:
        samples, sampler: what is trained on, and in which order.
        counted: gives the labels that count, the others -100, as (B, T) from inputs and labels.
        iterations: S, the weight updates of a call.
        micro_batches: A R, the micro-batches that this process has in an update.
        uneven: whether samples differ in their number of labels; if not, other processes have as many as this one.
    """

    def __init__(
        self,
        samples: SampleDataset,
        sampler: ResumableSampler,
        counted: Callable[[Tensor, Tensor], Tensor],
        iterations: int,
        micro_batches: int,
        uneven: bool,
    ) -> None:
        self._samples, self._sampler, self._counted = samples, sampler, counted
        self._iterations, self._micro_batches = iterations, micro_batches
        self._reads_others = uneven and sampler.shard.ranks > 1

    def calls(self, batches: Iterable[Pair], length: Callable[[int], int] | None = None) -> Iterator[Call]:
        """The calls of these combined batches, which begin where the sampler now stands.

        Of each sample of the n-th call, from 0, the first length(n) tokens are used; without `length` all.

        A label counts in the update of its sample, wherever that is computed: several processes read each other's
        samples to count theirs, since PopTorch gives a program no way to ask.
        """
        order = self._sampler.left() if self._reads_others else ()
        # Not a generator: its frame would keep a batch while the next one is made.
        return map(functools.partial(self._call, order, length), itertools.count(), batches)

    def _call(self, order: Sequence[int], length: Callable[[int], int] | None, number: int, batch: Pair) -> Call:
        """The `number`-th call from where `order`, that of all processes, begins."""
        tokens = self._samples.max_len if length is None else length(number)
        batch = _shortened(batch, tokens)
        together = self._of_updates(self._counts(*batch))
        shard = self._sampler.shard
        if self._reads_others:
            indices = np.asarray(order[number * shard.group : (number + 1) * shard.group])
            others = [self._read(other.of(indices), tokens) for other in shard.others()]
            together = together + sum(self._of_updates(counts) for counts in others)
        return Call(*batch, self._averages(together, shard.ranks if self._reads_others else 1))

    def _averages(self, together: Tensor, ranks: int) -> Tensor:
        """Labels of a micro-batch on average, (S A R, 2), from those of each update, (S,), of `ranks` processes.

        The mean over the processes of a call's losses is then the mean over the labels of all of them.
        """
        micro_batches = ranks * self._micro_batches
        of_update = together.clamp(min=1).double() / micro_batches  # without labels the sums are 0
        of_call = together.sum().clamp(min=1).double() / (self._iterations * micro_batches)
        pairs = torch.stack([of_update, of_call.expand(self._iterations)], dim=1)  # (S, 2)
        return pairs.float().repeat_interleave(self._micro_batches, dim=0)

    def _of_updates(self, counts: Tensor) -> Tensor:
        """Labels of each update, (S,), from those of each sample, (S A R B,)."""
        return counts.reshape(self._iterations, -1).sum(dim=1)

    def _counts(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Labels that count in each of these samples: (n, T) each -> int64 (n,)."""
        step = max(1, _PIECE // labels.shape[1])
        parts = zip(input_ids.split(step), labels.split(step))
        return torch.cat([(self._counted(*part) != IGNORED).sum(dim=1) for part in parts])

    def _read(self, indices: np.ndarray, tokens: int) -> Tensor:
        """Labels that count in each of the samples with these numbers, of so many tokens: int64 (n,)."""
        step = max(1, _PIECE // self._samples.max_len)
        parts = (indices[start : start + step] for start in range(0, len(indices), step))
        return torch.cat([self._counts(*_shortened(self._samples.__getitems__(part), tokens)) for part in parts])


def _shortened(batch: Pair, tokens: int) -> Sequence[Tensor]:
    """The first tokens of each sample: (n, T) each -> (n, tokens)."""
    return batch if batch[0].shape[1] == tokens else [each[:, :tokens].contiguous() for each in batch]
