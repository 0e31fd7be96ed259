#!/usr/bin/env python3
"""Learn a byte-level BPE vocabulary from a corpus: writes a tokenizer.json that every program here takes.

    python3 -m tokenizer.train --input corpus.txt --vocab-size 30522 --output my-tokenizer

The corpus is read as data/prepare.py reads it. Of more than 128 MB a part is used, spread evenly over it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, TextIO

if __package__ in (None, ""):
    # Started as a script: the repository and not tokenizer/ is where modules are found.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from corpora.atomic import atomic_file  # noqa: E402
from corpora.documents import DocumentReader  # noqa: E402
from corpora.pieces import Corpus  # noqa: E402
from corpora.program import add_input_flags, reported  # noqa: E402
from corpora.sources import guess, open_source  # noqa: E402
from tokenizer.learning import SMALLEST_VOCAB, train_bpe  # noqa: E402

if TYPE_CHECKING:
    from tokenizer.bpe import Tokenizer

# Text that a vocabulary is learnt from: more gives the same words, and memory grows with the words that occur.
LEARNING_BYTES = 128 << 20


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(
        prog="tokenizer.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_input_flags(parser)
    parser.add_argument("--vocab-size", type=int, default=30522, help="entries, <|endoftext|> included (30522)")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="a folder, or a file ending in .json"
    )
    args = parser.parse_args(argv)
    if args.vocab_size < SMALLEST_VOCAB:
        parser.error(f"--vocab-size must be {SMALLEST_VOCAB} or more (256 bytes and the end), not {args.vocab_size}")
    if args.output.suffix != ".json":
        if args.output.exists() and not args.output.is_dir():
            parser.error(f"--output {args.output}: neither a folder nor a name ending in .json")
        args.output = args.output / "tokenizer.json"
    return args


def learn_vocabulary(corpus: Corpus, json_key: str, vocab_size: int, stream: TextIO) -> Tokenizer:
    """A byte-level BPE trained on the corpus, on pieces spread evenly over it if it is larger than LEARNING_BYTES."""
    step = -(-corpus.size() // LEARNING_BYTES)

    def texts() -> Iterator[str]:
        for number, piece in enumerate(corpus.pieces()):
            if number % step == 0:
                yield from DocumentReader(piece, json_key)

    tokenizer = train_bpe(texts(), vocab_size)
    share = f" on every {step}th piece of the text" if step > 1 else ""
    stream.write(f"trained a byte-level BPE of {tokenizer.vocab_size:,} entries{share}\n")
    return tokenizer


def train(args: argparse.Namespace, stream: TextIO) -> None:
    """Write the tokenizer that the flags ask for. Raises ValueError for an input that cannot be used."""
    corpus, _ = open_source(args.source or guess(args.input), args.input, args.documents)
    tokenizer = learn_vocabulary(corpus, args.json_key, args.vocab_size, stream)
    if tokenizer.vocab_size < args.vocab_size:
        stream.write(f"note: the text has words for {tokenizer.vocab_size:,} entries only, not {args.vocab_size:,}\n")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(args.output) as file:
        file.write(tokenizer.to_json().encode("utf-8"))
    stream.write(f"wrote {args.output}; its <|endoftext|> is id {tokenizer.eot_id}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = parse_args(argv)
    return reported("tokenizer.train", lambda: train(args, sys.stderr))


if __name__ == "__main__":
    sys.exit(main())
