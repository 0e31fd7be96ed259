"""A named model with other dimensions or another vocabulary: the same variant of GPT-2, in small or for other text.

python -m model.derived_config --model algpt2 --layers 4 --width 192 --heads 4 --output small.json
python -m model.derived_config --model algpt2 --tokenizer my-tokenizer --output mine.json
python train_gpt2.py --config small.json …
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Sequence

from corpora.program import ProgramParser, reported
from corpora.strict_json import json_text
from model.config import MODELS, GPT2Config, padded_rows


def resized(config: GPT2Config, layers: int, width: int, heads: int) -> GPT2Config:
    """The configuration with these dimensions; E, the MLP and `head_dim` keep their shares of the width, rounded.

    Raises:
        ValueError: listing every value that is not valid, such as a width that the heads do not divide.
    """

    def share(size: int | None) -> int | None:
        return None if size is None else max(1, round(size * width / config.n_embd))

    inside: dict[str, Any] = {name: share(getattr(config, name)) for name in ("n_inner", "embedding_size", "head_dim")}
    return dataclasses.replace(config, n_layer=layers, n_embd=width, n_head=heads, **inside)


def with_vocabulary(config: GPT2Config, entries: int, end_of_text: int | None) -> GPT2Config:
    """The configuration for a tokenizer of so many entries, of which one ends a document.

    A `padding_id` does not go along: in another vocabulary that id is another token.
    """
    return dataclasses.replace(
        config,
        vocab_size=padded_rows(entries),
        real_vocab_size=entries,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        padding_id=None,
    )


def write(config: GPT2Config, path: Path) -> None:
    """A config.json, which --config takes, in a folder that is made if need be. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the config.json of a named model with other dimensions or another vocabulary."""
    parser = ProgramParser("model.derived_config", main.__doc__)
    parser.add_argument("--model", choices=list(MODELS), required=True, help="the model, a file in config/")
    for name, what in (("layers", "blocks"), ("width", "width of the residual stream"), ("heads", "attention heads")):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} (default: the model's)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder of a tokenizer (default: GPT-2's)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the config.json")
    args = parser.parse_args(argv)

    def make() -> None:
        config = GPT2Config.from_json(MODELS[args.model])
        given = ((args.layers, config.n_layer), (args.width, config.n_embd), (args.heads, config.n_head))
        config = resized(config, *(own if size is None else size for size, own in given))
        if args.tokenizer is not None:
            from tokenizer import Tokenizer

            tokenizer = Tokenizer.from_folder(args.tokenizer)
            config = with_vocabulary(config, tokenizer.vocab_size, tokenizer.eot_id)
        write(config, args.output)

    return reported("model.derived_config", make, goes_on=False)


if __name__ == "__main__":
    sys.exit(main())
