#!/usr/bin/env python3
"""Extracted Wikipedia to token ids: writes wikicorpus_en_one_article_per_line.pkl, a list of lists of ids.

    python3 ./data/wikipedia_preprocess.py --input-file-path EXTRACTED --output-file-path PREPROCESSED

The tokenizer used is saved beside it as tokenizer.json, with a link to write_into_tfrecord.py.
Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script: the repository and not data/ is where modules are found (data/ has a tfrecord, like
    # the well-known package).
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from corpora.origin import Origin  # noqa: E402
from corpora.program import (  # noqa: E402
    ProgramParser,
    add_overwrite_flag,
    add_placeholder_flag,
    reported,
    train_on_it,
)

OUTPUT_NAME = "wikicorpus_en_one_article_per_line.pkl"
BPE_VOCAB_SIZE = 30522


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags; dashes and underscores are the same."""
    parser = ProgramParser("wikipedia_preprocess.py", __doc__.split("\n")[0])
    parser.add_argument(
        "--input-file-path", "--input_file_path", required=True, type=Path, help="folder with AA/wiki_00 ..."
    )
    parser.add_argument(
        "--output-file-path", "--output_file_path", required=True, type=Path, help="folder for " + OUTPUT_NAME
    )
    parser.add_argument(
        "--min-length",
        "--min_length",
        type=int,
        default=10,
        help="articles of fewer ids, <|endoftext|> included, are dropped (default: 10)",
    )
    parser.add_argument(
        "--use-bpe",
        "--use_bpe",
        action="store_true",
        help=f"train a byte-level BPE of {BPE_VOCAB_SIZE:,} entries on the corpus instead of using GPT-2's",
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="processes; any number gives the same file (default: 0, one a core)"
    )
    add_placeholder_flag(parser)
    add_overwrite_flag(parser)
    args = parser.parse_args(argv)
    problems = [
        f"--{name.replace('_', '-')} must be 0 or more, not {getattr(args, name)}"
        for name in ("min_length", "workers")
        if getattr(args, name) < 0
    ]
    if args.output_file_path.exists() and not args.output_file_path.is_dir():
        problems.append(f"--output-file-path {args.output_file_path}: not a folder")
    if problems:
        parser.refuse(problems)
    return args


def preprocess(args: argparse.Namespace) -> None:
    """Write the corpus. Raises ValueError for a source without articles, RuntimeError without GPT-2's vocabulary."""
    # Imported where they are used: --help and bad flags need not wait for them.
    if args.workers != 1:
        from data.building.worker_pool import start_server

        start_server()
    from corpora.pieces import Corpus, wikipedia
    from corpora.wikipedia import wiki_files
    from data.building.corpus import build, check_vocabulary, worker_count
    from data.building.corpus_formats import PickleWriter
    from data.building.duplicates import Selector
    from data.building.parts import Recipe
    from tokenizer import Tokenizer
    from tokenizer.train import learn_vocabulary

    source, folder = args.input_file_path, args.output_file_path
    corpus = Corpus(wiki_files(source), lambda: wikipedia([source]))
    path = folder / OUTPUT_NAME
    flags = {"--use-bpe": args.use_bpe, "--drop-placeholders": args.drop_placeholders}
    origin = Origin(
        folder / f"{OUTPUT_NAME}.made-from",
        {"--input-file-path": [source]},
        {"--min-length": args.min_length, **{flag: value for flag, value in flags.items() if value}},
        lambda: [path] * path.exists(),
        "--output-file-path",
        args.overwrite,
    )
    tokenizer = Tokenizer.gpt2()
    check_vocabulary(folder, tokenizer, to_have=not args.use_bpe)  # first: --overwrite does not help there
    origin.check()
    if args.use_bpe:
        tokenizer = learn_vocabulary(corpus, "text", BPE_VOCAB_SIZE, sys.stderr, args.drop_placeholders)
    writer = PickleWriter(path, tokenizer.vocab_size)
    recipe, everything = (
        Recipe(args.min_length, drop_placeholders=args.drop_placeholders),
        Selector("none", 0.0, 0.0, 0),
    )
    workers = worker_count(args.workers)
    with origin.kept():
        build(corpus, tokenizer, recipe, everything, folder, OUTPUT_NAME, workers, writer, None, sys.stderr)
    sys.stderr.write(train_on_it(writer.train_flags()))
    link_tfrecord_writer(folder)


def link_tfrecord_writer(folder: Path) -> None:
    """Make `cd FOLDER; python write_into_tfrecord.py` work, by a link to the script."""
    script = Path(__file__).resolve().with_name("write_into_tfrecord.py")
    link = folder / script.name
    with contextlib.suppress(OSError):  # a file system without links; the path of the script serves as well
        if link.is_symlink():  # to where the repository was
            link.unlink()
        if not link.exists():
            link.symlink_to(script)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = parse_args(argv)
    return reported("wikipedia_preprocess.py", lambda: preprocess(args))


if __name__ == "__main__":
    sys.exit(main())
