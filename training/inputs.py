"""What a training run reads, by its flags: the model, the data, the tokenizer, the state to resume."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Callable, Sequence

import torch

from data.batches import SampleDataset
from data.loading.datasets import Cut, check_enough, open_dataset
from data.loading.text_file import prepared
from model.checkpoint import load_pretrained, recover_interrupted
from model.config import VARIANT_FIELDS, VOCAB_MULTIPLE
from model.config_checks import DROPOUTS
from model.gpt2 import GPT2LMHeadModel
from model.non_finite import first_non_finite_weight
from tokenizer.entries import Entries
from training import state as training_state
from training.arithmetic import arithmetic, samples_per_call
from training.vocabulary import check_ids, check_same, check_tokenizer, control_ids, model_config, run_tokenizer

# Dimensions in which a checkpoint and the model of the flags must agree. The checkpoint's own activation and dropouts
# are used: released checkpoints have gelu_new where config/*.json say gelu.
_DIMENSIONS = ("n_layer", "n_embd", "n_head", "inner_size", "real_vocab_size", "tie_word_embeddings", *VARIANT_FIELDS)


def dropouts(args: argparse.Namespace) -> dict[str, float]:
    """What --dropout changes in a configuration."""
    return {} if args.dropout is None else dict(zip(DROPOUTS, args.dropout))


def _shown(value: Any) -> str:
    """A value of a configuration, as its file has it: 1,024, true, null, or a word."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


def _model_flag(args: argparse.Namespace) -> str:
    """The flag that says what the model is like, for a message."""
    return f"--config {args.config}" if "config" in args.typed else f"--model {args.model}"


def load_or_make(args: argparse.Namespace, tokenizer: Entries | None = None) -> GPT2LMHeadModel:
    """GPT-2 from --pretrained-checkpoint, or freshly initialised from the seed. `tokenizer` is the run's.

    Raises ValueError if the checkpoint cannot be used, or is not of the model that the flags name.
    """
    config = dataclasses.replace(model_config(args, tokenizer), **dropouts(args))
    rows = config.vocab_size
    if rows % args.embedding_serialization_factor:
        raise ValueError(
            f"--embedding-serialization-factor {args.embedding_serialization_factor}: does not divide the vocabulary, "
            f"padded to {rows:,} rows; choose a power of 2 up to {VOCAB_MULTIPLE}"
        )
    masks, memory = config.n_layer * args.max_len**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if masks > memory:
        raise ValueError(
            f"--max-len {args.max_len}: the causal masks of {config.n_layer} layers take {masks:,} bytes, and this "
            f"machine has {memory:,}; lower --max-len"
        )
    if not args.pretrained_checkpoint:
        torch.manual_seed(args.seed)
        return GPT2LMHeadModel(config, initialize=not args.compile_only)  # compiling asks for shapes, not for values
    recover_interrupted(args.pretrained_checkpoint)
    gpt2 = load_pretrained(args.pretrained_checkpoint, n_positions=args.max_len, dropouts=dropouts(args))
    if gpt2.config.real_vocab_size == model_config(args, None).real_vocab_size:
        config = model_config(args, None)  # the tokenizer is the data's, which may do without tokens of the model
    pairs = [(name, getattr(gpt2.config, name), getattr(config, name)) for name in _DIMENSIONS]
    different = [f"{name} {_shown(has)} instead of {_shown(asked)}" for name, has, asked in pairs if has != asked]
    if different:
        raise ValueError(
            f"--pretrained-checkpoint {args.pretrained_checkpoint}: its shape is not that of {_model_flag(args)} "
            f"({', '.join(different)}). Name the model it was made with: --config "
            f"{Path(args.pretrained_checkpoint) / 'config.json'}"
        )
    weight = first_non_finite_weight(gpt2)
    if weight is not None:
        raise ValueError(
            f"--pretrained-checkpoint {args.pretrained_checkpoint}: {weight}, so that nothing can be computed "
            "with them; name a checkpoint from before the run that made this one diverged"
        )
    return gpt2


def open_samples(
    args: argparse.Namespace, tokenizer: Entries | None, real_vocab_size: int, ordered_parts: Sequence[int] = ()
) -> tuple[SampleDataset, SampleDataset | None]:
    """Samples to train on and held-out ones; `ordered_parts` are MmapDataset.parts of the run that is resumed.

    Raises ValueError for unusable data, or fewer than one call takes.
    """
    samples_a_call = samples_per_call(args)
    samples, held_out = open_dataset(
        **corpus_arguments(args, tokenizer, real_vocab_size),
        max_len=args.max_len,
        seed=args.seed,
        val_num=args.val_num,
        real_vocab_size=real_vocab_size,
        num_samples=4 * samples_a_call,
        tfrecord_path=args.tfrecord_path or (),
        data_prefix=args.data_prefix[0] if args.train_path == "dynamic" else "",
        epochs=args.epochs,
        ordered_samples=args.training_steps * samples_a_call if "training_steps" in args.typed else None,
        separate_last_epoch=args.sample_order == "megatron",
        ordered_parts=ordered_parts,
    )
    check_enough(samples, samples_a_call, arithmetic(args)[0])
    if args.train_path != "generated":
        check_ids(tokenizer, samples, f"--train-path {args.train_path}")
    return samples, held_out


def corpus_arguments(args: argparse.Namespace, tokenizer: Entries | None, real_vocab_size: int) -> dict[str, Any]:
    """What open_dataset is told of corpora and how they are cut; text files among them are prepared.

    Raises ValueError naming flag and file.
    """
    shorter = args.windows != "article" or args.short_articles != "half"  # than half a sample is long enough
    least = 1 if shorter else args.max_len
    args.train_path = prepared(args.train_path, args.pretrained_checkpoint, least)
    beside = args.pretrained_checkpoint or ("" if tokenizer is None else str(tokenizer.folder))
    further = [prepared(path, beside, least) for path in args.further_paths]
    validation = []
    for path in args.validation_files or ():
        try:
            validation.append(prepared(path, beside, least))
        except ValueError as error:
            raise ValueError(str(error).replace("--train-path", "--validation-files")) from error
    for path in (*further, *validation):
        check_same(tokenizer, path)
    return {
        "train_path": args.train_path,
        "further_paths": further,
        "validation_paths": validation,
        "codes": control_ids(args.control_codes or (), tokenizer, real_vocab_size),
        "tar_paths": args.data_prefix if args.train_path == "webdataset" else (),
        "cut": Cut(args.windows, args.stride, args.short_articles, args.last_window),
    }


def read_inputs(
    args: argparse.Namespace, state: dict[str, Any] | None = None
) -> tuple[dict[str, Any] | None, Entries | None, GPT2LMHeadModel, SampleDataset, SampleDataset | None]:
    """Training state (None unless resuming), tokenizer (None if none is there), model, training and held-out samples.

    `state` is the one to resume where it has been read already.

    Raises ValueError whose `args` are all the problems found.
    """
    problems: list[str] = []

    def attempt(read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except ValueError as error:
            problems.extend([] if str(error) in problems else [str(error)])
            return None

    if state is None and args.resume_training_from_checkpoint:
        state = attempt(training_state.read, Path(args.pretrained_checkpoint))
    tokenizer = attempt(run_tokenizer, args)
    gpt2 = attempt(load_or_make, args, tokenizer)
    config = attempt(model_config, args, tokenizer) if gpt2 is None else gpt2.config
    if config is not None:
        attempt(check_tokenizer, tokenizer, config, _model_flag(args))
        parts = (state or {}).get("ordered_parts", ())
        data = attempt(open_samples, args, tokenizer, config.real_vocab_size, parts)
    if problems:
        raise ValueError(*problems)
    return (state, tokenizer, gpt2, *data)
