#!/usr/bin/env python3
"""Any corpus to token ids: extracted Wikipedia, WikiText, OpenWebText archives, plain text, JSON lines.

    python3 -m data.prepare --input wikitext-103-raw-v1.zip --output prepared
    python3 -m data.prepare --input a.jsonl b.jsonl.gz --output prepared --format mmap --validation-fraction 0.001

Interrupted, the same command goes on where it stopped. Any number of workers gives the same files.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if __package__ in (None, ""):
    # Started as a script: the repository and not data/ is where modules are found.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from corpora.program import TRAIN_ON_IT, ProgramParser, add_input_flags, reported  # noqa: E402

if TYPE_CHECKING:
    from data.building.corpus_formats import CorpusWriter
    from tokenizer import Tokenizer

FORMATS = ("pkl", "tfrecord", "mmap", "webdataset")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags; all problems are reported at once."""
    parser = ProgramParser("data.prepare", __doc__)
    add_input_flags(parser)
    parser.add_argument("--fix-text", action="store_true", help="repair broken characters with ftfy")
    parser.add_argument("--detokenize", action="store_true", help="WikiText to ordinary text, as it is evaluated")
    add_output_flags(parser)
    add_document_flags(parser)
    how = parser.add_argument_group("tokenizer and processes")
    how.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer.json or a folder (default: GPT-2's)")
    how.add_argument("--tokenizer-type", choices=("0", "1"), default="0", help="1: Megatron's files in --tokenizer")
    how.add_argument("--vocab-file", type=Path, metavar="PATH", help="vocabulary, with --merge-file")
    how.add_argument("--merge-file", type=Path, metavar="PATH", help="merges, with --vocab-file")
    how.add_argument("--workers", type=int, default=0, help="processes (default: 0, one a core)")
    args = parser.parse_args(argv)
    args.tokenizer_type = int(args.tokenizer_type)
    if args.seq_length is None:
        args.seq_length = 1024 if args.format == "webdataset" else 1025
    if args.records is None:
        args.records = "stream" if args.format == "webdataset" else "windows"
    problems = range_problems(args) + record_problems(args)
    if problems:
        parser.refuse(problems)
    return args


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Which files are written, and what a record of them is."""
    out = parser.add_argument_group("output")
    out.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the files")
    out.add_argument("--name", default="corpus", help="beginning of their names (default: corpus)")
    out.add_argument("--format", choices=FORMATS, default="pkl", help="default: pkl; beyond a few GB: mmap")
    out.add_argument("--seq-length", type=int, help="ids a record: tfrecord --max-len + 1 (1025), webdataset (1024)")
    out.add_argument("--stride", type=int, default=128, help="tfrecord: step of the window over a document (128)")
    out.add_argument(
        "--records",
        choices=("windows", "stream", "first"),
        help="tfrecord: windows over each document (the default); all documents joined and cut, each id once (of "
        "webdataset the default); the beginnings of long documents without their rest, and short ones joined",
    )
    out.add_argument(
        "--features",
        choices=("input_ids", "inputs-labels"),
        default="input_ids",
        help="tfrecord: one list of ids, or inputs and labels, the ids shifted by one (default: input_ids)",
    )
    out.add_argument("--control-code", metavar="ENTRY", help="entry of the vocabulary before each of these records")
    out.add_argument("--num-output", type=int, default=4, help="tfrecord: number of files (4)")


def add_document_flags(parser: argparse.ArgumentParser) -> None:
    """Which documents go into them."""
    which = parser.add_argument_group("documents")
    which.add_argument("--min-length", type=int, default=2, help="shorter ones (ids and <|endoftext|>) are dropped (2)")
    which.add_argument(
        "--document-ends",
        choices=("end", "both", "none"),
        default="end",
        help="<|endoftext|> behind each, before and behind each, or nowhere: they run into each other (default: end)",
    )
    which.add_argument(
        "--deduplicate",
        choices=("none", "exact", "near"),
        default="none",
        help="drop documents equal to an earlier one, or similar to one (MinHash, datasketch) (default: none)",
    )
    which.add_argument(
        "--near-threshold", type=float, default=0.8, help="Jaccard similarity of near duplicates, 5-grams of ids (0.8)"
    )
    which.add_argument("--validation-fraction", type=float, default=0.0, help="share of the documents held out (0)")
    which.add_argument(
        "--validation-first", type=int, default=0, metavar="N", help="the first N documents are held out instead (0)"
    )
    which.add_argument("--seed", type=int, default=1234, help="which ones (1234)")


def range_problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with single values, and with the output."""
    problems = [
        f"--{name.replace('_', '-')} must be {least} or more, not {getattr(args, name)}"
        for name, least in (
            ("min_length", 0),
            ("workers", 0),
            ("validation_first", 0),
            ("seq_length", 3),
            ("stride", 1),
            ("num_output", 1),
        )
        if getattr(args, name) < least
    ]
    if not 0 <= args.validation_fraction < 1:
        problems.append(f"--validation-fraction must be in [0, 1), not {args.validation_fraction}")
    if args.validation_first and args.validation_fraction:
        problems.append("--validation-first contradicts --validation-fraction; leave one of the two out")
    if not 0 < args.near_threshold < 1:
        problems.append(f"--near-threshold must be between 0 and 1, not {args.near_threshold}")
    if not re.fullmatch(r"\w[\w.-]*", args.name):
        problems.append(f"--name {args.name!r}: letters, digits, . _ and - only")
    if args.output.exists() and not args.output.is_dir():
        problems.append(f"--output {args.output}: not a folder")
    return problems


def record_problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with the flags about records."""
    problems = []
    if args.format == "webdataset" and args.records == "windows":
        problems.append("--records windows is for --format tfrecord; webdataset has stream or first")
    if args.format in ("pkl", "mmap"):
        given = {"--records": args.records != "windows", "--control-code": args.control_code is not None}
        problems += [
            f"{flag} is for --format tfrecord or webdataset, not {args.format}" for flag in given if given[flag]
        ]
    elif args.records == "windows" and args.control_code is not None:
        problems.append("--control-code needs --records stream or first")
    if args.features != "input_ids" and args.format != "tfrecord":
        problems.append(f"--features {args.features} is for --format tfrecord, not {args.format}")
    elif args.features != "input_ids" and args.records == "windows":
        problems.append(f"--features {args.features} has no padding: add --records stream or first")
    return problems


def prepare(args: argparse.Namespace, stream: TextIO) -> None:
    """Write the corpus that the flags ask for. Raises ValueError, RuntimeError, OSError."""
    if args.workers != 1:
        from data.building.worker_pool import start_server

        start_server()
    from corpora.sources import check_placeholders, guess, open_source, passed_over
    from data.building.corpus import build, worker_count
    from data.building.duplicates import Selector
    from data.building.parts import Recipe

    if args.fix_text:
        importlib.import_module("ftfy")  # missing, it is said before anything is done
    source = args.source or guess(args.input)
    if args.detokenize and source != "wikitext" and (source, args.documents) != ("text", "file"):
        raise ValueError(
            f"--detokenize is for WikiText, and this is {source}; leave it out, or for a file of it as a whole add "
            "--source text --documents file"
        )
    check_placeholders(args.drop_placeholders, source)
    check_parts(args, source)
    corpus, own_validation = open_source(source, args.input, args.documents)
    tokenizer = chosen_tokenizer(args)
    encoder = "native" if tokenizer.is_native else "of the tokenizers library (`make` builds the native one)"
    stream.write(
        f"{source}: {len(corpus.files):,} files, {corpus.size() / 1e6:,.1f} MB; vocabulary of "
        f"{tokenizer.vocab_size:,}, encoder {encoder}\n"
    )
    others = passed_over(args.input, [*corpus.files, args.output])
    stream.write(f"{others}\n" if others else "")
    held_out = (args.validation_fraction, args.seed, args.validation_first)
    selector = Selector(args.deduplicate, args.near_threshold, *held_out)
    recipe = Recipe(
        args.min_length,
        args.json_key,
        args.fix_text,
        args.detokenize,
        args.drop_placeholders,
        args.document_ends,
        args.documents,
        digests=args.deduplicate != "none" or args.validation_fraction > 0,
        signatures=args.deduplicate == "near",
    )
    validation = None
    if args.validation_fraction or args.validation_first:
        validation = writer(args, "-valid", tokenizer)
    workers = worker_count(args.workers)
    name = f"{args.name}.{args.format}"
    training = writer(args, "", tokenizer)
    build(corpus, tokenizer, recipe, selector, args.output, name, workers, training, validation, stream)
    if own_validation is not None and validation is None:
        recipe = dataclasses.replace(recipe, digests=False, signatures=False)
        validation = writer(args, "-valid", tokenizer)
        keep_all = Selector("none", 0.0, 0.0, args.seed)
        build(
            own_validation, tokenizer, recipe, keep_all, args.output, f"valid.{name}", workers, validation, None, stream
        )
    stream.write(f"{TRAIN_ON_IT} {training.train_flags()}{further_flags(args, validation)}\n")


def further_flags(args: argparse.Namespace, validation: CorpusWriter | None) -> str:
    """Flags of train_gpt2.py beside those of the writer: the model of a tokenizer that has one, of a .pkl its
    validation file, and how it is cut."""
    flags = ""
    if args.tokenizer is not None:
        config = (args.tokenizer if args.tokenizer.is_dir() else args.tokenizer.parent) / "config.json"
        flags = f" --config {shlex.quote(str(config))}" if config.is_file() else ""
    if args.format != "pkl":
        return flags
    flags += " --windows stream" if args.document_ends == "none" else ""
    return flags + (f" --validation-files {validation.train_flags().split(' ', 1)[1]}" if validation else "")


def check_parts(args: argparse.Namespace, source: str) -> None:
    """Raise ValueError for flags that WikiText as it is, which comes in parts, does not go with."""
    if source != "wikitext" or args.documents != "file":
        return
    if args.document_ends != "none":
        raise ValueError("--documents file of WikiText is one text without ends in it: add --document-ends none")
    if args.detokenize or args.deduplicate != "none" or args.validation_fraction or args.validation_first:
        flag = "--validation-first" if args.validation_first else "--validation-fraction"
        flag = "--deduplicate" if args.deduplicate != "none" else flag
        remedy = "leave one of them out"
        if args.detokenize:
            flag, remedy = "--detokenize", "for one file as a whole add --source text --document-ends none"
        raise ValueError(f"{flag} is about articles, and --documents file of WikiText has none; {remedy}")


def chosen_tokenizer(args: argparse.Namespace) -> Tokenizer:
    """The tokenizer of the flags. Raises ValueError if it is not there."""
    from tokenizer import Tokenizer, open_tokenizer

    if args.tokenizer is not None and args.tokenizer_type == 0 and args.vocab_file is None:
        return Tokenizer.from_folder(args.tokenizer)
    return open_tokenizer(args.tokenizer_type, args.tokenizer, args.vocab_file, args.merge_file)


def writer(args: argparse.Namespace, suffix: str, tokenizer: Tokenizer) -> CorpusWriter:
    """The writer of --format, of files called NAME + suffix."""
    from data.building import corpus_formats
    from data.building.rows import RowWriter

    name = args.name + suffix
    if args.format == "pkl":
        return corpus_formats.PickleWriter(args.output / f"{name}.pkl", tokenizer.vocab_size)
    if args.format == "mmap":
        return corpus_formats.MegatronWriter(args.output / name, tokenizer.vocab_size)
    code = None
    if args.control_code is not None:
        code = tokenizer.token_id(args.control_code)
        if code is None:
            raise ValueError(f"--control-code {args.control_code}: no entry of the vocabulary; give a single one")
    if args.format == "webdataset":
        from data.webdataset.writer import TarWriter

        return RowWriter(TarWriter(args.output / name, name), args.seq_length, args.records, code)
    from data.tfrecord.writer import TFRecordWriter  # needs a checksum library that the others do not

    shards = 1 if suffix else args.num_output  # a validation set is small
    pairs = args.features == "inputs-labels"
    tfrecords = TFRecordWriter(args.output / name, name, args.seq_length, args.stride, shards, pairs=pairs)
    return tfrecords if args.records == "windows" else RowWriter(tfrecords, args.seq_length, args.records, code)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = parse_args(argv)
    return reported("data.prepare", lambda: prepare(args, sys.stderr))


if __name__ == "__main__":
    sys.exit(main())
