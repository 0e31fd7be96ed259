"""A checkpoint ready to generate: its tokenizer, its program, and texts from prompts."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Callable, Iterator, Sequence

import poptorch
import torch

import custom_ops
from custom_ops import decode_blocks as native
from generation.decoding import ModuleSteps, OneStep, WholeText
from generation.native_steps import NativeSteps, is_variant, not_native
from generation.requests import NonFiniteScores, Text, generate, generate_at_once, new_text
from generation.sampling import Sampling
from generation.text_stream import TextStream
from model.checkpoint import load_pretrained
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from model.ipu_options import single_replica_options
from model.non_finite import NonFiniteError, first_non_finite_layer, non_finite_error
from model.pipeline import shared_on_several
from model.ranks import is_first
from tokenizer import Tokenizer, open_tokenizer


class Result:
    """One text: what it goes on from, what has come, and how."""

    def __init__(self, prompt: str, sample: int, text: Text, stream: TextStream) -> None:
        self.prompt, self.sample, self.text, self.stream = prompt, sample, text, stream

    def record(self, log_probabilities: bool) -> dict:
        """For a line of JSON."""
        record = {"prompt": self.prompt, "sample": self.sample, "text": self.stream.text}
        record.update(tokens=self.text.tokens, finish=self.text.ended or "interrupted")
        if log_probabilities:
            record["log_probabilities"] = [round(value, 6) for value in self.text.log_probs]
        return record


def load_for_texts(source: str, flag: str, longest: int) -> GPT2LMHeadModel:
    """The model, with positions for texts of `longest` tokens where it has not learned a number of them.

    Raises ValueError, naming the `flag` that gave the source.
    """
    try:
        return load_pretrained(source, at_least=longest)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def open_checkpoint(source: str, tokenizer_type: int, flag: str, longest: int) -> tuple[GPT2LMHeadModel, Tokenizer]:
    """What load_for_texts gives, and its tokenizer. What that cannot write is left out of the vocabulary.

    Raises ValueError, naming the `flag` that gave the source, for files that are missing, wrong or do not go together.
    """
    gpt2 = load_for_texts(source, flag, longest)
    folder = Path(source)
    tokenizer = open_tokenizer(tokenizer_type, folder if folder.is_dir() else None)
    entries, rows = tokenizer.vocab_size, gpt2.config.real_vocab_size
    if entries > rows:
        raise ValueError(
            f"{flag} {folder}: the tokenizer has {entries} entries, the model {rows}. Put the "
            "tokenizer.json the model was trained with into its folder."
        )
    if entries < rows and is_first():  # what the tokenizer cannot write is never drawn
        print(
            f"the tokenizer has {entries:,} entries, the vocabulary {rows:,}: the others are left out",
            file=sys.stderr,
        )
        gpt2.config = dataclasses.replace(gpt2.config, real_vocab_size=entries)
    return gpt2, tokenizer


def make_steps(
    gpt2: GPT2LMHeadModel, layers: Sequence[int], precision: str, native_ones: bool
) -> ModuleSteps | NativeSteps:
    """The module that makes a step: by the native operators if they are wanted and there, or by the model's modules.

    `precision` is one of custom_ops.decode_blocks.PRECISIONS. Raises ValueError if int8 cannot be had.
    """
    unknown = not_native(gpt2.config)
    if precision == "int8" and unknown:
        raise ValueError(f"--int8: the native operators do not compute {unknown} of the checkpoint; leave --int8 out")
    if native_ones and not unknown and custom_ops.load() == "native" and native.available(is_variant(gpt2.config)):
        try:
            return NativeSteps(gpt2, layers, precision)
        except ValueError as error:
            raise ValueError(f"--int8: {error}") from error
    if precision == "int8":
        raise ValueError("--int8 needs the native operators: run `make`, and leave --custom-ops at True")
    return ModuleSteps(gpt2.half() if precision == "float16" else gpt2.float(), layers)


def wanted_precision(args: argparse.Namespace) -> str:
    """The word of make_steps for --fp16 and --int8."""
    return "int8" if args.int8 else "float16" if args.fp16 else "float32"


def step_width(steps: ModuleSteps | NativeSteps, longest: int) -> int:
    """Tokens of a row that go into a call, `longest` at most.

    Modules compute every column of the input, so that a wide one would slow down each token.
    """
    return min(8, longest) if isinstance(steps, ModuleSteps) else longest


def end_ids(config: GPT2Config, tokenizer: Tokenizer) -> list[int]:
    """What ends a text by the configuration, or else by the tokenizer; behind the first of them a text begins."""
    return config.end_ids or [tokenizer.eot_id]


def prompt_ids(tokenizer: Tokenizer, text: str, beginning: int) -> list[int]:
    """Token ids of a prompt; of an empty one `beginning`, the token behind which a text begins."""
    return [int(token) for token in tokenizer.encode(text)] or [beginning]


class TextGenerator:
    """Texts by the flags of text_generate_gpt2.py.

    Raises:
        ValueError: naming the flag, if checkpoint, tokenizer and flags do not fit together.
        RuntimeError: with a HINT, if custom_ops.so is for another torch.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        gpt2, self.tokenizer = open_checkpoint(
            args.model_name_or_path, args.tokenizer_type, "--model-name-or-path", args.input_len + args.output_len
        )
        self.config = config = gpt2.config
        self._check_lengths()
        self.stop_ids = self._stop_ids()
        self.beginning = end_ids(config, self.tokenizer)[0]
        self.sampling = Sampling(
            args.repetition_penalty,
            args.topk,
            args.temperature,
            args.top_p,
            args.min_p,
            args.typical_p,
            args.eta_cutoff,
        )
        self.batch = args.batch_size * args.device_iterations  # texts in a call
        self.slots = min(config.n_positions, args.input_len + args.output_len)
        self._overflow_said = False
        self._precision = wanted_precision(args)
        layers = self._layers_per_ipu()
        self.steps, self.width = self._steps(gpt2, layers)
        self.executor = self._compiled(layers)

    def _check_lengths(self) -> None:
        args, n_positions = self.args, self.config.n_positions
        if args.poptorch_loop and args.input_len + args.output_len > n_positions:
            raise ValueError(
                f"--input-len {args.input_len} + --output-len {args.output_len} is more than the {n_positions} "
                "positions of the checkpoint, which --poptorch-loop cannot exceed: lower one of them, or leave "
                "--poptorch-loop out"
            )
        if args.keep_last is not None and args.keep_last >= n_positions:
            raise ValueError(
                f"--keep-last {args.keep_last}: nothing can follow as many tokens in the checkpoint's {n_positions} "
                "positions; lower it"
            )

    def _layers_per_ipu(self) -> list[int]:
        layers, count = self.args.layers_per_ipu, self.config.n_layer
        if layers is None:
            return [count]
        if len(layers) == 1 and layers[0] and count % layers[0] == 0:
            layers = layers * (count // layers[0])
        if sum(layers) != count:
            shown = " ".join(map(str, self.args.layers_per_ipu))
            raise ValueError(
                f"--layers-per-ipu {shown}: the checkpoint has {count} layers; make the numbers add up to that"
            )
        if shared_on_several(self.config, layers):
            raise ValueError(f"--layers-per-ipu {' '.join(map(str, layers))}: {shared_on_several(self.config, layers)}")
        return layers

    def _stop_ids(self) -> list[int]:
        """--stop-token, or else end_ids."""
        if "stop_token" not in self.args.typed:
            return end_ids(self.config, self.tokenizer)
        return [self._token(text) for text in self.args.stop_token]

    def _token(self, text: str) -> int:
        token = self.tokenizer.token_id(text)
        if token is None:
            count = len(self.tokenizer.encode(text))
            raise ValueError(
                f"--stop-token {text!r} is {count} tokens and no entry of the vocabulary; give a single one, or use "
                "--stop-string"
            )
        return token

    def _steps(self, gpt2: GPT2LMHeadModel, layers: Sequence[int]) -> tuple[torch.nn.Module, int]:
        """The module that makes a step, and how many tokens of a row go into one."""
        args = self.args
        longest = min(args.input_len, self.slots)
        steps = make_steps(gpt2, layers, self._precision, args.custom_ops)
        # The loop has a call of its own for the prompt.
        return steps, longest if args.poptorch_loop else step_width(steps, longest)

    def _compiled(self, layers: Sequence[int]) -> poptorch.PoplarExecutor:
        args = self.args
        options = single_replica_options(len(layers))
        options.deviceIterations(args.device_iterations)
        options.autoRoundNumIPUs(True)
        if args.matmul_proportion:
            shares = args.matmul_proportion * (len(layers) if len(args.matmul_proportion) == 1 else 1)
            options.setAvailableMemoryProportion({f"IPU{ipu}": share for ipu, share in enumerate(shares)})
        if args.profile:
            options.enableProfiling(args.profile)
        options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
        ids = torch.zeros(self.batch, self.width, dtype=torch.int32)
        one = torch.ones(self.batch, dtype=torch.int32)
        if args.poptorch_loop:
            model = WholeText(self.steps, args.output_len, self.slots, self.config.real_vocab_size, self.sampling)
            example = (ids, one, torch.zeros(self.batch, args.output_len))
        else:
            model = OneStep(self.steps, self.batch, self.slots, self.sampling)
            example = (ids, one * 0, one, torch.zeros(self.batch))
            if self.sampling.needs_text:
                example += (torch.zeros(self.batch, self.config.real_vocab_size, dtype=torch.bool),)
        executor = poptorch.inferenceModel(model.eval(), options)
        executor.compile(*example)
        if not args.compile_only and not args.poptorch_loop:
            executor(*example)  # the first call also lays the weights out, a second that is no text's latency
        return executor

    def encode(self, text: str) -> list[int]:
        """The prompt's token ids; of an empty one the token that ends a text, behind which the next one begins.

        Raises ValueError for a prompt that is too long.
        """
        ids = prompt_ids(self.tokenizer, text, self.beginning)
        longest = min(self.args.input_len, self.config.n_positions)
        if len(ids) > longest:
            room = self.config.n_positions
            limit = "--input-len allows" if longest == self.args.input_len else "the checkpoint has positions"
            remedy = f"shorten the text to {longest} (--prompt, or its line of --prompt-file)"
            if len(ids) <= room:
                remedy = f"raise --input-len to {len(ids)} (the checkpoint has {room} positions), or " + remedy
            raise ValueError(f"the input has {len(ids)} tokens, more than {limit} ({longest}): {remedy}")
        return ids

    def results(self, prompts: Sequence[str]) -> list[Result]:
        """What is to be generated: --num-samples texts for each prompt. Raises ValueError as encode does."""
        args = self.args
        results = []
        for prompt in prompts:
            ids = self.encode(prompt)
            for sample in range(args.num_samples):
                text = new_text(ids, args.output_len, args.seed, sample)
                results.append(Result(prompt, sample, text, TextStream(self.tokenizer.decode, args.stop_string)))
        return results

    def run(self, results: Sequence[Result], show: Callable[[Result, str], None]) -> None:
        """Generate up to `batch` texts side by side; `show` is given each new piece of each of them.

        Raises NonFiniteError, with the layer that it began in, if the model's scores are not finite.
        """
        try:
            self._run(results, show)
        except NonFiniteScores as error:
            raise self._non_finite(error.text) from error

    def _run(self, results: Sequence[Result], show: Callable[[Result, str], None]) -> None:
        by_text = {id(result.text): result for result in results}
        fed = {id(result.text): 0 for result in results}
        for text in self._generate([result.text for result in results]):
            result = by_text[id(text)]
            for token in text.tokens[fed[id(text)] :]:
                fed[id(text)] += 1
                show(result, result.stream.push(token))
                if result.stream.stopped:
                    text.ended = "stop_string"
                    del text.tokens[fed[id(text)] :], text.log_probs[fed[id(text)] :]
                    break
            if text.ended:
                show(result, result.stream.finish())

    def _non_finite(self, text: Text) -> NonFiniteError:
        """What to say of a model whose scores for the next token of `text` are not finite.

        The program holds packed weights, so that the checkpoint is read again.
        """
        args = self.args
        gpt2 = load_for_texts(args.model_name_or_path, "--model-name-or-path", args.input_len + args.output_len)
        gpt2 = gpt2.half() if self.args.fp16 else gpt2.float()
        ids = (text.prompt + text.tokens)[-self.config.n_positions :]
        what = f"the model's scores for the next token (number {len(text.tokens) + 1} of a text) are"
        return non_finite_error(what, first_non_finite_layer(gpt2, ids, self._precision), self._precision)

    def _generate(self, texts: Sequence[Text]) -> Iterator[Text]:
        if self.args.poptorch_loop:
            return generate_at_once(self.executor, texts, self.batch, self.width, self.stop_ids)
        vocab_size = self.config.real_vocab_size if self.sampling.needs_text else None
        shape = (self.batch, self.width, self.config.n_positions, vocab_size)
        return generate(self.executor, texts, *shape, self.stop_ids, self._say_overflow, self.args.keep_last)

    def _say_overflow(self) -> None:
        if not self._overflow_said and is_first():
            kept = self.args.keep_last or self.config.n_positions // 2
            print(
                f"\n[the context of {self.config.n_positions} tokens is full: the text goes on from its last {kept}]",
                file=sys.stderr,
                flush=True,
            )
        self._overflow_said = True
