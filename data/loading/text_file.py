"""--train-path FILE.txt: the text is tokenized once, into a .pkl beside it."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

from corpora.sources import open_source
from data.articles.pickle_file import read_articles
from data.building.corpus import build
from data.building.corpus_formats import PickleWriter
from data.building.duplicates import Selector
from data.building.parts import Recipe
from data.cache_folder import cache_folder, remove_others
from tokenizer import Tokenizer, open_tokenizer
from tokenizer.entries import has_tokenizer

_CORPUS = "corpus.pkl"


def prepared(train_path: str, checkpoint: str = "", max_len: int = 1) -> str:
    """The corpus .pkl of a text file; any other --train-path comes back as it is.

    The file is one text in passages of 16 KB or more, each an article. Its tokenizer is that of the checkpoint the run
    starts from, else the tokenizer.json beside the text, else GPT-2's; it is kept beside the .pkl. Says what it does.
    Raises ValueError for a file without text or with less than half a sample of max_len + 1 ids, RuntimeError with a
    HINT where nothing can be written.
    """
    path = Path(train_path)
    if path.suffix != ".txt":
        return train_path
    places = [Path(checkpoint)] * bool(checkpoint) + [path.parent]
    tokenizer = open_tokenizer(folder=next(filter(has_tokenizer, places), None))
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"--train-path {path}: {error.strerror}; give a .txt or the .pkl of a corpus") from error
    kind = f"prepared-{hashlib.sha256(tokenizer.to_json().encode()).hexdigest()[:8]}-v2"
    key = f"{stat.st_size}-{stat.st_mtime_ns}"
    folder = cache_folder(path, kind, key, lambda work: _build(path, work, tokenizer, max_len))
    longest = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["longest"]
    _check_length(path, longest, folder / _CORPUS, max_len)
    remove_others(path, folder, kind)
    vocabulary = f"prepared once, with a vocabulary of {tokenizer.vocab_size:,}"
    print(f"{path} is read from {folder / _CORPUS}, {vocabulary}")
    print("for one document a line, many files or gigabytes: python3 -m data.prepare", flush=True)
    return str(folder / _CORPUS)


def _check_length(path: Path, longest: int, corpus: Path, max_len: int) -> None:
    """Raise ValueError if no passage, of which the longest has so many ids, is half a sample."""
    least = max_len // 2 + 1
    if longest >= least:
        return
    lengths = list(map(len, read_articles(corpus)))
    sample = f"where half a sample of --max-len {max_len} + 1 has {least:,}"
    if len(lengths) == 1:
        raise ValueError(f"--train-path {path}: {longest:,} ids, {sample}; give a longer text, or lower --max-len")
    raise ValueError(
        f"--train-path {path}: the longest of its {len(lengths):,} passages, of 16 KB or more up to a blank line, has "
        f"{longest:,} of {sum(lengths):,} ids, {sample}; lower --max-len, or add --windows stream, which joins them"
    )


def _build(path: Path, folder: Path, tokenizer: Tokenizer, max_len: int) -> None:
    print(f"preparing {path} ({path.stat().st_size / 1e6:,.1f} MB)", flush=True)
    said = io.StringIO()  # of paths that are about to change
    writer = PickleWriter(folder / _CORPUS, tokenizer.vocab_size)
    try:
        corpus, _ = open_source("text", [path], "passage")
        build(corpus, tokenizer, Recipe(), Selector("none", 0.0, 0.0, 0), folder, _CORPUS, 1, writer, None, said)
    except ValueError as error:
        problem = str(error).replace(f"--input {path}: ", "").replace(f"{path}: ", "")
        problem = "there is no text in it" if "--min-length" in problem else problem
        raise ValueError(f"--train-path {path}: {problem}") from error
    longest = max(map(len, read_articles(folder / _CORPUS)))
    _check_length(path, longest, folder / _CORPUS, max_len)  # before what was made gets its name
    print("".join(line for line in said.getvalue().splitlines(True) if "UTF-8" in line), end="", flush=True)
    (folder / "meta.json").write_text(json.dumps({"text": str(path), "longest": longest}), encoding="utf-8")
