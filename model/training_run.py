"""Everything a training run is made of, built from the flags: model, data, optimizer, executor, position."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, List, Optional

import poptorch
import torch

import custom_ops
from arguments import arithmetic, samples_per_call
from data.datasets import ResumableSampler, check_enough, collate, open_dataset
from model import placement, training_state
from model.checkpoint import load_pretrained, recover_interrupted
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from model.interruption import ignore_in_worker
from model.ipu_options import forward_options, training_options
from model.optimization import make_optimizer, make_schedule, warmup_length
from model.plan import stage_plans
from model.pretraining import PretrainingModel
from model.validation import Validator

# Token ids in a combined batch from which on every copy of it counts (two int32 tensors: 32 MB).
_LARGE_BATCH = 4_000_000


def build_model(args: argparse.Namespace) -> PretrainingModel:
    """The objective over a placed model in half, from --pretrained-checkpoint or freshly initialised."""
    torch.manual_seed(args.seed)
    if args.pretrained_checkpoint:
        gpt2 = load_pretrained(args.pretrained_checkpoint, n_positions=args.max_len)
    else:
        gpt2 = GPT2LMHeadModel(dataclasses.replace(GPT2Config.from_json(args.config), n_positions=args.max_len))
    for line in placement.place(gpt2, args.layers_per_ipu, training=True):
        print(line)
    placement.recompute(gpt2, args.recompute_checkpoint_layers)
    placement.serialize_head(gpt2, args.embedding_serialization_factor)
    placement.outline(gpt2)
    remap = args.remap_logit and args.custom_ops
    if remap:
        custom_ops.load()
    serialized = args.serialized_seq_len if args.enable_sequence_serialized else None
    return PretrainingModel(gpt2, serialized, remap).half().train()


class TrainingRun:
    """A training run: everything it is made of, where it stands, and how it is saved."""

    def __init__(self, args: argparse.Namespace) -> None:
        state = None
        if args.resume_training_from_checkpoint:
            state = training_state.read(Path(args.pretrained_checkpoint))
        self.args, self.samples_a_call = args, samples_per_call(args)
        self.model = build_model(args)
        self.samples, held_out = open_dataset(
            args.train_path,
            max_len=args.max_len,
            stride=args.stride,
            seed=args.seed,
            val_num=args.val_num,
            real_vocab_size=self.model.gpt2.config.real_vocab_size,
            num_samples=4 * self.samples_a_call,
        )
        print(self.samples.summary())
        check_enough(self.samples, self.samples_a_call, arithmetic(args)[0])
        self.calls_an_epoch = len(self.samples) // self.samples_a_call
        self.calls = min(args.epochs * self.calls_an_epoch, args.training_steps)

        self.optimizer = make_optimizer(
            args.optimizer,
            self.model,
            args.learning_rate,
            args.weight_decay,
            args.loss_scaling,
        )
        decay = args.lr_decay_steps or self.calls
        self.schedule = make_schedule(
            self.optimizer, args.lr_schedule, warmup_length(args.lr_warmup, args.lr_warmup_steps, decay), decay
        )
        self.facts = training_state.run_facts(args, len(self.samples), self.samples_a_call)
        self.position = training_state.Position()
        if state is not None:
            training_state.check_facts(state, self.facts)
            self.position = training_state.restore(state, self.optimizer, self.schedule)

        options = training_options(args)
        self.sampler = ResumableSampler(len(self.samples), args.seed)
        # Loader processes hold a combined batch each. One of them, with one batch under way, keeps it at two in all where
        # batches are large; where they are small more of them may work ahead.
        large = self.samples_a_call * args.max_len > _LARGE_BATCH
        workers = min(args.num_workers, 1) if large or args.train_path == "generated" else args.num_workers
        self.loader = poptorch.DataLoader(
            options,
            self.samples,
            batch_size=args.batch_size,
            num_workers=workers,
            sampler=self.sampler,
            collate_fn=collate,
            worker_init_fn=ignore_in_worker,
            **({"prefetch_factor": 1} if workers else {}),
        )
        self.executor = poptorch.trainingModel(self.model, options, self.optimizer)
        self.rng_state = state["rng_state"].tolist() if state is not None else None
        self.validator: Optional[Validator] = None
        if held_out is not None:
            self.validator = Validator(self.model, held_out, forward_options(args), args.batch_size)

    def save(self, name: str) -> Path:
        """Write checkpoint `name` under --save-model-path."""
        directory = Path(self.args.save_model_path) / name
        training_state.save(
            directory, self.model.gpt2, self.executor, self.optimizer, self.schedule, self.position, self.facts
        )
        training_state.prune(directory.parent, self.args.keep_checkpoints, directory)
        print(f"saved {directory}", flush=True)
        return directory

    def resume_random_numbers(self, *args: Any, **kwargs: Any) -> None:
        """Compile for these inputs and continue the device's random numbers where the checkpoint left them."""
        self.executor.compile(*args, **kwargs)
        self.executor.rng_state = self.rng_state
        self.rng_state = None

    def plan(self) -> List[str]:
        """The run in numbers, a line each: what --compile-only prints."""
        args, config = self.args, self.model.gpt2.config
        count = placement.parameter_elements(list(self.model.parameters()))
        lines = [
            f"{count:,} parameters; {self.samples_a_call:,} samples, {self.samples_a_call * args.max_len:,} tokens a call; "
            f"{self.calls_an_epoch:,} calls an epoch, {self.calls:,} calls in all"
        ]
        stages = stage_plans(
            config, args.layers_per_ipu, args.batch_size, args.max_len, args.recompute_checkpoint_layers
        )
        return lines + [stage.line(args.optimizer_state_offchip) for stage in stages]

    def compile_only(self) -> None:
        """Trace the model and check its stages, without a device and without data."""
        ids = torch.zeros(1, 1, dtype=torch.int32).expand(self.samples_a_call, self.args.max_len)
        self.executor.compile(input_ids=ids, labels=ids)
