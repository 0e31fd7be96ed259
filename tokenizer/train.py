#!/usr/bin/env python3
"""Learn a byte-level BPE vocabulary from a corpus: writes a tokenizer.json that every program here takes.

    python3 -m tokenizer.train --input corpus.txt --vocab-size 30522 --output my-tokenizer

The corpus is read as data/prepare.py reads it. Of more than 128 MB a part is used, spread evenly over it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TextIO

if __package__ in (None, ""):
    # Started as a script: the repository and not tokenizer/ is where modules are found.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tokenizer.learning import SMALLEST_VOCAB  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags."""
    from data.prepare import add_input_flags

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


def train(args: argparse.Namespace, stream: TextIO) -> None:
    """Write the tokenizer that the flags ask for. Raises ValueError for an input that cannot be used."""
    from corpora.atomic import atomic_file
    from corpora.sources import guess, open_source
    from data.building.corpus import learn_vocabulary

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
    from data.building.corpus import reported

    return reported("tokenizer.train", lambda: train(args, sys.stderr))


if __name__ == "__main__":
    sys.exit(main())
