"""The vocabulary of a run: the model's rows, the tokenizer's entries and the ids of the data must be of one kind."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Sequence

from data.batches import SampleDataset
from data.loading.corpus_tokenizer import corpus_tokenizer
from model.checkpoint import read_config
from model.config import GPT2Config, padded_rows, read_json_object
from tokenizer import open_tokenizer
from tokenizer.entries import Entries, read_entries


def run_tokenizer(args: argparse.Namespace) -> Entries | None:
    """The tokenizer of the run's data or checkpoint; None if there is none. Raises ValueError if two contradict."""
    prefix = args.data_prefix[0] if args.train_path in ("dynamic", "webdataset") else ""
    return corpus_tokenizer(args.train_path, args.tfrecord_path or (), prefix, args.pretrained_checkpoint)


def check_same(tokenizer: Entries | None, path: str) -> None:
    """Raises ValueError if the tokenizer beside a further corpus has other tokens than the run's under the same ids."""
    other = read_entries(Path(path).parent)
    if tokenizer is None or other is None:
        return
    small, large = sorted((tokenizer, other), key=lambda found: len(found.ids))
    foreign = [token for token, number in small.ids.items() if large.ids.get(token) != number]
    if foreign:
        raise ValueError(
            f"{path}: the tokenizer beside it is not that of {tokenizer.folder}; {len(foreign):,} tokens have other "
            f"ids or are missing, such as {foreign[0]!r}. Prepare all data sets of a run with one tokenizer"
        )


def control_ids(codes: Sequence[str], tokenizer: Entries | None, real_vocab_size: int) -> list[int]:
    """The ids of --control-codes. Raises ValueError for one that is no single entry of the vocabulary."""
    if not codes:
        return []
    opened = open_tokenizer(folder=None if tokenizer is None else tokenizer.folder)
    ids = []
    for code in codes:
        found = opened.token_id(code)
        if found is None:
            raise ValueError(
                f"--control-codes {code}: {len(opened.encode(code))} tokens and no entry of the vocabulary; give a "
                "single one, such as <|endoftext|>, or add it to the tokenizer"
            )
        if found >= real_vocab_size:
            raise ValueError(
                f"--control-codes {code}: its id {found} is not among the model's {real_vocab_size:,} rows"
            )
        ids.append(found)
    return ids


def model_config(args: argparse.Namespace, tokenizer: Entries | None) -> GPT2Config:
    """The configuration of --config for --max-len positions, its vocabulary padded as in memory.

    What it does not say the tokenizer does: how many rows are tokens (model.checkpoint.read_config), and for a new
    model which id ends a text.
    """
    path = Path(args.config)
    stated = read_json_object(path)
    config = read_config(path, None if tokenizer is None else tokenizer.rows)
    end = None if tokenizer is None else tokenizer.end_id()
    if end is not None:
        absent = [name for name in ("bos_token_id", "eos_token_id") if name not in stated]
        try:
            config = dataclasses.replace(config, **dict.fromkeys(absent, end))
        except ValueError as error:
            raise ValueError(
                f"{path}, with the end of texts of the tokenizer in {tokenizer.folder}: {error}"
            ) from error
    # A new model gets as many rows as one that was saved and loaded, whatever padding the json file has.
    rows = padded_rows(config.real_vocab_size)
    return dataclasses.replace(
        config, n_positions=args.max_len, vocab_size=rows, real_vocab_size=config.real_vocab_size
    )


def check_tokenizer(tokenizer: Entries | None, config: GPT2Config, source: str) -> None:
    """The entries fit into the model that `source` names; prints a line where they differ without harm.

    Raises ValueError if there are more of them than the model has rows, or its padding is the token that ends texts.
    """
    if tokenizer is None:
        return
    entries, rows, end = tokenizer.rows, config.real_vocab_size, tokenizer.end_id()
    if entries > rows:
        raise ValueError(
            f"{tokenizer.folder}: the tokenizer there has {entries:,} entries, the vocabulary of {source} {rows:,}, so "
            f"that checkpoints could not be used with it; name a --config FILE with vocab_size {entries}"
            + (f" and eos_token_id {end}" if end is not None else "")
        )
    if entries < rows:
        print(f"the tokenizer of {tokenizer.folder} has {entries:,} entries, the model {rows:,} rows for them")
    if end is not None and end == config.padding_id:
        raise ValueError(
            f"texts end with the id {end} by the tokenizer of {tokenizer.folder}, which is the padding_id of {source}: "
            "attention would not see where texts end, and the loss would leave it out; name a --config FILE with "
            f"eos_token_id {end} and another padding_id, or null"
        )
    if end is not None and config.end_ids and end not in config.end_ids:
        print(
            f"texts end with the id {end} by the tokenizer of {tokenizer.folder}, with {config.end_ids[0]} by the "
            "model's eos_token_id, which checkpoints keep"
        )


def check_ids(tokenizer: Entries | None, samples: SampleDataset, source: str) -> None:
    """Raises ValueError if the data, which `source` names, have ids that the tokenizer does not."""
    if tokenizer is not None and samples.largest_id() >= tokenizer.rows:
        raise ValueError(
            f"{source}: has the id {samples.largest_id()}, and the tokenizer of {tokenizer.folder}, which would go "
            f"into the checkpoints, only {tokenizer.rows:,} entries: it is not the one that the data were made with. "
            "Put that one beside the data, or take this one away"
        )
