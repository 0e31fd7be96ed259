"""Text generation with GPT-2 and PopTorch: an interactive prompt, or one continuation of --prompt.

python text_generate_gpt2.py --model-name-or-path CHECKPOINT --prompt "My name is" --output-len 64
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from arguments import parse_generate_args
from model.argument_checks import not_installed, refuse
from model.interruption import INTERRUPTED

PROGRAM = "text_generate_gpt2.py"


class TextGenerator:
    """A checkpoint, its tokenizer and its executor."""

    def __init__(self, args: argparse.Namespace) -> None:
        import poptorch

        from model.checkpoint import load_pretrained
        from model.generation import NextTokenModel
        from model.placement import place
        from tokenizer import Tokenizer

        self.args = args
        gpt2 = load_pretrained(args.model_name_or_path)
        config = gpt2.config
        folder = Path(args.model_name_or_path)
        self.tokenizer = Tokenizer.from_folder(folder) if (folder / "tokenizer.json").is_file() else Tokenizer.gpt2()
        if self.tokenizer.vocab_size > config.real_vocab_size:
            raise ValueError(
                f"--model-name-or-path {folder}: the tokenizer has {self.tokenizer.vocab_size} entries, the model "
                f"{config.real_vocab_size}. Put the tokenizer.json the model was trained with into its folder."
            )
        layers = args.layers_per_ipu or [config.n_layer]
        if layers != [config.n_layer]:
            raise ValueError(f"--layers-per-ipu {layers[0]}: the checkpoint has {config.n_layer} layers")
        place(gpt2, layers, training=False)
        self.window = min(config.n_positions, args.input_len + args.output_len)
        self.stop_id = self._stop_id()
        options = poptorch.Options()
        if args.matmul_proportion:
            options.setAvailableMemoryProportion({"IPU0": args.matmul_proportion[0]})
        options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
        model = NextTokenModel(gpt2).eval()
        self.executor = poptorch.inferenceModel(model.half() if args.fp16 else model.float(), options)

    def _stop_id(self) -> int:
        from tokenizer import EOT

        if self.args.stop_token == EOT:
            return self.tokenizer.eot_id
        ids = self.tokenizer.encode(self.args.stop_token)
        if len(ids) != 1:
            raise ValueError(
                f"--stop-token {self.args.stop_token!r} is {len(ids)} tokens; give one that is a single one"
            )
        return ids[0]

    def encode(self, text: str) -> list[int]:
        """The prompt's token ids. Raises ValueError for an empty or too long one."""
        ids = self.tokenizer.encode(text)
        longest = min(self.args.input_len, self.window)
        if not ids:
            raise ValueError("the input is empty: type at least one character")
        if len(ids) > longest:
            raise ValueError(f"the input has {len(ids)} tokens, more than --input-len allows ({longest}): shorten it")
        return ids

    def run(self, text: str) -> str:
        """Continue `text`, print it as it grows and return the whole."""
        import torch

        from model.generation import generate

        args, prompt = self.args, self.encode(text)
        generator = torch.Generator().manual_seed(args.seed)
        tokens: list[int] = []
        shown = text
        print(text, end="", flush=True)
        start = time.perf_counter()
        for token in generate(
            self.executor,
            prompt,
            args.output_len,
            self.window,
            self.stop_id,
            args.temperature,
            args.topk,
            args.repetition_penalty,
            generator,
        ):
            tokens.append(token)
            whole = self.tokenizer.decode(prompt + tokens)
            if not whole.endswith("\ufffd"):  # the rest of a character that spans tokens is still to come
                print(whole[len(shown) :], end="", flush=True)
                shown = whole
        elapsed = time.perf_counter() - start
        whole = self.tokenizer.decode(prompt + tokens)
        print(whole[len(shown) :])
        print(f"latency avg: {1000 * elapsed / max(1, len(tokens)):.2f} ms, {len(tokens)} tokens", flush=True)
        return whole


def inputs(prompt: Any) -> Any:
    """The one prompt of the flag, or lines typed after `Input: ` until the end of input."""
    if prompt is not None:
        yield prompt
        return
    while True:
        try:
            yield input("Input: ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def main() -> int:
    args = parse_generate_args()
    for line in args.notes:
        print(line)
    try:
        generator = TextGenerator(args)
    except ModuleNotFoundError as error:
        refuse(PROGRAM, [not_installed(error)])
    except ValueError as error:
        refuse(PROGRAM, [str(error)])
    except KeyboardInterrupt:
        return INTERRUPTED
    texts = []
    for text in inputs(args.prompt):
        try:
            texts.append(generator.run(text))
        except ValueError as error:
            if args.prompt is not None:
                refuse(PROGRAM, [str(error)])
            print(error, file=sys.stderr)
        except KeyboardInterrupt:  # ends this text, not the program
            print()
    if args.save_samples_path:
        Path(args.save_samples_path).write_text("\n".join(texts) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
