"""The tokenizer that goes along with a checkpoint: files of a folder, or what a GGUF file says of it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from model.config import GPT2_VOCAB_SIZE
from tokenizer import Tokenizer
from tokenizer.entries import SETTINGS_FILE, TOKENIZER_FILE, has_tokenizer

# Files that Hugging Face's tokenizers read.
_FILES = (TOKENIZER_FILE, SETTINGS_FILE, "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A tokenizer by its place, or by the content of a tokenizer.json and of a tokenizer_config.json beside it."""

    place: Path
    content: str | None = None
    settings: str | None = None

    @classmethod
    def beside(cls, folder: Path) -> Vocabulary | None:
        """The one whose files are in a folder, if there is one."""
        return cls(folder) if has_tokenizer(folder) else None

    @classmethod
    def at(cls, path: Path) -> Vocabulary:
        """The one that --tokenizer names. Raises ValueError if there is none."""
        Tokenizer.from_folder(path)
        return cls(path)

    def open(self) -> Tokenizer:
        """Raises ValueError naming the file of no use."""
        if self.content is None:
            return Tokenizer.from_folder(self.place)
        return Tokenizer.from_json(self.content, self.place)

    def write(self, folder: Path) -> None:
        """Files for transformers and for this project: those there are, or a tokenizer.json."""
        if self.content is not None:
            (folder / TOKENIZER_FILE).write_text(self.content, encoding="utf-8")
            if self.settings is not None:
                (folder / SETTINGS_FILE).write_text(self.settings, encoding="utf-8")
            return
        there = [name for name in _FILES if self.place.is_dir() and (self.place / name).is_file()]
        for name in there:
            shutil.copyfile(self.place / name, folder / name)
        if TOKENIZER_FILE not in there and "vocab.json" not in there:
            bpe = self.open()
            (folder / TOKENIZER_FILE).write_text(bpe.to_json(), encoding="utf-8")
            if bpe.settings_json() is not None:
                (folder / SETTINGS_FILE).write_text(str(bpe.settings_json()), encoding="utf-8")


# Rows that programs pad GPT-2's vocabulary to: multiples of 128, and of 128 by the pieces of a matrix.
_PADDED_ROWS = {-(-GPT2_VOCAB_SIZE // multiple) * multiple for multiple in (16, 64, 128, 256, 512, 1024, 2048)}


def tokens_in(rows: int) -> int:
    """How many rows are tokens, where nothing says: GPT-2's vocabulary if it may have been padded to `rows`, or all."""
    return GPT2_VOCAB_SIZE if rows in _PADDED_ROWS else rows
