"""A checkpoint ready to be served: its tokenizer, and the step of the engine as a PopTorch program."""

from __future__ import annotations

import argparse

import poptorch
import torch
from torch import Tensor

from generation.decoding import ModuleSteps, SlotStep
from generation.text_generator import make_steps, open_checkpoint
from model.gpt2 import GPT2LMHeadModel
from tokenizer.selection import HUGGING_FACE

WIDTH = 256  # tokens of a prompt that go into a call


class ServedModel:
    """The checkpoint that the flags name.

    Attributes:
        tokenizer, config: the checkpoint's.
        positions: tokens of a prompt and its continuation together, at most.
        width: tokens of a row that go into a call of `step`.
        step: generation.decoding.SlotStep, compiled.
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
        self.stop_ids = config.end_ids or [self.tokenizer.eot_id]
        self.beginning = self.stop_ids[0]
        self.slots = args.slots
        self._token_texts: dict[int, str] = {}
        self.step = self._compiled(
            gpt2, "int8" if args.int8 else "float16" if args.fp16 else "float32", args.custom_ops
        )

    def _compiled(self, gpt2: GPT2LMHeadModel, precision: str, custom_ops: bool) -> poptorch.PoplarExecutor:
        steps = make_steps(gpt2, [self.config.n_layer], precision, custom_ops)
        # Modules compute every column of the input, so that a wide one would slow down each token.
        self.width = min(8 if isinstance(steps, ModuleSteps) else WIDTH, self.positions)
        options = poptorch.Options()
        options.autoRoundNumIPUs(True)
        options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
        executor = poptorch.inferenceModel(SlotStep(steps, self.slots, self.positions).eval(), options)
        one = torch.ones(self.slots, dtype=torch.int32)
        logits: Tensor = executor(torch.zeros(self.slots, self.width, dtype=torch.int32), one * 0, one, one * 0)
        if not torch.isfinite(logits).all():
            raise ValueError("--model: the model's scores for the next token are not finite; choose another checkpoint")
        return executor

    def encode(self, text: str) -> list[int]:
        """Token ids; of an empty text the token behind which a text begins."""
        return [int(token) for token in self.tokenizer.encode(text)] or [self.beginning]

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
