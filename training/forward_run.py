"""Everything a forward-only run is made of, built from the flags of the training program."""

from __future__ import annotations

import argparse
from typing import Iterator

import poptorch
import torch
from torch import Tensor, nn

import custom_ops
from command_line.checks import BadFlags
from command_line.interruption import ignore_in_worker
from data.loading.datasets import ResumableSampler, check_enough, collate, open_dataset
from model import placement
from model.gpt2 import GPT2LMHeadModel
from model.ipu_options import forward_options, reads_samples
from training.arithmetic import arithmetic
from training.inputs import corpus_arguments, load_or_make
from training.sharing import join, samples_of_this_process
from training.vocabulary import run_tokenizer


class PredictionModel(nn.Module):
    """The likeliest next token at every position: all the work of a forward pass, and little to bring back.

    Args:
        serialized_seq_len: compute logits in blocks of that many positions; None: all at once.
        remap: pass the logits through the custom op RemapCE.
    """

    def __init__(self, gpt2: GPT2LMHeadModel, serialized_seq_len: int | None, remap: bool) -> None:
        super().__init__()
        self.gpt2, self.serialized_seq_len, self.remap = gpt2, serialized_seq_len, remap

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T) int32"""
        hidden = self.gpt2.transformer(input_ids)  # (B, T, C)
        parts = []
        for part in hidden.split(self.serialized_seq_len or hidden.shape[1], dim=1):
            logits = self.gpt2.lm_head(part)  # (B, t, V)
            if self.remap:
                logits = placement.remap_logits(logits)
            parts.append(logits.argmax(-1).to(torch.int32))
        return torch.cat(parts, dim=1)


class ForwardRun:
    """Model, data and executor.

    Several processes share the replicas of --replication-factor, or hold one together, as in training.

    Raises ValueError, whose `args` are the problems, for what cannot be used, and RuntimeError with a HINT if it is one
    of several processes, which do not meet.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        join(args)
        self.args, shard = args, samples_of_this_process(args)
        self.samples_a_call, self._own_samples_a_call = shard.group, shard.own
        gpt2 = load_or_make(args)
        tokenizer = run_tokenizer(args) if args.control_codes else None
        samples, _ = open_dataset(
            **corpus_arguments(args, tokenizer, gpt2.config.real_vocab_size),
            max_len=args.max_len,
            seed=args.seed,
            val_num=0,
            real_vocab_size=gpt2.config.real_vocab_size,
            num_samples=4 * self.samples_a_call,
            tfrecord_path=args.tfrecord_path or (),
        )
        check_enough(samples, self.samples_a_call, arithmetic(args)[0])
        self.calls = min(args.epochs * (len(samples) // self.samples_a_call), args.training_steps)
        print("\n".join([samples.summary(), *placement.place(gpt2, args.layers_per_ipu, training=False)]))
        placement.serialize_head(gpt2, args.embedding_serialization_factor)
        placement.outline(gpt2)
        if args.custom_ops:
            custom_ops.load()
        serialized = args.serialized_seq_len if args.enable_sequence_serialized else None
        options = forward_options(args)
        if args.compile_only:
            options.useOfflineIpuTarget()
        self.executor = poptorch.inferenceModel(
            PredictionModel(gpt2, serialized, args.remap_logit).half().eval(), options
        )
        self._sampler = ResumableSampler(len(samples), args.seed, shard)
        self.loader = poptorch.DataLoader(
            options,
            samples,
            batch_size=args.batch_size,
            num_workers=min(args.num_workers, 1) if args.train_path == "generated" else args.num_workers,
            sampler=self._sampler,
            collate_fn=collate,
            worker_init_fn=ignore_in_worker,
            auto_distributed_partitioning=False,  # the sampler shares the samples out
        )

    def batches(self) -> Iterator[Tensor]:
        """Input ids of the calls of an epoch, (samples a call of this process, T) int32.

        Of the processes that hold a replica together the first one reads the samples: a call takes its inputs.
        """
        if not reads_samples():
            for _ in range(len(self._sampler) // self._own_samples_a_call):
                yield self._empty_call()
            return
        for input_ids, _ in self.loader:
            yield input_ids

    def _empty_call(self) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.int32).expand(self._own_samples_a_call, self.args.max_len)

    def compile(self) -> None:
        """Trace the model and check its stages. Raises BadFlags for what the runtime refuses."""
        try:
            self.executor.compile(self._empty_call())
        except poptorch.Error as error:
            raise BadFlags(f"the runtime refuses these flags: {error}") from error
