"""GPT-2's byte-level BPE: `Tokenizer` reads and applies one, `train_bpe` learns a new vocabulary."""

from tokenizer.bpe import EOT, Tokenizer
from tokenizer.train import train_bpe

__all__ = ["EOT", "Tokenizer", "train_bpe"]
