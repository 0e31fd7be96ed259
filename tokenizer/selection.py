"""Which tokenizer --tokenizer-type, --vocab-file and --merge-file mean."""

from __future__ import annotations

from pathlib import Path

from tokenizer.bpe import Tokenizer
from tokenizer.entries import MEGATRON_FILES, PathLike, has_tokenizer, stated_ends

HUGGING_FACE, MEGATRON = 0, 1


def open_tokenizer(
    tokenizer_type: int = HUGGING_FACE,
    folder: PathLike | None = None,
    vocab_file: PathLike | None = None,
    merge_file: PathLike | None = None,
) -> Tokenizer:
    """The tokenizer of a checkpoint or corpus in `folder` (None: of no particular one).

    --vocab-file and --merge-file win. Otherwise type 0 takes the tokenizer.json or vocab.json + merges.txt of the
    folder, type 1 its gpt2-vocab.json + gpt2-merges.txt; where there are none, both are GPT-2's own, which is what
    Megatron-LM's instructions download under those names. Raises ValueError for files that are missing or wrong.
    """
    if (vocab_file is None) != (merge_file is None):
        given, missing = ("--vocab-file", "--merge-file") if merge_file is None else ("--merge-file", "--vocab-file")
        raise ValueError(f"{given} without {missing}: the two files of a vocabulary belong together; give both")
    if tokenizer_type not in (HUGGING_FACE, MEGATRON):
        raise ValueError(f"--tokenizer-type {tokenizer_type}: 0 is Hugging Face's files, 1 Megatron's")
    if vocab_file is not None and merge_file is not None:
        return Tokenizer.from_files(vocab_file, merge_file)
    if folder is not None and tokenizer_type == MEGATRON:
        vocab, merges = (Path(folder) / name for name in MEGATRON_FILES)
        if vocab.is_file() and merges.is_file():
            return Tokenizer.from_files(vocab, merges, stated_ends(Path(folder)))
    elif folder is not None and has_tokenizer(folder):
        return Tokenizer.from_folder(folder)
    return Tokenizer.gpt2()
