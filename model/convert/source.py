"""What is converted: a checkpoint of any format as tensors under Hugging Face's names, each read when it is asked for.

Tensors are views of mapped files wherever a format allows it, so that a model never has to fit into memory.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Callable, Mapping, NamedTuple

import torch
from torch import Tensor

from model.config import GPT2Config
from model.convert.vocabulary import Vocabulary
from model.weights import HEAD, WTE, check_weights


class Weight(NamedTuple):
    """A tensor that is there when it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def changed(self, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Weight:
        """What `change`, mostly a view of another shape, makes of it."""
        return Weight(shape, self.dtype, lambda: change(self.read()))

    def transposed(self) -> Weight:
        """(a, b) -> (b, a)"""
        return self.changed((self.shape[1], self.shape[0]), Tensor.t) if len(self.shape) == 2 else self


def weight_of(tensor: Tensor) -> Weight:
    """A tensor that is mapped, or small."""
    return Weight(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Weight:
    """A bias that a model without biases does not store."""
    return Weight(shape, dtype, lambda: torch.zeros(shape, dtype=dtype))


class Wishes(NamedTuple):
    """What the command line says of a checkpoint that does not say it itself."""

    config: Path | None = None  # a config.json
    real_vocab_size: int | None = None
    activation: str | None = None
    tokenizer: Path | None = None  # a folder or a tokenizer.json


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint. `weights` are those of GPT2LMHeadModel.named_parameters(), in that order; wte has no padding."""

    path: Path  # what errors name
    kind: str  # "nanoGPT", for a message
    config: GPT2Config
    weights: Mapping[str, Weight]
    vocabulary: Vocabulary | None
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights; of mixed ones the widest."""
        return functools.reduce(torch.promote_types, (weight.dtype for weight in self.weights.values()))


def make_source(
    path: Path,
    kind: str,
    config: GPT2Config,
    weights: Mapping[str, Weight],
    described: str,
    vocabulary: Vocabulary | None = None,
    wishes: Wishes | None = None,
) -> Source:
    """The source of these weights, whose wte has the config.vocab_size rows of the file; `described` says what holds
    the configuration.

    Raises:
        ValueError: naming the file, if the weights are not those of a model of `config`.
    """
    wishes = wishes or Wishes()
    metas = {name: torch.empty(w.shape, dtype=w.dtype, device="meta") for name, w in weights.items()}
    expected = check_weights(metas, config, path, described)
    rows, real = config.vocab_size, wishes.real_vocab_size or config.real_vocab_size
    if real > rows:
        raise ValueError(f"--real-vocab-size {real}: {path} has {rows} rows of the vocabulary; name {rows} or fewer")
    notes = []
    if real < rows:
        notes.append(
            f"{real} of {rows} rows of the vocabulary are tokens, the others are padding and left out (another number: "
            "--real-vocab-size)"
        )
    ordered = {name: weights[name] for name in expected}
    for name in (WTE, HEAD) if HEAD in ordered else (WTE,):
        ordered[name] = ordered[name].changed((real, config.embedding_width), lambda tensor: tensor[:real])
    ends = {}
    for name in ("bos_token_id", "eos_token_id"):
        value = getattr(config, name)
        if isinstance(value, int) and value >= real:  # the default, of a vocabulary that is smaller
            ends[name] = None
    config = dataclasses.replace(config, vocab_size=real, real_vocab_size=real, **ends)
    if wishes.tokenizer is not None:
        vocabulary = Vocabulary.at(wishes.tokenizer)
    return Source(path, kind, config, ordered, vocabulary, tuple(notes))


def make_config(path: Path, described: str, **values: object) -> GPT2Config:
    """A configuration from what a file says. Raises ValueError naming the file and where in it that stands."""
    try:
        return GPT2Config(**values)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{path}: {described}: {error}") from error
