"""Several data sets as one, and a control code before each sample of one."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from data.batches import SampleDataset


class SeveralDatasets(SampleDataset):
    """The samples of the `parts`, one data set after the other; `names` are theirs, for a message."""

    def __init__(self, parts: Sequence[SampleDataset], names: Sequence[str]) -> None:
        self.parts, self.names, self.max_len = list(parts), list(names), parts[0].max_len
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.uneven = any(part.uneven for part in parts)
        self.approximate = next(filter(None, (part.approximate for part in parts)), "")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: np.ndarray, ids: np.ndarray) -> None:
        """Write the samples `indices` (int64 (n,)) to `ids` (int32 (n, T + 1)). Raises as the parts do."""
        owners = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(owners):
            rows = owners == number
            before = int(self._ends[number - 1]) if number else 0
            some = np.empty((int(rows.sum()), ids.shape[1]), np.int32)
            self.parts[number].read(indices[rows] - before, some)
            ids[rows] = some

    def largest_id(self) -> int:
        """The largest id of all parts."""
        return max(part.largest_id() for part in self.parts)

    def check_document_ends(self, end_id: int) -> None:
        """As each part does."""
        for part in self.parts:
            part.check_document_ends(end_id)

    def summary(self) -> str:
        """One line for the start of a run, the parts one after the other."""
        shown = "; ".join(f"{name}: {part.summary()}" for name, part in zip(self.names, self.parts))
        return f"{len(self):,} samples of {len(self.parts)} data sets. {shown}"


class CodedDataset(SampleDataset):
    """The samples of a data set, each behind a control code, so that a model can be asked for such text (CTRL)."""

    def __init__(self, samples: SampleDataset, code: int) -> None:
        """`code` is a token id; the samples here are one id longer than those of `samples`."""
        self.samples, self.code, self.max_len = samples, code, samples.max_len + 1
        self.uneven, self.approximate = samples.uneven, samples.approximate

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices: np.ndarray, ids: np.ndarray) -> None:
        """Write the samples `indices` (int64 (n,)) to `ids` (int32 (n, T + 1))."""
        ids[:, 0] = self.code
        self.samples.read(indices, ids[:, 1:])

    def largest_id(self) -> int:
        """The largest id of the samples, the code among them."""
        return max(self.code, self.samples.largest_id())

    def check_document_ends(self, end_id: int) -> None:
        """As the samples."""
        self.samples.check_document_ends(end_id)

    def summary(self) -> str:
        """One line for the start of a run."""
        return f"{self.samples.summary()}; each behind the id {self.code}"
