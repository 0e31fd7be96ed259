#!/usr/bin/env python3
"""Learn a byte-level BPE vocabulary from a corpus: writes a tokenizer.json that every program here takes, and the
config.json of a model for it, with the dimensions of --config.

    python3 -m tokenizer.train --input corpus.txt --vocab-size 30522 --output my-tokenizer

The corpus is read as data/prepare.py reads it. Of more than 128 MB a part is used, spread evenly over it; --first-…
takes its beginning instead, all of that.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple, TextIO

if __package__ in (None, ""):
    # Started as a script: the repository and not tokenizer/ is where modules are found.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from corpora.atomic import atomic_files  # noqa: E402
from corpora.documents import DocumentReader  # noqa: E402
from corpora.origin import Origin  # noqa: E402
from corpora.pieces import Corpus  # noqa: E402
from corpora.program import (  # noqa: E402
    TEXT_KEY,
    ProgramParser,
    add_input_flags,
    add_overwrite_flag,
    as_absolute,
    reported,
    train_gpt2,
)
from corpora.sources import check_input_flags, guess, open_source, passed_over  # noqa: E402
from tokenizer.entries import TOKENIZER_FILE, json_object, read_text  # noqa: E402
from tokenizer.learning import SMALLEST_VOCAB, train_bpe  # noqa: E402

if TYPE_CHECKING:
    from tokenizer.bpe import Tokenizer

CONFIG = Path(__file__).resolve().parents[1] / "config" / "config.json"  # of GPT-2 small

# Text that a vocabulary is learnt from: more gives the same words, and memory grows with the words that occur.
LEARNING_BYTES = 128 << 20


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags."""
    parser = ProgramParser("tokenizer.train", __doc__)
    add_input_flags(parser)
    parser.add_argument("--vocab-size", type=int, default=30522, help="entries, <|endoftext|> included (30522)")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="a folder, or a file ending in .json"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a model's config.json, for all but the vocabulary (GPT-2 small's)",
    )
    add_overwrite_flag(parser)
    first = parser.add_argument_group("the part that is learnt from, in the corpus's order")
    first.add_argument("--first-documents", type=int, metavar="N", help="its first N documents")
    first.add_argument("--first-bytes", type=int, metavar="N", help="documents up to N bytes of text")
    first.add_argument("--first-share", type=float, metavar="X", help="this share of the input, between 0 and 1")
    args = parser.parse_args(argv)
    check_first(parser, args)
    if args.vocab_size < SMALLEST_VOCAB:
        parser.error(f"--vocab-size must be {SMALLEST_VOCAB} or more (256 bytes and the end), not {args.vocab_size}")
    args.config_output = None
    if args.output.suffix != ".json":
        if args.output.exists() and not args.output.is_dir():
            parser.error(f"--output {args.output}: neither a folder nor a name ending in .json")
        if any(args.output.glob("*.safetensors")) or any(args.output.glob("pytorch_model*.bin")):
            parser.error(f"--output {args.output}: holds the weights of a model for another vocabulary; name another")
        args.config_output = args.output / "config.json"
        args.output = args.output / TOKENIZER_FILE
    elif args.config is not None:
        parser.error("--config: a config.json is written into a folder only; name one with --output")
    return args


def check_first(parser: ProgramParser, args: argparse.Namespace) -> None:
    """At most one of the flags about the beginning is given, and its value is a part. Ends the program otherwise."""
    given = [name for name in ("first_documents", "first_bytes", "first_share") if getattr(args, name) is not None]
    flags = ["--" + name.replace("_", "-") for name in given]
    if len(given) > 1:
        parser.error(f"{' and '.join(flags)}: each says how much of the corpus is learnt from; give one")
    for name, flag in zip(given, flags):
        value = getattr(args, name)
        if name == "first_share" and not 0 < value <= 1:
            parser.error(f"{flag} must be above 0 and at most 1, not {value}")
        if name != "first_share" and value < 1:
            parser.error(f"{flag} must be 1 or more, not {value}")


class Part(NamedTuple):
    """How much of a corpus is learnt from, from its beginning on; None: no such limit.

    Attributes:
        documents: that many, blank ones not counted. text_bytes: as many as fit into so much UTF-8, but one at least.
        share: of the input's bytes, in whole pieces.
    """

    documents: int | None = None
    text_bytes: int | None = None
    share: float | None = None


def learn_vocabulary(
    corpus: Corpus,
    json_key: str,
    vocab_size: int,
    stream: TextIO,
    drop_placeholders: bool = False,
    part: Part | None = None,
) -> Tokenizer:
    """A byte-level BPE trained on a `part` of the corpus; None: on pieces spread evenly if it has over LEARNING_BYTES.

    `json_key` and `drop_placeholders`: as for DocumentReader.
    """
    step = -(-corpus.size() // LEARNING_BYTES) if part is None else 1
    documents = size = 0

    def texts() -> Iterator[str]:
        nonlocal documents, size
        for text in _beginning(corpus, json_key, drop_placeholders, step, part or Part()):
            documents, size = documents + bool(text.strip()), size + len(text.encode("utf-8", "surrogatepass"))
            yield text

    tokenizer = train_bpe(texts(), vocab_size)
    share = f" on every {step}th piece of the text" if step > 1 else ""
    if part is not None:
        share = f" on the first {documents:,} documents, {size:,} bytes of text"
    stream.write(f"trained a byte-level BPE of {tokenizer.vocab_size:,} entries{share}\n")
    return tokenizer


def _beginning(corpus: Corpus, json_key: str, drop_placeholders: bool, step: int, part: Part) -> Iterator[str]:
    """The texts of every step-th piece that are within the part."""
    documents = size = done = 0
    for number, piece in enumerate(corpus.pieces()):
        if part.share is not None and done >= part.share * corpus.size():
            return
        done += piece.size
        for text in DocumentReader(piece, json_key, drop_placeholders) if number % step == 0 else ():
            documents, size = documents + bool(text.strip()), size + len(text.encode("utf-8", "surrogatepass"))
            if part.documents is not None and documents > part.documents:
                return
            if part.text_bytes is not None and size > part.text_bytes and documents > 1:
                return
            yield text


def train(args: argparse.Namespace, stream: TextIO) -> None:
    """Write the tokenizer that the flags ask for. Raises ValueError for an input that cannot be used."""
    there = args.config_output if args.config_output and args.config_output.is_file() else None
    dimensions = args.config or there or CONFIG
    values = json_object(read_text(dimensions), dimensions) if args.config_output else {}
    source = args.source or guess(args.input)
    corpus, _ = open_source(source, args.input, args.documents)
    check_input_flags(args.json_key, args.drop_placeholders, source, corpus.files)
    origin = made_from(args, source)
    origin.check()
    others = passed_over(args.input, [*corpus.files, args.output])
    stream.write(f"{others}\n" if others else "")
    limits = Part(args.first_documents, args.first_bytes, args.first_share)
    part = None if limits == Part() else limits
    tokenizer = learn_vocabulary(
        corpus, args.json_key or TEXT_KEY, args.vocab_size, stream, args.drop_placeholders, part
    )
    if tokenizer.vocab_size < args.vocab_size:
        stream.write(f"note: the text has words for {tokenizer.vocab_size:,} entries only, not {args.vocab_size:,}\n")
    contents = {args.output: tokenizer.to_json()}
    if args.config_output is not None:
        contents[args.config_output] = model_config(values, tokenizer)
    with origin.kept(), atomic_files(*contents) as files:
        for file, content in zip(files, contents.values()):
            file.write(content.encode("utf-8"))
    stream.write(f"wrote {args.output}; its <|endoftext|> is id {tokenizer.eot_id}\n")
    if args.config_output is None:
        stream.write(f"its model needs vocab_size {tokenizer.vocab_size} and eos_token_id {tokenizer.eot_id}\n")
    else:
        stream.write(f"wrote {args.config_output}: {train_gpt2()} --config {as_absolute(args.config_output)}\n")


def made_from(args: argparse.Namespace, source: str) -> Origin:
    """What the flags learn a vocabulary from."""
    names = (
        "vocab_size",
        "json_key",
        "documents",
        "drop_placeholders",
        "first_documents",
        "first_bytes",
        "first_share",
    )
    given = {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    given["--json-key"] = None if args.json_key == TEXT_KEY else args.json_key
    return Origin(
        args.output.with_name(f"{args.output.name}.made-from"),
        {"--input": args.input, **({"--config": [args.config]} if args.config else {})},
        {"--source": source, **{flag: value for flag, value in given.items() if value not in (None, False)}},
        lambda: [args.output] * args.output.exists(),
        "--output",
        args.overwrite,
    )


def model_config(values: dict[str, Any], tokenizer: Tokenizer) -> str:
    """A config.json with these values, for the vocabulary of the tokenizer.

    A `padding_id` does not go along: in another vocabulary that id is another token.
    """
    end = tokenizer.eot_id
    kept = {key: value for key, value in values.items() if key != "real_vocab_size"}  # vocab_size has no padding
    kept.update(vocab_size=tokenizer.vocab_size, bos_token_id=end, eos_token_id=end)
    if isinstance(kept.get("variant"), dict):
        kept["variant"] = {key: value for key, value in kept["variant"].items() if key != "padding_id"}
    return json.dumps(kept, indent=2) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = parse_args(argv)
    return reported("tokenizer.train", lambda: train(args, sys.stderr), goes_on=False)


if __name__ == "__main__":
    sys.exit(main())
