"""From documents to the files of a format: what data/prepare.py and data/wikipedia_preprocess.py share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from corpora.atomic import atomic_file
from corpora.pieces import Corpus
from data.building.assembly import Assembly, available_cores
from data.building.corpus_formats import CorpusWriter
from data.building.duplicates import Selector
from data.building.parts import Recipe
from tokenizer import Tokenizer
from tokenizer.entries import TOKENIZER_FILE, ids_in, read_entries


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
    """Write the corpus, its validation set and its tokenizer's files into `folder`; returns the paths.

    Raises ValueError for an input that cannot be used, RuntimeError for a machine that cannot do it.
    """
    writers = [training] if validation is None else [training, validation]
    check_vocabulary(folder, tokenizer)
    with Assembly(corpus, tokenizer, recipe, selector, folder, name, workers, stream) as assembly:
        paths: list[Path] = []
        try:
            for writer, documents in zip(writers, (assembly.training, assembly.validation)):
                paths += writer.write(documents())
        except OSError as error:
            error.filename = error.filename or str(folder)  # what a full disk gives has none
            raise
        with atomic_file(folder / TOKENIZER_FILE) as file:
            file.write(assembly.tokenizer_json.encode("utf-8"))
        if assembly.settings_json is not None:
            with atomic_file(folder / "tokenizer_config.json") as file:
                file.write(assembly.settings_json.encode("utf-8"))
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


def check_vocabulary(folder: Path, tokenizer: Tokenizer, to_have: bool = True) -> None:
    """A folder has one tokenizer.json, for all corpora in it, which is `to_have` the tokenizer's ids, or others.

    Raises ValueError if there is one and it has not, or cannot be read.
    """
    path = folder / TOKENIZER_FILE
    there = read_entries(folder) if path.is_file() else None
    if there is not None and (there.ids == ids_in(json.loads(tokenizer.to_json()), path)) != to_have:
        raise ValueError(
            f"{folder}: holds data of another vocabulary, which its {TOKENIZER_FILE} is for; name another folder, or "
            "delete that one if it is of no use any more"
        )


def worker_count(asked_for: int) -> int:
    """--workers: 0 stands for all cores."""
    return asked_for or available_cores()
