"""GPT-2's byte-level BPE: `Tokenizer` reads and applies one, `train_bpe` learns a new vocabulary.

Data, training, generation and tasks import it; it imports corpora/, to learn. Start with bpe.py. `open_tokenizer` is
what programs call: it knows what --tokenizer-type, --vocab-file and --merge-file mean.
"""

from tokenizer.bpe import EOT, Tokenizer
from tokenizer.learning import train_bpe
from tokenizer.selection import open_tokenizer

__all__ = ["EOT", "Tokenizer", "open_tokenizer", "train_bpe"]
