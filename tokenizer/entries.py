"""What a folder says of its tokenizer without building it: its entries, and which of them ends a text.

Without a tokenizer.json transformers keeps added tokens in files of their own, and always the end of a text in
tokenizer_config.json. A checkpoint's config.json has the end as well, by its id.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence, Union

from corpora.plain_text import plain

EOT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"

# Names under which folders keep vocabulary and merges: Hugging Face's, OpenAI's and Megatron-LM's.
MEGATRON_FILES = ("gpt2-vocab.json", "gpt2-merges.txt")
FILE_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), MEGATRON_FILES)

# What ends a text in vocabularies that do not say so.
_USUAL_ENDS = ("</s>", "<eos>", "<|eos|>", "[EOS]", "<|end_of_text|>", "<|end|>", "<|im_end|>")

PathLike = Union[str, Path]


def pair_in(folder: Path) -> tuple[Path, Path] | None:
    """The files of vocabulary and merges in a folder, if there are two that belong together."""
    pairs = ((folder / vocab, folder / merges) for vocab, merges in FILE_PAIRS)
    return next(((vocab, merges) for vocab, merges in pairs if vocab.is_file() and merges.is_file()), None)


def has_tokenizer(folder: PathLike) -> bool:
    """Whether `Tokenizer.from_folder` finds files in the folder."""
    return (Path(folder) / TOKENIZER_FILE).is_file() or pair_in(Path(folder)) is not None


class Entries(NamedTuple):
    """The tokens of the tokenizer in a folder."""

    folder: Path
    ids: dict[str, int]  # of every token, added ones among them
    special: list[str]

    @property
    def rows(self) -> int:
        """How many rows of a model the ids need."""
        return count_ids(self.ids)

    def end_id(self) -> int | None:
        """The id that ends a text by the folder's files; None if none does. Raises ValueError naming a bad file."""
        return choose_end(stated_ends(self.folder), self.special, self.ids.get, set(self.ids.values()).__contains__)


def read_entries(folder: PathLike) -> Entries | None:
    """The tokens of the folder's tokenizer; None if there is none. Raises ValueError naming the file of no use."""
    folder = Path(folder)
    path, pair = folder / TOKENIZER_FILE, pair_in(folder)
    special: list[str] = []
    if path.is_file():
        content = json_object(read_text(path), path)
        ids = ids_in(content, path)
        special = [token["content"] for token in content.get("added_tokens") or [] if token.get("special")]
    elif pair is not None:
        ids, path = {**added_tokens(folder), **json_object(read_text(pair[0]), pair[0])}, pair[0]
    else:
        return None
    if not ids or not all(isinstance(i, int) and i >= 0 for i in ids.values()):
        raise ValueError(f"{path}: expected a vocabulary, each token with its own id from 0 on")
    return Entries(folder, ids, special)


def ids_in(content: Mapping[str, Any], path: PathLike) -> dict[str, int]:
    """The tokens and ids of a tokenizer.json's content. Raises ValueError, naming `path`, if it is of another kind."""
    vocabulary, added = (content.get("model") or {}).get("vocab"), content.get("added_tokens") or []
    if not isinstance(vocabulary, dict):
        raise ValueError(f"{path}: not a BPE tokenizer (its vocabulary is no mapping from tokens to ids)")
    # a token that is in both has the id of the vocabulary
    return {**{token["content"]: token["id"] for token in added}, **vocabulary}


def count_ids(ids: Mapping[str, int]) -> int:
    """One more than the largest id."""
    return 1 + max(ids.values())


def added_tokens(folder: Path) -> dict[str, int]:
    """The tokens beside a pair of files that were added to them, and their ids. Raises ValueError naming the file."""
    found: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        found.update(json_object(read_text(folder / "added_tokens.json"), folder / "added_tokens.json"))
    for number, token in (_settings(folder).get("added_tokens_decoder") or {}).items():
        found.setdefault(_content(token), int(number))
    return found


def stated_ends(folder: Path) -> list[str | int]:
    """The tokens and ids that the files of a folder name as the end of a text, the first one first.

    eos_token_id of config.json, then eos_token of tokenizer_config.json and special_tokens_map.json. Raises ValueError
    naming the file that cannot be read.
    """
    ends: list[Any] = []
    for name in ("config.json", SETTINGS_FILE, "special_tokens_map.json"):
        if (folder / name).is_file():
            content = json_object(read_text(folder / name), folder / name)
            ids = content.get("eos_token_id") if name == "config.json" else None
            ends += ids if isinstance(ids, list) else [ids]
            ends.append(_content(content.get("eos_token")) if name != "config.json" else None)
    return [end for end in ends if isinstance(end, (str, int)) and not isinstance(end, bool)]


def choose_end(
    stated: Iterable[str | int],
    special: Sequence[str],
    id_of: Callable[[str], int | None],
    is_id: Callable[[int], bool],
) -> int | None:
    """The id that ends a text: the first of those `stated` that the vocabulary has, else `<|endoftext|>`, else its only
    special token, else the first of the usual names; None if it has none of them.
    """
    for end in stated:
        found = end if isinstance(end, int) else id_of(end)
        if found is not None and is_id(found):
            return found
    only = special if len(special) == 1 else ()
    return next((found for found in map(id_of, (EOT, *only, *_USUAL_ENDS)) if found is not None), None)


def read_text(path: Path) -> str:
    """A file of UTF-8 text, without a byte order mark and with LF for CRLF. Raises ValueError naming it."""
    try:
        return plain(path.read_bytes(), path).decode("utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error


def json_object(text: str, path: PathLike) -> dict[str, Any]:
    """The JSON object that a file holds. Raises ValueError naming it."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS_FILE
    return json_object(read_text(path), path) if path.is_file() else {}


def _content(token: Any) -> Any:
    """A token in these files is its text, or an object with it."""
    return token.get("content") if isinstance(token, dict) else token
