"""Checkpoints of other programs in and out.

    python -m model.convert out-shakespeare/ckpt.pt mine --to huggingface
    python -m model.convert checkpoints gpt2-q8_0.gguf --to gguf --dtype q8_0

IN is recognised by its content: a Hugging Face folder, the folder of a run of train_gpt2.py, nanoGPT's ckpt.pt, llm.c's
.bin, a folder of Megatron-LM's (mp_rank folders or torch_dist), one of OpenAI's (TensorFlow), or a GGUF file. OUT is
written whole or not at all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from corpora.program import ProgramParser, reported
from model.config_checks import ACTIVATIONS

PROGRAM = "model.convert"
FORMATS = ("huggingface", "nanogpt", "llm.c", "megatron", "gguf")
DTYPES = ("float32", "float16", "bfloat16", "q8_0")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags; all problems are reported at once."""
    parser = ProgramParser(PROGRAM, __doc__)
    parser.add_argument("IN", type=Path, help="a checkpoint")
    parser.add_argument("OUT", type=Path, help="the file or folder to write")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format of OUT")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the weights (default: that of IN, or what holds it exactly)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    says = parser.add_argument_group("what IN does not say itself")
    says.add_argument("--config", type=Path, metavar="FILE", help="of Hugging Face, Megatron-LM: a config.json")
    says.add_argument("--real-vocab-size", type=int, metavar="N", help="rows of the vocabulary that are tokens")
    says.add_argument("--activation", choices=ACTIVATIONS, help="of nanoGPT, llm.c, Megatron-LM, GGUF")
    says.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="for huggingface, gguf as OUT: a tokenizer.json, or its folder"
    )
    says.add_argument(
        "--vocab-multiple", type=int, metavar="N", help="for llm.c, megatron as OUT: padded to a multiple of (128)"
    )
    args = parser.parse_args(argv)
    problems = [
        f"--{name.replace('_', '-')} must be 1 or more, not {getattr(args, name)}"
        for name in ("real_vocab_size", "vocab_multiple")
        if getattr(args, name) is not None and getattr(args, name) < 1
    ]
    if problems:
        parser.refuse(problems)
    return args


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    args = parse_args(argv)

    def work() -> None:
        from model.convert.conversion import convert

        convert(args)

    return reported(PROGRAM, work, goes_on=False)


if __name__ == "__main__":
    sys.exit(main())
