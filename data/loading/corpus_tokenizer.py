"""The tokenizer that a corpus was made with: it goes along into the checkpoints of a model trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

TOKENIZER_FILE = "tokenizer.json"


def corpus_tokenizer(train_path: str, tfrecord_path: Sequence[str], data_prefix: str, checkpoint: str) -> bytes | None:
    """The tokenizer.json beside the data, else that of the checkpoint the run starts from; None if there is none.

    TFRecord files are in a folder of their own, below that of the corpus.
    """
    folders = []
    if train_path == "tfrecord":
        first = Path(tfrecord_path[0]) if tfrecord_path else Path()
        folders = [first.parent, first.parent.parent]
    elif train_path == "dynamic":
        folders = [Path(data_prefix).parent]
    elif train_path != "generated":
        folders = [Path(train_path).parent]
    if checkpoint:
        folders.append(Path(checkpoint))
    for folder in folders:
        try:
            return (folder / TOKENIZER_FILE).read_bytes()
        except OSError:
            continue
    return None
