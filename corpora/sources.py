"""The kinds of corpora that data/prepare.py reads, and how files become a corpus."""

from __future__ import annotations

import collections
import os
import re
import zipfile
from pathlib import Path
from typing import Sequence

from corpora.pieces import HEADING, LINE, Corpus, archives, naming, running, whole_files, wikipedia
from corpora.wikipedia import holds_json, is_wiki_file, wiki_files

PACKED = ("", ".gz", ".bz2", ".xz")
# For each kind the names of its files in a folder, the most telling first.
PATTERNS: dict[str, tuple[str, ...]] = {
    "wikipedia": ("**/wiki_[0-9]*",),
    "wikitext": ("wiki.train.tokens", "wiki.train.raw", "wikitext-*.zip"),
    "openwebtext": ("*.tar", "*.tar.xz", "*.tar.gz", "*.tar.bz2", "*.xz"),
    "jsonl": tuple(f"*.{ending}{packed}" for ending in ("jsonl", "ndjson", "json") for packed in PACKED),
    "text": (*(f"*.txt{packed}" for packed in PACKED), "*.story"),  # the latter are CNN's and the Daily Mail's
}
# What a document of each kind can be; where there is but one answer nothing needs to be asked.
DOCUMENTS = {
    "wikipedia": ("article",),
    "wikitext": ("article", "line", "file"),
    "openwebtext": ("file",),
    "jsonl": ("line",),
    "text": ("line", "passage", "file"),
}
_WIKITEXT_REST = re.compile(r"wiki\.(valid|test)\.")  # is read where it is wanted, from beside the training text
_OF_OUTPUT = ("tokenizer.json", "tokenizer_config.json")  # what is prepared into the folder of its text leaves there
_MOST_ENDINGS = 6  # that a line names
_ORDER = ("wikipedia", "wikitext", "jsonl", "text", "openwebtext")  # a .txt.xz is no archive


def guess(inputs: list[Path]) -> str:
    """The kind of corpus that the names of the input say. Raises ValueError if they say nothing, or no two the same."""
    kinds = []
    for path in inputs:
        if not path.exists():
            raise ValueError(f"--input {path}: no such file or folder")
        kinds += [next((kind for kind in _ORDER if _matching(path, kind)), "")]
        if not kinds[-1]:
            raise ValueError(f"--input {path}: its name does not say what it is; add --source {' | '.join(PATTERNS)}")
    if len(set(kinds)) > 1:
        raise ValueError(f"--input: {inputs[0]} looks like {kinds[0]}, others do not; prepare them one by one")
    return kinds[0]


def open_source(kind: str, inputs: list[Path], documents: str | None = None) -> tuple[Corpus, Corpus | None]:
    """The corpus in files or folders, and the validation set that comes with it (WikiText) or None.

    `documents`: of plain text whether each line (None), passage or file is one, of WikiText each article (None), line
    or file. Files of WikiText come in parts that begin with an article: GPT-2's tokenizer divides the text there
    anyway. Raises ValueError naming what is missing.
    """
    _check_documents(kind, documents)
    files: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise ValueError(f"--input {path}: no such file or folder")
        found = _matching(path, kind) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"--input {path}: no {kind} in this folder ({', '.join(PATTERNS[kind][:4])})")
        files += found
    twice = [path for path, times in collections.Counter(map(os.path.realpath, files)).items() if times > 1]
    if twice:
        raise ValueError(f"--input: names {twice[0]} twice, and its text would count twice; name it once")
    streams = [path for path in files if path.exists() and not path.is_file()]
    if streams:
        raise ValueError(
            f"--input {streams[0]}: a pipe or a device, and no file; write what comes from it into one first"
        )
    if not any(path.stat().st_size for path in files):
        raise ValueError(f"--input {inputs[0]}: empty; nothing to prepare")
    if kind == "wikipedia":
        folders = [path for path in inputs if path.is_dir()]
        if len(folders) < len(inputs):
            raise ValueError("--source wikipedia takes folders, the ones that wikipedia_extract.sh makes")
        return Corpus(files, lambda: wikipedia(folders)), None
    if kind == "wikitext":
        return _wikitext(files, documents)
    if kind == "openwebtext":
        return Corpus(files, lambda: archives(files)), None
    if kind == "jsonl":
        return Corpus(files, lambda: running("jsonl", LINE, files)), None
    if documents == "file":
        return Corpus(files, lambda: whole_files("file", files)), None
    reader = "passages" if documents == "passage" else "lines"
    return Corpus(files, lambda: running(reader, LINE, files)), None


def passed_over(inputs: Sequence[Path], taken: Sequence[Path]) -> str:
    """What the folders of the input hold beside the files `taken`, by the endings of names; "" if there is nothing.

    Left out are hidden files and the rest of WikiText. A folder counts if nothing in it is taken.
    """
    files: collections.Counter[str] = collections.Counter()
    folders = 0
    used = {os.path.realpath(path) for path in taken}
    used.update(str(folder) for path in list(used) for folder in Path(path).parents)
    for folder in filter(Path.is_dir, inputs):
        for entry in folder.iterdir():
            if entry.name.startswith(".") or os.path.realpath(entry) in used or _WIKITEXT_REST.match(entry.name):
                continue
            if entry.is_dir():
                folders += 1
            else:
                files["".join(entry.suffixes[-2 if entry.suffix in PACKED else -1 :]) or "without an ending"] += 1
    named = sorted(files, key=lambda ending: (-files[ending], ending))
    found = [f"{files[ending]:,} {ending}" for ending in named[:_MOST_ENDINGS]]
    rest = sum(files[ending] for ending in named[_MOST_ENDINGS:])
    found += [f"{rest:,} others"] * (rest > 0)
    found += [f"{folders:,} folder{'s'[: folders != 1]}"] * (folders > 0)
    return f"passed over beside them: {', '.join(found)}; --input FILE ... reads others" if found else ""


def _check_documents(kind: str, documents: str | None) -> None:
    known = DOCUMENTS[kind]
    if documents is not None and documents not in known:
        choice = f"{', '.join(known[:-1])} or {known[-1]}" if len(known) > 1 else known[0]
        raise ValueError(f"--documents {documents}: of {kind} they are {choice}")


def check_input_flags(json_key: str | None, dropped: bool, source: str, files: Sequence[Path]) -> None:
    """Raise ValueError if --json-key or --drop-placeholders was given for a source, of these files, that has none."""
    if json_key is not None and source != "jsonl":
        raise ValueError(
            f"--json-key {json_key} is for JSON lines, and this is {source}; leave it out, or add --source jsonl"
        )
    if dropped and source != "wikipedia" and not any(map(is_wiki_file, files)):
        raise ValueError(f"--drop-placeholders is for extracted Wikipedia, and this is {source}; leave it out")


def holds_wikipedia(path: Path) -> bool:
    """Whether it is a folder of extracted Wikipedia in <doc> elements, WikiExtractor's default."""
    files = _matching(path, "wikipedia")
    return bool(files) and not holds_json(files[0])


def _matching(path: Path, kind: str) -> list[Path]:
    """The files of a kind in a folder, or the path itself if it has the name of one."""
    if kind == "wikipedia":
        try:
            return wiki_files(path) if path.is_dir() else []
        except ValueError:
            return []
    if not path.is_dir():
        return [path] if any(path.match(pattern) for pattern in PATTERNS[kind]) else []
    for pattern in PATTERNS[kind]:
        found = sorted(file for file in path.glob(pattern) if file.is_file() and file.name not in _OF_OUTPUT)
        if found:
            return found
    if kind == "jsonl":  # what `WikiExtractor --json` writes
        found = _matching(path, "wikipedia")
        return found if found and holds_json(found[0]) else []
    return []


def _wikitext(files: list[Path], documents: str | None) -> tuple[Corpus, Corpus | None]:
    reader = {"line": "lines", "file": "file"}.get(documents or "", "wikitext")
    boundary = LINE if reader == "lines" else HEADING

    def corpus(part: str) -> Corpus | None:
        chosen = []
        for path in files:
            if path.suffix == ".zip":
                with naming(path), zipfile.ZipFile(str(path)) as archive:
                    has_it = any(Path(name).name.startswith(f"wiki.{part}.") for name in archive.namelist())
                beside = path if has_it else None
            elif part != "train":
                beside = path.with_name(path.name.replace("train", part, 1))
            else:
                beside = path
            if beside is not None and beside.is_file() and (part == "train" or beside not in files or beside == path):
                chosen.append(beside)
        if not chosen:
            return None
        return Corpus(chosen, lambda: running(reader, boundary, chosen, f"wiki.{part}.*"))

    train = corpus("train")
    if train is None:
        raise ValueError(f"--input {files[0]}: no wiki.train.tokens or wiki.train.raw in it")
    if all(path.suffix != ".zip" and "train" not in path.name for path in files):
        return train, None
    return train, corpus("valid")
