#!/usr/bin/env python3
"""A corpus .pkl to TFRecord files with their indexes: the samples that --train-path tfrecord reads.

    cd <folder of preprocessed files>; mkdir tfrecords; python <repository>/data/write_into_tfrecord.py

A record is a window of --seq-length token ids over one article; all windows of an article are in one file.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if __package__ in (None, ""):
    # Started as a script: the repository and not data/ is where modules are found (data/ has a tfrecord, like
    # the well-known package).
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from corpora.origin import Origin  # noqa: E402
from corpora.program import ProgramParser, add_overwrite_flag, reported, train_on_it  # noqa: E402

if TYPE_CHECKING:
    from data.tfrecord.writer import TFRecordWriter

_LARGEST_ID = 2**31 - 1  # any corpus will do: which model it fits is the loader's to say


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags; dashes and underscores are the same."""
    parser = ProgramParser("write_into_tfrecord.py", __doc__)
    for name, kind, default, text in (
        ("input-file-path", Path, "wikicorpus_en_one_article_per_line.pkl", "the corpus"),
        ("output-file-path", Path, "tfrecords", "folder for the files"),
        ("seq-length", int, 1025, "ids a record, --max-len of the training + 1"),
        ("stride", int, 128, "step of the window over a longer article; --max-len: windows that do not overlap"),
        ("num-output", int, 4, "number of files"),
    ):
        parser.add_argument(
            *dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}")),
            type=kind,
            default=kind(default),
            metavar="PATH" if kind is Path else "N",
            help=f"{text} (default: {default})",
        )
    add_overwrite_flag(parser)
    args = parser.parse_args(argv)
    problems = [
        f"--{name.replace('_', '-')} must be {least} or more, not {getattr(args, name)}"
        for name, least in (("seq_length", 3), ("stride", 1), ("num_output", 1))
        if getattr(args, name) < least
    ]
    if args.output_file_path.exists() and not args.output_file_path.is_dir():
        problems.append(f"--output-file-path {args.output_file_path}: not a folder")
    if problems:
        parser.refuse(problems)
    return args


class Progress:
    """Says now and then how many records there are, with the rate and the time left."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self.total, self.stream = total, stream
        self.interval = 1.0 if stream.isatty() else 10.0
        self.begin = self.shown = time.monotonic()

    def update(self, writer: TFRecordWriter) -> None:
        """Print a line if the last one is old enough; on a terminal the same line again."""
        if time.monotonic() - self.shown >= self.interval:
            self.show(writer, "\r" if self.stream.isatty() else "\n")

    def show(self, writer: TFRecordWriter, end: str = "\n") -> None:
        """Print where it stands."""
        self.shown = time.monotonic()
        seconds = max(self.shown - self.begin, 1e-9)
        rate = writer.records / seconds
        left = (self.total - writer.records) / rate if rate else 0.0
        self.stream.write(
            f"{writer.records:,} of {self.total:,} records, {writer.bytes / 1e6:,.1f} MB, {rate:,.0f} records/s, "
            f"{writer.bytes / 1e6 / seconds:,.1f} MB/s, {left:.0f} s left{end}"
        )
        self.stream.flush()


def write_corpus(
    source: Path, folder: Path, window: int, stride: int, shards: int, stream: TextIO, overwrite: bool = False
) -> list[Path]:
    """Write the corpus as `shards` files into a folder; returns their paths.

    Raises ValueError for a corpus that cannot be read or has too few articles that are long enough, and for a folder
    with other TFRecord files, or with those of another command unless it is to `overwrite` them.
    """
    # Imported where they are used: --help and bad flags need not wait for them.
    import numpy as np

    from data.articles.corpus import open_corpus
    from data.loading.windows import windows_per_article
    from data.tfrecord.writer import TFRecordWriter

    writer = TFRecordWriter(folder, source.stem, window, stride, shards, lambda: progress.update(writer))
    flags = {"--seq-length": window, "--stride": stride, "--num-output": shards}
    record = folder / f"{source.stem}.tfrecord.made-from"
    origin = Origin(record, {"--input-file-path": [source]}, flags, writer.there, "--output-file-path", overwrite)
    origin.check()
    corpus = open_corpus(source, _LARGEST_ID + 1)
    progress = Progress(int(windows_per_article(np.diff(corpus.offsets), window - 1, stride).sum()), stream)
    bounds = zip(corpus.offsets, corpus.offsets[1:])
    try:
        with origin.kept():
            paths = writer.write(corpus.tokens[begin:end] for begin, end in bounds)
    except ValueError as error:
        raise ValueError(f"--input-file-path {source}: {error}") from error
    progress.show(writer)
    stream.write(writer.summary() + "\n")
    stream.write(f"wrote {paths[0]}{f' and {shards - 1:,} more' if shards > 1 else ''}, with indexes\n")
    stream.write(train_on_it(writer.train_flags()))
    return paths


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = parse_args(argv)

    def write() -> None:
        paths = (args.input_file_path, args.output_file_path)
        try:
            write_corpus(*paths, args.seq_length, args.stride, args.num_output, sys.stderr, args.overwrite)
        except ValueError as error:
            raise ValueError(str(error).replace("--train-path", "--input-file-path")) from error  # the corpus's word
        except OSError as error:
            error.filename = error.filename or str(args.output_file_path)
            raise

    return reported("write_into_tfrecord.py", write, goes_on=False)


if __name__ == "__main__":
    sys.exit(main())
