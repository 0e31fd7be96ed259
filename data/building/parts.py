"""Token ids of a piece of a corpus: made by any process, kept in a file, read in order.

The files are what is left of a run that was interrupted: one that starts again makes only those that are missing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Callable, Iterator

import numpy as np

from corpora.documents import DocumentReader
from corpora.pieces import Piece
from data.building import detokenizer
from data.building.minhash import minhash_signatures
from tokenizer import Tokenizer
from tokenizer.bpe import to_utf8

_BATCH = 1 << 20  # characters tokenized at once
ENDS = ("end", "both", "none")
COUNTS = ("documents", "short", "broken", "size")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a piece becomes token ids, beside the tokenizer."""

    min_length: int = 2  # ids of a document, <|endoftext|> included; shorter ones are dropped
    json_key: str = "text"
    fix_text: bool = False  # ftfy
    detokenize: bool = False  # WikiText's words back to ordinary text, as evaluation does it
    drop_placeholders: bool = False  # formula_1 and codice_1 of extracted Wikipedia
    ends: str = "end"  # where a document gets `<|endoftext|>`, one of ENDS
    documents: str | None = None  # as for corpora.sources.open_source: pieces depend on it
    digests: bool = False
    signatures: bool = False


@dataclasses.dataclass
class Part:
    """Documents of a piece, those of fewer than min_length ids left out.

    `ids` uint16, or int32 for vocabularies over 65,536: the documents end to end, each with its `<|endoftext|>`s.
    `lengths` int64 (documents,). `digests` uint64 of the texts and `signatures` uint32 (documents, permutations) for
    finding duplicates, or empty. `counts`: documents read, too short ones, those that were not UTF-8, input bytes.
    """

    ids: np.ndarray
    lengths: np.ndarray
    digests: np.ndarray
    signatures: np.ndarray
    counts: dict[str, int]

    def documents(self, keep: np.ndarray) -> list[np.ndarray]:
        """The ids of the documents for which `keep` is true."""
        ends = np.cumsum(self.lengths)
        begins, wanted = (ends - self.lengths).tolist(), np.flatnonzero(keep).tolist()
        ends_list = ends.tolist()
        return [self.ids[begins[i] : ends_list[i]] for i in wanted]


class Encoder:
    """What a process needs of a tokenizer to make parts; cheap to send to it where the native encoder is built."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eot_id, self.vocab_size, self.native = tokenizer.eot_id, tokenizer.vocab_size, tokenizer.native
        self._tokenizer = None if self.native else tokenizer.to_json()

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of many texts end to end, uint32 (n,), each followed by `<|endoftext|>`, and their counts, int64."""
        if self.native is not None:
            return self.native.encode([to_utf8(text) for text in texts], self.eot_id)
        if isinstance(self._tokenizer, str):
            self._tokenizer = Tokenizer.from_json(self._tokenizer, ends=[self.eot_id])
        return self._tokenizer.encode_documents(texts)


def make_part(piece: Piece, recipe: Recipe, encoder: Encoder, path: Path) -> None:
    """Tokenize a piece into the file `path`, which appears when it is whole. Raises ValueError as the readers do."""
    part = encode(piece, recipe, encoder)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            counts = np.array([part.counts[name] for name in COUNTS], dtype=np.int64)
            arrays = (part.ids, part.lengths, part.digests, part.signatures, counts)
            np.savez(file, **dict(zip(("ids", "lengths", "digests", "signatures", "counts"), arrays)))
        os.replace(str(unfinished), str(path))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if unfinished.exists():
            unfinished.unlink()


def read_part(path: Path) -> Part | None:
    """A part from its file; None if it is not there or damaged (its CRCs are checked)."""
    try:
        with np.load(str(path)) as file:
            counts = dict(zip(COUNTS, file["counts"].tolist()))
            return Part(file["ids"], file["lengths"], file["digests"], file["signatures"], counts)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def encode(piece: Piece, recipe: Recipe, encoder: Encoder) -> Part:
    """The part of a piece."""
    dtype = np.uint16 if encoder.vocab_size <= 1 << 16 else np.int32
    reader = DocumentReader(piece, recipe.json_key, recipe.drop_placeholders)
    ids, lengths, digests = [np.empty(0, dtype)], [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    signatures = [np.empty((0, 0), np.uint32)]
    documents = 0
    for texts in _batches(reader, recipe):
        documents += len(texts)
        all_ids, counts = encoder.encode(texts)
        keep = counts >= recipe.min_length
        if not keep.all():
            all_ids, texts = all_ids[np.repeat(keep, counts)], [text for text, kept in zip(texts, keep) if kept]
            counts = counts[keep]
        if recipe.digests:
            digests.append(np.array([_digest(text) for text in texts], dtype=np.uint64))
        if recipe.signatures:
            signatures.append(minhash_signatures(all_ids, counts))
        all_ids, counts = with_ends(all_ids, counts, recipe.ends)
        ids.append(all_ids.astype(dtype))
        lengths.append(counts)
    kept = sum(map(len, lengths))
    return Part(
        np.concatenate(ids),
        np.concatenate(lengths),
        np.concatenate(digests),
        np.concatenate(signatures[1:]) if len(signatures) > 1 else signatures[0],
        {"documents": documents, "short": documents - kept, "broken": reader.broken, "size": piece.size},
    )


def with_ends(ids: np.ndarray, counts: np.ndarray, ends: str) -> tuple[np.ndarray, np.ndarray]:
    """Documents end to end, (n,), and their lengths (documents,), each with `<|endoftext|>` behind it; as `ends` says.

    `none` leaves it out, `both` puts one before each document as well.
    """
    if ends == "end" or not len(counts):
        return ids, counts
    last = np.cumsum(counts) - 1
    if ends == "none":
        return np.delete(ids, last), counts - 1
    return np.insert(ids, last - counts + 1, ids[last]), counts + 1


def _batches(reader: DocumentReader, recipe: Recipe) -> Iterator[list[str]]:
    """Texts that are not blank, in groups of a megabyte or so. Of a text as it is, in parts, blank ones count."""
    as_it_is = recipe.documents == "file" and recipe.ends == "none"
    texts: list[str] = []
    size = 0
    for text in map(_cleaner(recipe), reader):
        if not text or (text.isspace() and not as_it_is):
            continue
        texts.append(text)
        size += len(text)
        if size >= _BATCH:
            yield texts
            texts, size = [], 0
    yield texts


def _cleaner(recipe: Recipe) -> Callable[[str], str]:
    """What is done to each text first. Raises ImportError if a library for that is missing."""
    steps: list[Callable[[str], str]] = []
    if recipe.fix_text:
        steps.append(_fixer())
    if recipe.detokenize:
        steps.append(detokenizer.wikitext)
    return lambda text: functools.reduce(lambda done, step: step(done), steps, text)


def _fixer() -> Callable[[str], str]:
    """ftfy, told to repair what is broken and to leave what is a matter of style: quotes, ligatures, wide letters.

    A line at a time: where ftfy sees a `<` it takes the rest of what it was given for HTML, whose entities stay.
    """
    import ftfy

    config = ftfy.TextFixerConfig(
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        fix_line_breaks=False,
        normalization=None,
        explain=False,
    )
    return lambda text: "\n".join(ftfy.fix_text(line, config) for line in text.split("\n"))


def _digest(text: str) -> int:
    raw = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
