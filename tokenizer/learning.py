"""Learn a byte-level BPE vocabulary from texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterable

from tokenizer.entries import EOT

if TYPE_CHECKING:
    from tokenizer.bpe import Tokenizer

# The 256 bytes and <|endoftext|>, before the first merge.
SMALLEST_VOCAB = 257


def train_bpe(texts: Iterable[str], vocab_size: int = 30522) -> Tokenizer:
    """Train a byte-level BPE with GPT-2's splitting; `<|endoftext|>` gets id 0.

    The texts are read once and not kept. A corpus with too few words for `vocab_size` entries gives fewer. The
    same texts give the same vocabulary. Raises ValueError if `vocab_size` is below 257.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise ValueError(f"a byte-level vocabulary needs {SMALLEST_VOCAB} entries or more, not {vocab_size}")
    import tokenizers  # here: a command line that only knows SMALLEST_VOCAB need not wait for it
    from tokenizers import models, pre_tokenizers, trainers

    from tokenizer.bpe import Tokenizer, make_byte_level

    backend = tokenizers.Tokenizer(models.BPE())
    make_byte_level(backend)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return Tokenizer.from_json(backend.to_str(), "the trained tokenizer")
