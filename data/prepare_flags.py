"""The flags of data/prepare.py: which there are, and which go together."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from corpora.program import ProgramParser, add_input_flags, add_overwrite_flag

FORMATS = ("pkl", "tfrecord", "mmap", "webdataset")
# Flags that have an effect beside some others only: None until it is known that they have, then these.
DEFAULTS = {
    "seq_length": 1025,
    "stride": 128,
    "records": "windows",
    "features": "input_ids",
    "num_output": 4,
    "near_threshold": 0.8,
    "seed": 1234,
    "tokenizer_type": "0",
}
DEFAULTS_OF_TARS = {**DEFAULTS, "seq_length": 1024, "records": "stream"}


def parse_args(argv: list[str] | None, about: str | None = None) -> argparse.Namespace:
    """Flags; all problems are reported at once. `about` is for --help. args.notes: lines to print at the start."""
    parser = ProgramParser("data.prepare", about)
    add_input_flags(parser)
    parser.add_argument("--fix-text", action="store_true", help="repair broken characters with ftfy")
    parser.add_argument("--detokenize", action="store_true", help="WikiText to ordinary text, as it is evaluated")
    add_output_flags(parser)
    add_document_flags(parser)
    how = parser.add_argument_group("tokenizer and processes")
    how.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer.json or a folder (default: GPT-2's)")
    how.add_argument("--tokenizer-type", choices=("0", "1"), help="1: Megatron's files in --tokenizer (0)")
    how.add_argument("--vocab-file", type=Path, metavar="PATH", help="vocabulary, with --merge-file")
    how.add_argument("--merge-file", type=Path, metavar="PATH", help="merges, with --vocab-file")
    how.add_argument("--workers", type=int, default=0, help="processes (default: 0, one a core)")
    args = parser.parse_args(argv)
    idle = without_effect(args)
    args.notes = [f"--{name.replace('_', '-')} {getattr(args, name)} has no effect{why}" for name, why in idle.items()]
    for name, default in defaults(args.format).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    problems = range_problems(args) + record_problems(args)
    if problems:
        parser.refuse(problems)
    for name in idle:
        setattr(args, name, defaults(args.format)[name])
    return args


def defaults(form: str) -> dict[str, Any]:
    """Values of flags that are not given, of a format."""
    return DEFAULTS_OF_TARS if form == "webdataset" else DEFAULTS


def without_effect(args: argparse.Namespace) -> dict[str, str]:
    """The flags that are given and have no effect beside the others, and why; those that are refused are not here."""
    cut = (args.format in ("tfrecord", "webdataset"), ": it is for --format tfrecord or webdataset")
    tfrecord = (args.format == "tfrecord", ": it is for --format tfrecord")
    windows = args.format == "tfrecord" and args.records in (None, "windows")
    rules = {
        "seq_length": cut,
        "stride": (windows, ": it is for --format tfrecord with --records windows"),
        "records": (cut[0] or args.records != "windows", cut[1]),
        "features": (tfrecord[0] or args.features != "input_ids", tfrecord[1]),
        "num_output": tfrecord,
        "near_threshold": (args.deduplicate == "near", ": it is for --deduplicate near"),
        "seed": (args.validation_fraction, ": it is for --validation-fraction"),
        "tokenizer_type": (args.tokenizer is not None, ": it says which files of --tokenizer are read"),
    }
    return {name: why for name, (effect, why) in rules.items() if getattr(args, name) is not None and not effect}


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Which files are written, and what a record of them is."""
    out = parser.add_argument_group("output")
    out.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the files")
    out.add_argument("--name", default="corpus", help="beginning of their names (default: corpus)")
    out.add_argument("--format", choices=FORMATS, default="pkl", help="default: pkl; beyond a few GB: mmap")
    out.add_argument("--seq-length", type=int, help="ids a record: tfrecord --max-len + 1 (1025), webdataset (1024)")
    out.add_argument("--stride", type=int, help="tfrecord: step of the window over a document (128)")
    out.add_argument(
        "--records",
        choices=("windows", "stream", "first"),
        help="tfrecord: windows over each document (the default); all documents joined and cut, each id once (of "
        "webdataset the default); the beginnings of long documents without their rest, and short ones joined",
    )
    out.add_argument(
        "--features",
        choices=("input_ids", "inputs-labels"),
        help="tfrecord: one list of ids, or inputs and labels, the ids shifted by one (default: input_ids)",
    )
    out.add_argument("--control-code", metavar="ENTRY", help="entry of the vocabulary before each of these records")
    out.add_argument("--num-output", type=int, help="tfrecord: number of files (4)")
    add_overwrite_flag(out)


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
        "--near-threshold", type=float, help="Jaccard similarity of near duplicates, 5-grams of ids (0.8)"
    )
    which.add_argument("--validation-fraction", type=float, default=0.0, help="share of the documents held out (0)")
    which.add_argument(
        "--validation-first", type=int, default=0, metavar="N", help="the first N documents are held out instead (0)"
    )
    which.add_argument("--seed", type=int, help="which ones (1234)")


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
    if args.tokenizer is not None and (args.vocab_file is not None or args.merge_file is not None):
        problems.append("--tokenizer contradicts --vocab-file and --merge-file; leave one or the others out")
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
