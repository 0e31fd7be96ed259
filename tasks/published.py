"""Published zero-shot figures of GPT-2, each with what it was computed on: printed for comparison, never claimed.

OpenAI: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 3; its protocols are not
described. The others are of the released weights under protocols that can be named.
"""

from __future__ import annotations

from typing import NamedTuple

from model.config import GPT2Config

# Names of the sizes by (n_layer, n_embd): those of the released checkpoints.
_SIZES = {(12, 768): "124M", (24, 1024): "355M", (36, 1280): "774M", (48, 1600): "1.5B"}


class Figure(NamedTuple):
    """One published number."""

    source: str
    size: str
    value: float


def _row(source: str, *values: float) -> list[Figure]:
    return [Figure(source, size, value) for size, value in zip(_SIZES.values(), values)]


# (task, protocol, measure) -> figures. WIKITEXT103 counts for the file that the figure was computed on.
FIGURES: dict[tuple[str, str, str], list[Figure]] = {
    ("wiki.test.raw", "token-joined", "ppl"): _row("transformers' recipe, T 1024", 29.94),
    ("wiki.test.tokens", "adjusted", "adjusted ppl"): [
        *_row("released weights, T 1024", 35.51, 25.68, 21.88, 19.80),
        *_row("OpenAI", 37.50, 26.37, 22.05, 17.48),
        Figure("Megatron-LM", "345M", 19.31),
    ],
    ("wiki.test.raw", "word", "word ppl"): _row("lm-evaluation-harness", 37.37),
    ("LAMBADA", "last-bpe", "accuracy"): [
        *_row("released weights", 0.4667),
        *_row("OpenAI", 0.4599, 0.5548, 0.6012, 0.6324),
        Figure("Megatron-LM", "345M", 0.4518),
    ],
    ("LAMBADA", "last-word", "accuracy"): [
        Figure("released weights", "124M", 0.3256),
        Figure("released weights", "1.5B", 0.5121),
    ],
    ("LAMBADA", "last-word", "ppl"): [
        Figure("released weights", "124M", 40.06),
        Figure("released weights", "1.5B", 10.63),
        *_row("OpenAI", 35.13, 15.60, 10.87, 8.63),
    ],
    ("ENWIK8", "bits-per-byte", "bits per byte"): _row("OpenAI", 1.16, 1.01, 0.97, 0.93),
    ("TEXT8", "bits-per-character", "bits per character"): _row("OpenAI", 1.17, 1.06, 1.02, 0.98),
}


def size_name(config: GPT2Config) -> str | None:
    """The released checkpoint that has these dimensions, None if there is none, or if the model is no plain GPT-2."""
    plain = config.tie_word_embeddings and not config.variant
    return _SIZES.get((config.n_layer, config.n_embd)) if plain else None


def comparable(subject: str, protocol: str, config: GPT2Config) -> list[tuple[str, Figure]]:
    """(measure, figure) of what may be set beside this result: of the model's own size, or of all if it has none.

    `subject` is the task, for WIKITEXT103 the name of the published file.
    """
    own = size_name(config)
    own_names = {own, {"355M": "345M"}.get(own or "")}  # the first papers counted without the embedding
    found = [
        (measure, figure)
        for (of, name, measure), figures in FIGURES.items()
        if (of, name) == (subject, protocol)
        for figure in figures
    ]
    return [pair for pair in found if own is None or pair[1].size in own_names]
