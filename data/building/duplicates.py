"""Which documents of a corpus are kept, and on which side of the validation split they are."""

from __future__ import annotations

import numpy as np

from data.building.minhash import SimilarityIndex
from data.building.parts import Part

DROPPED, TRAIN, VALIDATION = 0, 1, 2
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class DigestSet:
    """A set of 64-bit digests, 8 bytes each: sorted arrays, merged when one is as long as the one before it."""

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []

    def add(self, digests: np.ndarray) -> np.ndarray:
        """Add digests, uint64 (n,). True for each that was not there before, the first of equal ones, bool (n,)."""
        values, first = np.unique(digests, return_index=True)
        old = np.zeros(len(values), dtype=bool)
        for known in self._sorted:
            at = np.searchsorted(known, values)
            old |= known[np.minimum(at, len(known) - 1)] == values
        new = np.zeros(len(digests), dtype=bool)
        new[first[~old]] = True
        if not old.all():
            self._sorted.append(values[~old])
        while len(self._sorted) > 1 and len(self._sorted[-2]) <= len(self._sorted[-1]):
            self._sorted[-2:] = [np.sort(np.concatenate(self._sorted[-2:]), kind="stable")]
        return new


class Selector:
    """Decides for each document, in their order: dropped as a duplicate, for training, or for validation."""

    def __init__(self, duplicates: str, threshold: float, validation: float, seed: int, first: int = 0) -> None:
        """`duplicates`: none, exact or near; `validation`: share of the documents, drawn by digest and seed.

        `first`: that many documents, from the beginning on, are for validation as well.
        """
        self.duplicates, self.validation, self.seed, self.first = duplicates, validation, seed, first
        self._seen = 0  # documents before the next part
        self.exact = self.near = self.held_out = 0
        self._digests = DigestSet()
        self._index = SimilarityIndex(threshold) if duplicates == "near" else None

    def verdicts(self, part: Part) -> np.ndarray:
        """DROPPED, TRAIN or VALIDATION for each document of the next part, uint8."""
        verdicts = np.full(len(part.lengths), TRAIN, dtype=np.uint8)
        if self.validation:
            # Equal texts have equal digests: none of them is on the other side.
            draw = (part.digests ^ np.uint64(self.seed & 0xFFFFFFFFFFFFFFFF)) * _FACTOR
            draw = ((draw ^ draw >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(11)
            verdicts[draw < np.uint64(int(self.validation * (1 << 53)))] = VALIDATION
        verdicts[: max(0, self.first - self._seen)] = VALIDATION
        self._seen += len(verdicts)
        if self.duplicates != "none":
            repeated = ~self._digests.add(part.digests)
            verdicts[repeated] = DROPPED
            self.exact += int(repeated.sum())
        if self._index is not None:
            for row in np.flatnonzero(verdicts != DROPPED):
                if not self._index.add(part.signatures[row]):
                    verdicts[row] = DROPPED
                    self.near += 1
        self.held_out += int((verdicts == VALIDATION).sum())
        return verdicts
