#!/usr/bin/env python3
"""JSON lines or extracted Wikipedia to Megatron-LM's memory-mapped corpus, PREFIX_text_document.bin and .idx.

    python3 data/preprocess_megatron.py --input my-corpus.json --output-prefix my-gpt2 --append-eod

A line of the input is a JSON object with its text under "text"; .gz, .bz2 and .xz are read as they are. The tokenizer
is left beside the files as tokenizer.json. Interrupted, the same command goes on where it stopped. Any number of
workers gives the same files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if __package__ in (None, ""):
    # Started as a script: the repository and not data/ is where modules are found.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from corpora.origin import Origin  # noqa: E402
from corpora.program import (  # noqa: E402
    TEXT_KEY,
    ProgramParser,
    add_overwrite_flag,
    add_placeholder_flag,
    reported,
    train_on_it,
)

if TYPE_CHECKING:
    from data.building.corpus_formats import MegatronWriter


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags; all problems are reported at once. Dashes and underscores are the same."""
    parser = ProgramParser("preprocess_megatron.py", __doc__)

    def flag(name: str, *more: str, **rest: object) -> None:
        spellings = [name, *more]
        spellings += [s for s in ("--" + n[2:].replace("-", "_") for n in spellings) if s not in spellings]
        parser.add_argument(*spellings, **rest)  # type: ignore[arg-type]

    flag("--input", nargs="+", required=True, type=Path, metavar="PATH", help="JSON lines, or extracted folders")
    flag("--output-prefix", required=True, metavar="PREFIX", help="path of the files without _text_document.bin")
    flag(
        "--json-keys", "--json-key", nargs="+", default=[TEXT_KEY], metavar="KEY", help="a corpus each (default: text)"
    )
    flag("--append-eod", action="store_true", help="end each document with <|endoftext|>, as GPT-2 needs it")
    flag("--tokenizer", type=Path, metavar="PATH", help="tokenizer.json or a folder (default: GPT-2's)")
    flag("--vocab-file", type=Path, metavar="PATH", help="vocabulary, with --merge-file")
    flag("--merge-file", type=Path, metavar="PATH", help="merges, with --vocab-file")
    flag("--workers", type=int, default=0, help="processes (default: 0, one a core)")
    add_placeholder_flag(parser)
    add_overwrite_flag(parser)
    args = parser.parse_args(argv)
    problems = []
    if args.workers < 0:
        problems.append(f"--workers must be 0 or more, not {args.workers}")
    name = Path(args.output_prefix).name
    if not name or Path(args.output_prefix).is_dir():
        problems.append(f"--output-prefix {args.output_prefix}: a folder; add the beginning of the files' names")
    if name.startswith("."):
        problems.append(f"--output-prefix {args.output_prefix}: a hidden name; choose one that begins with a letter")
    if len(set(args.json_keys)) < len(args.json_keys):
        problems.append(f"--json-keys {' '.join(args.json_keys)}: names one twice")
    problems += [f"--json-keys {key}: becomes part of a file's name; no /" for key in args.json_keys if "/" in key]
    if (args.vocab_file is None) != (args.merge_file is None):
        problems.append("--vocab-file and --merge-file belong together; give both")
    if args.tokenizer is not None and args.vocab_file is not None:
        problems.append("--tokenizer contradicts --vocab-file; leave one of the two out")
    if problems:
        parser.refuse(problems)
    return args


def preprocess(args: argparse.Namespace, stream: TextIO) -> None:
    """Write the corpora. Raises ValueError naming the input that cannot be used, RuntimeError, OSError."""
    # Imported where they are used: --help and bad flags need not wait for them.
    from corpora.sources import check_input_flags, holds_wikipedia, open_source, passed_over
    from data.building.corpus import build, worker_count
    from data.building.corpus_formats import MegatronWriter
    from data.building.duplicates import Selector
    from data.building.parts import Recipe
    from tokenizer import Tokenizer, open_tokenizer

    wikipedia = all(map(holds_wikipedia, args.input))
    if wikipedia and args.json_keys != [TEXT_KEY]:
        raise ValueError(f"--json-keys {' '.join(args.json_keys)}: --input is extracted Wikipedia, whose key is text")
    source = "wikipedia" if wikipedia else "jsonl"
    corpus, _ = open_source(source, args.input)
    check_input_flags(None, args.drop_placeholders, source, corpus.files)
    if args.tokenizer is not None:
        tokenizer = Tokenizer.from_folder(args.tokenizer)
    else:
        tokenizer = open_tokenizer(0, None, args.vocab_file, args.merge_file)
    prefix = Path(args.output_prefix)
    _check_beside(prefix.with_name("tokenizer.json"), tokenizer.to_json())
    writers = [MegatronWriter(prefix, tokenizer.vocab_size, key, ends=args.append_eod) for key in args.json_keys]
    origins = [made_from(args, source, writer) for writer in writers]
    for origin in origins:
        origin.check()
    others = passed_over(args.input, corpus.files)
    stream.write(f"{others}\n" if others else "")
    for key, writer, origin in zip(args.json_keys, writers, origins):
        recipe = Recipe(json_key=key, drop_placeholders=args.drop_placeholders)
        name = Path(writer.prefix).name
        nothing_dropped = Selector("none", 0.0, 0.0, 0)
        workers = worker_count(args.workers)
        with origin.kept():
            build(corpus, tokenizer, recipe, nothing_dropped, prefix.parent, name, workers, writer, None, stream)
        stream.write(train_on_it(writer.train_flags()))


def made_from(args: argparse.Namespace, source: str, writer: MegatronWriter) -> Origin:
    """What the flags make the corpus of a writer from; its key is in the name of its files."""
    paths = {"--tokenizer": args.tokenizer, "--vocab-file": args.vocab_file, "--merge-file": args.merge_file}
    flags = {"--append-eod": args.append_eod, "--drop-placeholders": args.drop_placeholders}
    return Origin(
        Path(f"{writer.prefix}.made-from"),
        {"--input": args.input, **{flag: [path] for flag, path in paths.items() if path is not None}},
        {"--source": source, **{flag: value for flag, value in flags.items() if value}},
        writer.there,
        "--output-prefix",
        args.overwrite,
    )


def _check_beside(path: Path, content: str) -> None:
    """Raise ValueError if a tokenizer.json is there that would be replaced by another one."""
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != content:
        raise ValueError(
            f"{path}: there is another tokenizer's, of other data; choose another folder for --output-prefix"
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = parse_args(argv)
    return reported("preprocess_megatron.py", lambda: preprocess(args, sys.stderr))


if __name__ == "__main__":
    sys.exit(main())
