"""The formats a prepared corpus is written in. A writer takes documents, arrays of ids, and leaves whole files.

The third one is data/tfrecord/writer.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Protocol

import numpy as np

from corpora.atomic import atomic_file
from corpora.program import as_absolute
from data.articles.pickle_file import write_articles
from data.megatron.files import mmap_writer

# A .pkl is copied into a cache before the first run: from this size on somebody waits for it.
LARGE_PICKLE = 4 << 30


class CorpusWriter(Protocol):
    """What data/prepare.py asks of a format."""

    def write(self, documents: Iterable[np.ndarray]) -> list[Path]:
        """Write the documents, uint16 or int32 ids with `<|endoftext|>` at the end. Returns the files.

        Nothing is there under a final name before all is. An error of `documents` passes through.
        """

    def there(self) -> list[Path]:
        """The files that are there and that `write` would replace or remove."""

    def summary(self) -> str:
        """A line to print after that, or nothing."""

    def train_flags(self) -> str:
        """The flags of train_gpt2.py that read the files."""


class PickleWriter:
    """A list of lists of ids: --train-path FILE.pkl."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path, self.vocab_size = path, vocab_size

    def write(self, documents: Iterable[np.ndarray]) -> list[Path]:
        """Write the file."""
        with atomic_file(self.path) as file:
            write_articles(file, documents, self.vocab_size - 1)
        return [self.path]

    def there(self) -> list[Path]:
        """The file, if it is there."""
        return [path for path in [self.path] if path.exists()]

    def summary(self) -> str:
        """A note if the file is large."""
        size = self.path.stat().st_size
        if size < LARGE_PICKLE:
            return ""
        return (
            f"note: a .pkl of {size / 1e9:.1f} GB is copied into a cache before the first training run; for corpora of "
            "more than a few GB take the mmap format, which is read as it is: python3 -m data.prepare --format mmap"
        )

    def train_flags(self) -> str:
        """--train-path."""
        return f"--train-path {as_absolute(self.path)}"


class MegatronWriter:
    """Megatron-LM's <path>_text_document.bin and .idx: --train-path dynamic --data-prefix <path>_text_document.

    `key` stands in the place of text, as with Megatron's --json-keys; without `ends` the `<|endoftext|>` of each
    document is left out, as without its --append-eod.
    """

    def __init__(self, path: Path, vocab_size: int, key: str = "text", ends: bool = True) -> None:
        self.prefix, self.vocab_size = f"{path}_{key}_document", vocab_size
        self._ends = ends

    def write(self, documents: Iterable[np.ndarray]) -> list[Path]:
        """Write the two files."""
        with mmap_writer(self.prefix, self.vocab_size) as corpus:
            for ids in documents:
                corpus.write(ids if self._ends else ids[:-1])
        return self._files()

    def _files(self) -> list[Path]:
        return [Path(f"{self.prefix}.bin"), Path(f"{self.prefix}.idx")]

    def there(self) -> list[Path]:
        """Those of the two files that are there."""
        return [path for path in self._files() if path.exists()]

    def summary(self) -> str:
        """Nothing."""
        return ""

    def train_flags(self) -> str:
        """--train-path and --data-prefix."""
        return f"--train-path dynamic --data-prefix {as_absolute(self.prefix)}"
