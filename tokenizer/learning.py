"""Learn a byte-level BPE vocabulary from texts."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Iterable, Iterator

from tokenizer.entries import EOT

if TYPE_CHECKING:
    import tokenizers

    from tokenizer.bpe import Tokenizer

# The 256 bytes and <|endoftext|>, before the first merge.
SMALLEST_VOCAB = 257
# Seconds that an interrupted training has to notice that its texts have ended: a thread must not want the interpreter
# while that ends. Merging words can take minutes and needs no interpreter.
_LEAVE = 1.0
# Seconds until a signal is looked for again that came just before the main thread began to wait, which did not wake it.
_LOOK = 0.5


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
    _train(backend, texts, trainer)
    return Tokenizer.from_json(backend.to_str(), "the trained tokenizer")


def _train(backend: tokenizers.Tokenizer, texts: Iterable[str], trainer: Any) -> None:
    """In a thread: Ctrl-C and SIGTERM reach Python code that waits, and native code only when it is done.

    Raises what reading the texts raises.
    """
    errors: list[BaseException] = []
    stopped = False

    def read() -> Iterator[str]:
        for text in texts:
            if stopped:
                return
            yield text

    def run() -> None:
        try:
            backend.train_from_iterator(read(), trainer=trainer)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_LOOK)
    except KeyboardInterrupt:
        stopped = True
        thread.join(_LEAVE)
        raise
    if errors:
        raise errors[0]
