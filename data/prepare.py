#!/usr/bin/env python3
"""Any corpus to token ids: extracted Wikipedia, WikiText, OpenWebText archives, plain text, JSON lines.

    python3 -m data.prepare --input wikitext-103-raw-v1.zip --output prepared
    python3 -m data.prepare --input a.jsonl b.jsonl.gz --output prepared --format mmap --validation-fraction 0.001

Interrupted, the same command goes on where it stopped. Any number of workers gives the same files.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Callable, TextIO

if __package__ in (None, ""):
    # Started as a script: the repository and not data/ is where modules are found.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from corpora.origin import Origin  # noqa: E402
from corpora.program import TEXT_KEY, as_absolute, reported, train_on_it  # noqa: E402
from data.prepare_flags import parse_args  # noqa: E402

if TYPE_CHECKING:
    from data.building.corpus_formats import CorpusWriter
    from tokenizer import Tokenizer

# Beside the input, which has names of its own in a record, what does not decide what is written.
_NO_PART_OF_IT = ("input", "source", "output", "name", "workers", "overwrite", "notes")


def prepare(args: argparse.Namespace, stream: TextIO) -> None:
    """Write the corpus that the flags ask for. Raises ValueError, RuntimeError, OSError."""
    if args.workers != 1:
        from data.building.worker_pool import start_server

        start_server()
    from corpora.sources import DOCUMENTS, check_input_flags, guess, open_source, passed_over
    from data.building.corpus import build, check_vocabulary, worker_count
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
    check_parts(args, source)
    corpus, own_validation = open_source(source, args.input, args.documents)
    check_input_flags(args.json_key, args.drop_placeholders, source, corpus.files)
    if len(DOCUMENTS[source]) == 1:  # the flag says what is so anyway
        args.documents = None
    tokenizer = chosen_tokenizer(args)
    training = writer(args, "", tokenizer)
    holds_out = bool(args.validation_fraction or args.validation_first or own_validation)
    validation = writer(args, "-valid", tokenizer) if holds_out else None
    writers = [training, validation] if validation else [training]
    check_vocabulary(args.output, tokenizer)
    origin = made_from(args, source, lambda: [*(path for each in writers for path in each.there()), *unfinished(args)])
    origin.check()
    for note in args.notes:
        stream.write(f"note: {note}\n")
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
        args.json_key or TEXT_KEY,
        args.fix_text,
        args.detokenize,
        args.drop_placeholders,
        args.document_ends,
        args.documents,
        digests=args.deduplicate != "none" or args.validation_fraction > 0,
        signatures=args.deduplicate == "near",
    )
    workers = worker_count(args.workers)
    name = f"{args.name}.{args.format}"
    apart = own_validation if not (args.validation_fraction or args.validation_first) else None
    drawn = None if apart is not None else validation
    with origin.kept():
        build(corpus, tokenizer, recipe, selector, args.output, name, workers, training, drawn, stream)
        if apart is not None and validation is not None:
            recipe = dataclasses.replace(recipe, digests=False, signatures=False)
            keep_all = Selector("none", 0.0, 0.0, args.seed)
            name = f"valid.{name}"
            build(apart, tokenizer, recipe, keep_all, args.output, name, workers, validation, None, stream)
    stream.write(train_on_it(training.train_flags() + further_flags(args, validation)))


def made_from(args: argparse.Namespace, source: str, there: Callable[[], list[Path]]) -> Origin:
    """What the flags make a corpus from. `there`: its files, as far as they are there."""
    # What the flags are if none is given.
    plain = {**vars(parse_args(["--input", ".", "--output", ".", "--format", args.format])), "json_key": TEXT_KEY}
    given = {name: value for name, value in vars(args).items() if name not in _NO_PART_OF_IT}
    given = {f"--{name.replace('_', '-')}": v for name, v in given.items() if v not in (None, plain[name])}
    paths = {flag: [value] for flag, value in given.items() if isinstance(value, Path)}
    flags = {flag: value for flag, value in given.items() if flag not in paths}
    record = args.output / f"{args.name}.{args.format}.made-from"
    inputs = {"--input": args.input, **paths}
    return Origin(record, inputs, {"--source": source, **flags}, there, "--output or --name", args.overwrite)


def unfinished(args: argparse.Namespace) -> list[Path]:
    """What an interrupted command has done of a corpus of this name."""
    name = glob.escape(f"{args.name}.{args.format}")
    folders = (path for part in ("", ".valid") for path in args.output.glob(f"{part}.{name}.parts-*"))
    return sorted(path for path in folders if any(path.glob("*.npz")))


def further_flags(args: argparse.Namespace, validation: CorpusWriter | None) -> str:
    """Flags of train_gpt2.py beside those of the writer: the model of a tokenizer that has one, of a .pkl its
    validation file, and how it is cut."""
    flags = ""
    if args.tokenizer is not None:
        config = (args.tokenizer if args.tokenizer.is_dir() else args.tokenizer.parent) / "config.json"
        flags = f" --config {as_absolute(config)}" if config.is_file() else ""
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
    from tokenizer.entries import MEGATRON_FILES

    if args.tokenizer is None:
        return open_tokenizer(0, None, args.vocab_file, args.merge_file)
    if args.tokenizer_type == "0":
        return Tokenizer.from_folder(args.tokenizer)
    if not all((args.tokenizer / name).is_file() for name in MEGATRON_FILES):
        raise ValueError(
            f"--tokenizer {args.tokenizer}: no {' and '.join(MEGATRON_FILES)} in it, which --tokenizer-type 1 reads; "
            "name the folder that has them, or leave --tokenizer-type out"
        )
    return open_tokenizer(1, args.tokenizer)


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
    args = parse_args(argv, __doc__)
    return reported("data.prepare", lambda: prepare(args, sys.stderr))


if __name__ == "__main__":
    sys.exit(main())
