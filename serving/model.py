"""A checkpoint ready to be served: its tokenizer, and the step of the engine as a PopTorch program."""

from __future__ import annotations

import argparse

import poptorch
import torch
from torch import Tensor

from generation.decoding import ModuleSteps, SlotStep
from generation.text_generator import (
    end_ids,
    make_steps,
    open_checkpoint,
    prompt_ids,
    step_width,
    wanted_precision,
)
from model.gpt2 import GPT2LMHeadModel
from tokenizer.selection import HUGGING_FACE

WIDTH = 256  # tokens of a prompt that go into a call
TOGETHER = 16  # texts in a call of the native operators: few_rows::kMaxRows


class ServedModel:
    """The checkpoint that the flags name.

    Attributes:
        tokenizer, config: the checkpoint's.
        positions: tokens of a prompt and its continuation together, at most.
        width: tokens of a row that go into a call of `step`.
        step: generation.decoding.SlotStep, compiled.
        together: texts that go into a call of `step`.
        beginning: the token that stands for an empty prompt, behind which a text begins.
        stop_ids: the tokens that end a text.

    Raises:
        ValueError: naming the flag, if checkpoint, tokenizer and flags do not fit together.
        RuntimeError: with a HINT, if custom_ops.so is for another torch.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        gpt2, self.tokenizer = open_checkpoint(args.model, HUGGING_FACE, "--model", args.context or 0)
        self.config = config = gpt2.config
        self.positions = args.context or config.n_positions
        if self.positions > config.n_positions:
            raise ValueError(
                f"--context {args.context}: the checkpoint has {config.n_positions} positions and cannot see further; "
                "lower it, or leave it out"
            )
        self.stop_ids = end_ids(config, self.tokenizer)
        self.beginning = self.stop_ids[0]
        self.slots = args.slots
        self._token_texts: dict[int, str] = {}
        self.step = self._compiled(gpt2, wanted_precision(args), args)

    def _compiled(self, gpt2: GPT2LMHeadModel, precision: str, args: argparse.Namespace) -> poptorch.PoplarExecutor:
        steps = make_steps(gpt2, [self.config.n_layer], precision, args.custom_ops)
        self.width = step_width(steps, min(WIDTH, self.positions))
        # Modules compute all slots in every call.
        self.together = self.slots if isinstance(steps, ModuleSteps) else TOGETHER
        options = poptorch.Options()
        options.autoRoundNumIPUs(True)
        options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
        if args.profile:
            options.enableProfiling(args.profile)
        executor = poptorch.inferenceModel(SlotStep(steps, self.slots, self.positions).eval(), options)
        one = torch.ones(self.slots, dtype=torch.int32)
        logits: Tensor = executor(torch.zeros(self.slots, self.width, dtype=torch.int32), one * 0, one, one * 0)
        if not torch.isfinite(logits).all():
            raise ValueError("--model: the model's scores for the next token are not finite; choose another checkpoint")
        return executor

    def encode(self, text: str) -> list[int]:
        """Token ids; of an empty text the token behind which a text begins."""
        return prompt_ids(self.tokenizer, text, self.beginning)

    def token_text(self, token: int) -> str:
        """A token as OpenAI's API shows it among log-probabilities: its text, or `bytes:\\x..` for half a character."""
        found = self._token_texts.get(token)
        if found is None:
            content = self.tokenizer.token_bytes(token)
            try:
                found = content.decode("utf-8")
            except UnicodeDecodeError:
                found = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
            self._token_texts[token] = found
        return found
