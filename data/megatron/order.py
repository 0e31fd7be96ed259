"""The order of samples over a memory-mapped corpus: that of Megatron-LM's GPTDataset, element for element.

Documents are repeated for every epoch and shuffled, their tokens laid end to end and cut into samples of T + 1 tokens
(neighbours share one), and the samples shuffled again by the same generator.
"""

from __future__ import annotations

import dataclasses
from typing import Iterator

import numpy as np

from data.megatron import native

_BLOCK = 1 << 18  # documents worked on at once, so that 8 bytes for each stay in the cache
# A last epoch that contributes less than this share of an epoch's samples is shuffled by itself.
_SEPARATE_BELOW = 0.8
_UINT32_SAMPLES = np.iinfo(np.uint32).max - 1  # from this many samples on, their numbers are int64


@dataclasses.dataclass(frozen=True)
class OrderRule:
    """Everything but the documents themselves that shapes an order.

    Attributes:
        max_len: T.
        samples: N, how many are asked for; the order has at least as many.
        seed: of numpy's RandomState.
        separate_last_epoch: Megatron-LM's treatment of a last epoch that is hardly used; without it the order is that
            of the reference application, which shuffles all epochs as one.
    """

    max_len: int
    samples: int
    seed: int
    separate_last_epoch: bool = True

    def epochs(self, tokens: int) -> int:
        """The least E with (E K - 1) // T >= N, for K = `tokens` an epoch (K > T)."""
        # (E K - 1) // T >= N  <=>  E K >= N T + 1
        return max(1, -(-(self.samples * self.max_len + 1) // tokens))

    def separate(self, tokens: int) -> bool:
        """Whether the last epoch is kept apart."""
        epochs = self.epochs(tokens)
        used = self.samples - ((epochs - 1) * tokens - 1) // self.max_len
        an_epoch = (tokens - 1) // self.max_len
        return self.separate_last_epoch and epochs > 1 and used < int(_SEPARATE_BELOW * an_epoch)


@dataclasses.dataclass(frozen=True)
class Order:
    """An order of samples.

    Attributes:
        documents: int32 (E D,), document numbers.
        samples: (n + 1, 2), int32 or, where document positions need it, int64: position in `documents` and offset in
            that document where sample i begins; sample i ends with the token at which sample i + 1 begins.
        shuffle: uint32 or int64 (n,), the sample that comes i-th.
    """

    documents: np.ndarray
    samples: np.ndarray
    shuffle: np.ndarray


def build_order(sizes: np.ndarray, documents: range, rule: OrderRule) -> Order:
    """The order for the documents of a split: numbers into `sizes` (int32), one after the other.

    Raises ValueError if the split has no whole sample.
    """
    tokens = int(sizes[documents.start : documents.stop].sum(dtype=np.int64))  # K
    if tokens <= rule.max_len:
        raise ValueError(f"{tokens:,} tokens make no sample of {rule.max_len + 1}")
    epochs, separate = rule.epochs(tokens), rule.separate(tokens)
    rng = np.random.RandomState(rule.seed)
    document_index = _shuffled_documents(documents, epochs, separate, rng)
    sample_index = _sample_index(sizes, document_index, (epochs * tokens - 1) // rule.max_len, rule.max_len)
    together = ((epochs - separate) * tokens - 1) // rule.max_len  # samples that are shuffled as one
    return Order(document_index, sample_index, _shuffled_samples(together, len(sample_index) - 1, rng))


def _shuffled_documents(documents: range, epochs: int, separate: bool, rng: np.random.RandomState) -> np.ndarray:
    index = np.empty(epochs * len(documents), dtype=np.int32)
    for first in range(0, len(documents), _BLOCK):  # numpy's arange and tile hold the documents twice
        some = documents[first : first + _BLOCK]
        index.reshape(epochs, -1)[:, first : first + _BLOCK] = np.arange(some.start, some.stop, dtype=np.int32)
    boundary = (epochs - separate) * len(documents)
    native.shuffle(rng, index[:boundary])
    if separate:
        native.shuffle(rng, index[boundary:])
    return index


def _sample_index(sizes: np.ndarray, document_index: np.ndarray, samples: int, max_len: int) -> np.ndarray:
    """Where token i T of the documents laid end to end is, for i = 0 ... samples.

    The first entry is always (0, 0), as Megatron-LM has it, though the order may begin with empty documents; every
    later one lies in a document that is not empty.
    """
    positions = np.int32 if len(document_index) < 1 << 31 else np.int64
    index = np.empty((samples + 1, 2), dtype=positions)
    if native.sample_index(sizes, document_index, max_len, index):
        return index
    for first, begins, ends in _ends(sizes, document_index):
        low = -(-begins // max_len)  # the first i whose token is in this block
        high = min(-(-int(ends[-1]) // max_len), samples + 1)
        wanted = np.arange(low, high, dtype=np.int64) * max_len
        # The document of token t is the first that ends behind it; empty ones end where they begin.
        slots = np.searchsorted(ends, wanted, side="right")
        index[low:high, 0] = first + slots
        index[low:high, 1] = wanted - np.where(slots > 0, ends[slots - 1], begins)
    index[0] = 0
    return index


def _ends(sizes: np.ndarray, document_index: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """In blocks: number of the first document, the token it begins at, and the tokens at which documents end."""
    begins = 0
    for first in range(0, len(document_index), _BLOCK):
        ends = np.cumsum(sizes[document_index[first : first + _BLOCK]], dtype=np.int64)
        ends += begins
        yield first, begins, ends
        begins = int(ends[-1])


def _shuffled_samples(together: int, total: int, rng: np.random.RandomState) -> np.ndarray:
    index = np.arange(total, dtype=np.uint32 if total < _UINT32_SAMPLES else np.int64)
    native.shuffle(rng, index[:together])
    if together < total:
        native.shuffle(rng, index[together:])
    return index
