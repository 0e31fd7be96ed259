#!/usr/bin/env python3
"""Extracted Wikipedia to token ids: writes wikicorpus_en_one_article_per_line.pkl, a list of lists of ids.

    python3 ./data/wikipedia_preprocess.py --input-file-path EXTRACTED --output-file-path PREPROCESSED

The tokenizer used is saved beside it as tokenizer.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Iterable, Iterator, TextIO

if __package__ in (None, ""):
    # Started as a script: the repository and not data/ is where modules are found (data/ has a datasets.py, like
    # the well-known package).
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.article_pickle import write_articles  # noqa: E402
from data.atomic import atomic_file  # noqa: E402
from data.wikipedia import ArticleReader, wiki_files  # noqa: E402

if TYPE_CHECKING:
    from tokenizer import Tokenizer  # imported where it is used: --help and bad flags need not wait for it

OUTPUT_NAME = "wikicorpus_en_one_article_per_line.pkl"
BPE_VOCAB_SIZE = 30522
# Characters given to the tokenizer at once: all cores have work, and the encodings (100 bytes a token or so) stay
# below 100 MB however large the corpus is.
BATCH_CHARACTERS = 2000000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags; dashes and underscores are the same."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
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
        help="articles of fewer ids, <|endoftext|> included, are dropped",
    )
    parser.add_argument(
        "--use-bpe",
        "--use_bpe",
        action="store_true",
        help=f"train a byte-level BPE of {BPE_VOCAB_SIZE:,} entries on the corpus instead of using GPT-2's",
    )
    args = parser.parse_args(argv)
    if args.min_length < 0:
        parser.error(f"--min-length must be 0 or more, not {args.min_length}")
    if args.output_file_path.exists() and not args.output_file_path.is_dir():
        parser.error(f"--output-file-path {args.output_file_path}: not a folder")
    return args


class Progress:
    """Counts what passes, and says so now and then with the rate and the time left."""

    def __init__(self, reader: ArticleReader, stream: TextIO) -> None:
        self.reader, self.stream = reader, stream
        self.total = sum(path.stat().st_size for path in reader.files)
        self.articles = self.kept = self.tokens = 0
        self.begin = self.shown = time.monotonic()

    def show(self, every: float = 0.0) -> None:
        """Print a line if the last one is `every` seconds old; on a terminal the same line again."""
        now = time.monotonic()
        if now - self.shown < every:
            return
        self.shown = now
        rate = self.reader.bytes_read / max(now - self.begin, 1e-9)
        left = (self.total - self.reader.bytes_read) / rate if rate else 0.0
        same_line = self.stream.isatty()
        self.stream.write(
            f"{self.articles:,} articles, {self.kept:,} kept, {self.tokens:,} tokens, "
            f"{self.reader.bytes_read / 1e6:.1f} of {self.total / 1e6:.1f} MB, {rate / 1e6:.2f} MB/s, {left:.0f} s left"
        )
        self.stream.write("\r" if same_line and every else "\n")
        self.stream.flush()


def batches(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Group texts in order, each group ending with the text that brings it to `characters`."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group


def encoded(progress: Progress, tokenizer: Tokenizer, min_length: int) -> Iterator[list[int]]:
    """Ids of each article with `<|endoftext|>` at the end, short ones left out."""
    interval = 1.0 if progress.stream.isatty() else 10.0
    for group in batches(progress.reader, BATCH_CHARACTERS):
        for ids in tokenizer.encode_batch(group):
            ids.append(tokenizer.eot_id)
            progress.articles += 1
            if len(ids) >= min_length:
                progress.kept += 1
                progress.tokens += len(ids)
                yield ids
        progress.show(interval)


def preprocess(source: Path, target: Path, min_length: int, use_bpe: bool, stream: TextIO) -> Path:
    """Write the corpus of the folder `source` into the folder `target`; returns its path.

    Raises ValueError for a source without articles and RuntimeError if GPT-2's vocabulary is not installed.
    """
    from tokenizer import Tokenizer, train_bpe

    files = wiki_files(source)
    if use_bpe:
        tokenizer = train_bpe(ArticleReader(files), BPE_VOCAB_SIZE)
        stream.write(f"trained a byte-level BPE of {tokenizer.vocab_size:,} entries\n")
    else:
        tokenizer = Tokenizer.gpt2()
    progress = Progress(ArticleReader(files), stream)
    target.mkdir(parents=True, exist_ok=True)
    path = target / OUTPUT_NAME
    with atomic_file(path) as file:
        write_articles(file, encoded(progress, tokenizer, min_length), tokenizer.vocab_size - 1)
        if progress.kept == 0:
            raise ValueError(
                f"--input-file-path {source}: {progress.articles:,} articles, none of --min-length {min_length} ids or "
                "more; nothing written"
            )
    with atomic_file(target / "tokenizer.json") as file:
        file.write(tokenizer.to_json().encode("utf-8"))
    progress.show()
    if progress.reader.broken_lines:
        stream.write(f"{progress.reader.broken_lines:,} lines were not UTF-8: bad bytes became U+FFFD\n")
    stream.write(f"wrote {path}\n")
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = parse_args(argv)
    try:
        preprocess(args.input_file_path, args.output_file_path, args.min_length, args.use_bpe, sys.stderr)
    except (ValueError, RuntimeError) as error:
        print(f"wikipedia_preprocess.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"wikipedia_preprocess.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wikipedia_preprocess.py: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
