"""GPT-2's byte-level BPE: `Tokenizer` reads and applies one, `train_bpe` learns a new vocabulary.

Data, training, generation and tasks import it; it imports corpora/, to learn. Start with bpe.py. `open_tokenizer` is
what programs call: it knows what --tokenizer-type, --vocab-file and --merge-file mean.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizer.bpe import Tokenizer
    from tokenizer.entries import EOT
    from tokenizer.learning import train_bpe
    from tokenizer.selection import open_tokenizer

__all__ = ["EOT", "Tokenizer", "open_tokenizer", "train_bpe"]

_HOMES = {
    "EOT": "tokenizer.entries",
    "Tokenizer": "tokenizer.bpe",
    "open_tokenizer": "tokenizer.selection",
    "train_bpe": "tokenizer.learning",
}


def __getattr__(name: str) -> Any:
    """A name of __all__, imported when it is asked for: `python -m tokenizer.train --help` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
