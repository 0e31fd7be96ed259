"""Documents to rows of one length, as recipes store them: what is left over is dropped, nothing is padded."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Iterator

import numpy as np

from data.building.corpus_formats import CorpusWriter

HOW = ("stream", "first")


class RowWriter:
    """A writer of rows for documents: each row is written by `inner` as a document of its own.

    Attributes, for what has been written: `rows`, `dropped_ids`.
    """

    def __init__(self, inner: CorpusWriter, length: int, how: str, code: int | None = None) -> None:
        """`length` ids a row, a `code` in front included.

        `how`: "stream" joins all documents and cuts (Little-GPT). "first" makes a row of the beginning of each document
        that is long enough, without its rest, and joins shorter ones (lm-training-research-project).
        """
        self._inner, self.length, self.how, self.code = inner, length, how, code
        self.rows = self.dropped_ids = 0

    def write(self, documents: Iterable[np.ndarray]) -> list[Path]:
        """Write the files. Raises ValueError if there is not one row."""
        return self._inner.write(self._rows(documents))

    def _rows(self, documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        own = self.length - (self.code is not None)
        waiting: list[np.ndarray] = []  # documents, or the rest of one, that make no row yet
        held = 0
        for ids in documents:
            if self.how == "first" and len(ids) >= own:
                self.dropped_ids += len(ids) - own
                yield self._row(ids[:own])
                continue
            waiting.append(ids)
            held += len(ids)
            if held >= own:
                joined = np.concatenate(waiting)
                for begin in range(0, held - own + 1, own):
                    yield self._row(joined[begin : begin + own])
                waiting, held = [joined[held - held % own :]], held % own
        self.dropped_ids += held
        if not self.rows:
            raise ValueError(f"{held:,} ids, fewer than a row of --seq-length {self.length}; nothing written")

    def _row(self, ids: np.ndarray) -> np.ndarray:
        self.rows += 1
        return ids if self.code is None else np.concatenate([np.array([self.code], ids.dtype), ids])

    def there(self) -> list[Path]:
        """The files of `inner` that are there."""
        return self._inner.there()

    def summary(self) -> str:
        """Rows, and what was dropped."""
        return f"{self.rows:,} rows of {self.length:,} ids; {self.dropped_ids:,} ids dropped"

    def train_flags(self) -> str:
        """The flags of train_gpt2.py that read the files."""
        return self._inner.train_flags()
