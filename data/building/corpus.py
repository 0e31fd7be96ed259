"""From documents to the files of a format: what data/prepare.py and data/wikipedia_preprocess.py share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable, Iterator, TextIO

from corpora.atomic import atomic_file
from corpora.documents import DocumentReader
from data.building.assembly import Assembly, Corpus, available_cores
from data.building.corpus_formats import CorpusWriter
from data.building.duplicates import Selector
from data.building.parts import Recipe
from tokenizer import Tokenizer, train_bpe

# Text that a vocabulary is learnt from: more gives the same words, and memory grows with the words that occur.
LEARNING_BYTES = 128 << 20


def build(
    corpus: Corpus,
    tokenizer: Tokenizer,
    recipe: Recipe,
    selector: Selector,
    folder: Path,
    name: str,
    workers: int,
    training: CorpusWriter,
    validation: CorpusWriter | None,
    stream: TextIO,
) -> list[Path]:
    """Write the corpus, its validation set and tokenizer.json into `folder`; returns the paths.

    Raises ValueError for an input that cannot be used, RuntimeError for a machine that cannot do it.
    """
    writers = [training] if validation is None else [training, validation]
    with Assembly(corpus, tokenizer, recipe, selector, folder, name, workers, stream) as assembly:
        paths: list[Path] = []
        try:
            for writer, documents in zip(writers, (assembly.training, assembly.validation)):
                paths += writer.write(documents())
        except OSError as error:
            error.filename = error.filename or str(folder)  # what a full disk gives has none
            raise
        with atomic_file(folder / "tokenizer.json") as file:
            file.write(assembly.tokenizer_json.encode("utf-8"))
    progress = assembly.progress
    progress.show()
    if progress.broken:
        stream.write(f"{progress.broken:,} lines or documents were not UTF-8: bad bytes became U+FFFD\n")
    if selector.duplicates != "none":
        near = f", {selector.near:,} near ones" if selector.duplicates == "near" else ""
        stream.write(f"dropped {selector.exact:,} exact duplicates{near}\n")
    if validation is not None:
        stream.write(f"held out {selector.held_out:,} documents for validation\n")
    for line in filter(None, (writer.summary() for writer in writers)):
        stream.write(line + "\n")
    stream.write(f"wrote {', '.join(map(str, paths))}\n")
    return paths


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


def reported(program: str, work: Callable[[], object]) -> int:
    """Run a command and report its errors in a line; the exit status."""
    try:
        work()
    except (ValueError, RuntimeError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(
            f"{program}: {error.name} is not installed; run: pip install -r requirements-corpora.txt", file=sys.stderr
        )
        return 2
    except OSError as error:
        where = error.filename or "output"
        print(f"{program}: {where}: {error.strerror}; once that is put right, run the same command", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def worker_count(asked_for: int) -> int:
    """--workers: 0 stands for all cores."""
    return asked_for or available_cores()
