"""The tokenizer that a corpus was made with: it goes along into the checkpoints of a model trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from tokenizer.entries import TOKENIZER_FILE, Entries, read_entries


def corpus_tokenizer(
    train_path: str, tfrecord_path: Sequence[str], data_prefix: str, checkpoint: str
) -> Entries | None:
    """The tokenizer beside the data, or that of the checkpoint the run starts from; None if there is none.

    TFRecord files are in a folder of their own, below that of the corpus. If there are two of them, one has all entries
    of the other and is taken: a checkpoint may have added tokens that its data do without.

    Raises ValueError naming folders and tokens if they contradict each other, or naming the file that cannot be used.
    """
    folders = []
    if train_path == "tfrecord":
        first = Path(tfrecord_path[0]) if tfrecord_path else Path()
        folders = [first.parent, first.parent.parent]
    elif train_path == "webdataset":
        folders = [Path(data_prefix).parent, Path(data_prefix).parent.parent]
    elif train_path == "dynamic":
        folders = [Path(data_prefix).parent]
    elif train_path != "generated":
        folders = [Path(train_path).parent]
    of_data = next(filter(None, map(read_entries, folders)), None)
    of_model = read_entries(checkpoint) if checkpoint else None
    if of_data is None or of_model is None:
        return of_data or of_model
    small, large = sorted((of_data, of_model), key=lambda found: len(found.ids))
    foreign = [token for token, number in small.ids.items() if large.ids.get(token) != number]
    if foreign:
        raise ValueError(
            f"{of_data.folder}: the tokenizer of the data is not that of the checkpoint {checkpoint}; {len(foreign):,} "
            f"tokens have other ids or are missing, such as {foreign[0]!r}. Prepare the text with the checkpoint's "
            f"(data.prepare --tokenizer {checkpoint}), or start without the checkpoint"
        )
    return of_model if large is of_model or small.ids == large.ids else of_data


def tokenizer_json(found: Entries) -> bytes:
    """The content of a tokenizer.json: the one that is there, or one made of the files that are."""
    path = found.folder / TOKENIZER_FILE
    if path.is_file():
        return path.read_bytes()
    from tokenizer import Tokenizer  # a run needs the library for nothing else

    return Tokenizer.from_folder(found.folder).to_json().encode("utf-8")
