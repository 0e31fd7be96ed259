"""From prompts to texts: which tokens go into each call, and what becomes of those that come back."""

from __future__ import annotations

import dataclasses
import math
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor

from generation.sampling import stream

# A call of decoding.OneStep: (B, T) int32 ids, (B,) int32 first positions, (B,) int32 numbers of tokens, (B,) random
# numbers and, if the sampling asks for it, (B, V) bool of the tokens in each text -> (B,) tokens, (B,) logarithms of
# probabilities.
Step = Callable[..., "tuple[Tensor, Tensor]"]


@dataclasses.dataclass
class Text:
    """One text in the making.

    Attributes:
        prompt: token ids, at least one.
        uniform: random numbers, one for each token to come; their number is the most there will be.
        tokens, log_probs: what was drawn, a stop token not included, and its logarithms of probabilities.
        ended: "" while it goes on, then "stop" (a stop token), "length", or what its reader set to end it.
    """

    prompt: list[int]
    uniform: Tensor
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    ended: str = ""

    def take(self, token: int, log_prob: float, stop_ids: Sequence[int]) -> bool:
        """One more token; whether it belongs to the text.

        Raises NonFiniteScores if its probability is no number: the scores it was drawn from were none.
        """
        if not math.isfinite(log_prob):
            raise NonFiniteScores(self)
        if token in stop_ids:
            self.ended = "stop"
            return False
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        if len(self.tokens) == len(self.uniform):
            self.ended = "length"
        return True


def new_text(prompt: Sequence[int], length: int, seed: int, sample: int = 0) -> Text:
    """A text of up to `length` more tokens; `sample` tells apart several of one prompt."""
    return Text(list(prompt), stream(seed, prompt, sample, length))


class NonFiniteScores(ArithmeticError):
    """The model's scores for the next token of `text` are NaN or infinite: nothing can be drawn from them."""

    def __init__(self, text: Text) -> None:
        super().__init__(f"the scores for token {len(text.tokens) + 1} of a text are not finite")
        self.text = text


@dataclasses.dataclass
class _Row:
    """A text and where its row of the batch stands."""

    text: Text
    pending: list[int]  # tokens that still go into the model
    start: int = 0  # the position of the first of them


def generate(
    step: Step,
    texts: Sequence[Text],
    batch: int,
    width: int,
    n_positions: int,
    vocab_size: int | None = None,
    stop_ids: Sequence[int] = (),
    overflowed: Callable[[], None] = lambda: None,
    kept: int | None = None,
) -> Iterator[Text]:
    """Yield a text whenever it has got a token or has ended; a reader may set its `ended`.

    Up to `width` tokens of each row go into a call. A text that has outgrown the context of `n_positions` tokens goes
    on from its last `kept` (None: n_positions / 2), encoded again from position 0; `overflowed` is called then.

    Raises NonFiniteScores.

    Args:
        texts: at most `batch`.
        vocab_size: V if `step` wants to know the tokens of each text.
    """
    kept = max(1, n_positions // 2) if kept is None else kept
    rows = [_Row(text, list(text.prompt)) for text in texts]
    seen = torch.zeros(batch, vocab_size, dtype=torch.bool) if vocab_size else None
    told = () if seen is None else (seen,)
    for number, row in enumerate(rows):
        if seen is not None:
            seen[number, row.pending] = True
    while any(not row.text.ended for row in rows):
        ids = torch.zeros(batch, width, dtype=torch.int32)
        start, count, uniform = [0] * batch, [0] * batch, [0.0] * batch
        ready = []  # rows whose next token this call decides
        for number, row in enumerate(rows):
            if row.text.ended:
                continue
            if row.start + len(row.pending) > n_positions:
                row.pending, row.start = (row.text.prompt + row.text.tokens)[-kept:], 0
                overflowed()
            part = row.pending[:width]
            ids[number, : len(part)] = torch.tensor(part, dtype=torch.int32)
            start[number], count[number] = row.start, len(part)
            row.pending, row.start = row.pending[width:], row.start + len(part)
            if not row.pending:
                ready.append(number)
                uniform[number] = row.text.uniform[len(row.text.tokens)].item()
        counters = (torch.tensor(each, dtype=torch.int32) for each in (start, count))
        tokens, log_probs = (each.tolist() for each in step(ids, *counters, torch.tensor(uniform), *told))
        for number in ready:
            row = rows[number]
            if row.text.take(tokens[number], log_probs[number], stop_ids):
                row.pending = [tokens[number]]
                if seen is not None:
                    seen[number, tokens[number]] = True
            yield row.text


def generate_at_once(
    program: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    texts: Sequence[Text],
    batch: int,
    width: int,
    stop_ids: Sequence[int] = (),
) -> Iterator[Text]:
    """Yield each text when it is whole: one call of decoding.WholeText makes all of them.

    Raises NonFiniteScores.
    """
    length = len(texts[0].uniform)
    ids, count = torch.zeros(batch, width, dtype=torch.int32), torch.ones(batch, dtype=torch.int32)
    uniform = torch.zeros(batch, length)
    for number, text in enumerate(texts):
        ids[number, : len(text.prompt)] = torch.tensor(text.prompt, dtype=torch.int32)
        count[number], uniform[number] = len(text.prompt), text.uniform
    tokens, log_probs = program(ids, count, uniform)
    for text, row, logs in zip(texts, tokens.tolist(), log_probs.tolist()):
        for token, log_prob in zip(row, logs):
            if not text.take(token, log_prob, stop_ids):
                break
        yield text
