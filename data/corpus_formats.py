"""The formats a prepared corpus is written in. A writer takes documents, arrays of ids, and leaves whole files."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Protocol

import numpy as np

from data.article_pickle import write_articles
from data.atomic import atomic_file


class CorpusWriter(Protocol):
    """What data/prepare.py asks of a format."""

    def write(self, documents: Iterable[np.ndarray]) -> list[Path]:
        """Write the documents, uint16 or int32 ids with `<|endoftext|>` at the end. Returns the files.

        Nothing is there under a final name before all is. An error of `documents` passes through.
        """


class PickleWriter:
    """A list of lists of ids: --train-path FILE.pkl."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path, self.vocab_size = path, vocab_size

    def write(self, documents: Iterable[np.ndarray]) -> list[Path]:
        with atomic_file(self.path) as file:
            write_articles(file, documents, self.vocab_size - 1)
        return [self.path]
