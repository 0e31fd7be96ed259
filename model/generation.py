"""From prompts to texts: which tokens go into each call, and what is drawn from the logits that come back."""

from __future__ import annotations

import dataclasses
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor

from model.sampling import Sampling, choose, stream

# A call of the program: (B, T) int32 ids, (B,) int32 first positions, (B,) int32 numbers of tokens -> (B, V) logits.
Step = Callable[[Tensor, Tensor, Tensor], Tensor]


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
        """One more token; whether it belongs to the text."""
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
    vocab_size: int,
    sampling: Sampling,
    stop_ids: Sequence[int] = (),
    overflowed: Callable[[], None] = lambda: None,
) -> Iterator[Text]:
    """Yield a text whenever it has got a token or has ended; a reader may set its `ended`.

    Up to `width` tokens of each row go into a call. A text that has outgrown the context of `n_positions` tokens goes
    on from its last n_positions / 2, encoded again from position 0; `overflowed` is called then.

    Args:
        texts: at most `batch`.
    """
    rows = [_Row(text, list(text.prompt)) for text in texts]
    seen = torch.zeros(batch, vocab_size, dtype=torch.bool) if sampling.needs_text else None
    for number, row in enumerate(rows):
        if seen is not None:
            seen[number, row.pending] = True
    while any(not row.text.ended for row in rows):
        ids = torch.zeros(batch, width, dtype=torch.int32)
        start, count = torch.zeros(batch, dtype=torch.int32), torch.zeros(batch, dtype=torch.int32)
        ready = []  # rows whose next token this call decides
        for number, row in enumerate(rows):
            if row.text.ended:
                continue
            if row.start + len(row.pending) > n_positions:
                row.pending, row.start = (row.text.prompt + row.text.tokens)[-max(1, n_positions // 2) :], 0
                overflowed()
            part = row.pending[:width]
            ids[number, : len(part)] = torch.tensor(part, dtype=torch.int32)
            start[number], count[number] = row.start, len(part)
            row.pending, row.start = row.pending[width:], row.start + len(part)
            if not row.pending:
                ready.append(number)
        logits = step(ids, start, count)
        if not ready:
            continue
        numbers = torch.stack([rows[number].text.uniform[len(rows[number].text.tokens)] for number in ready])
        tokens, log_probs = choose(logits[ready], None if seen is None else seen[ready], numbers, sampling)
        for number, token, log_prob in zip(ready, tokens.tolist(), log_probs.tolist()):
            row = rows[number]
            if row.text.take(token, log_prob, stop_ids):
                row.pending = [token]
                if seen is not None:
                    seen[number, token] = True
            yield row.text


def generate_at_once(
    program: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    texts: Sequence[Text],
    batch: int,
    width: int,
    stop_ids: Sequence[int] = (),
) -> Iterator[Text]:
    """Yield each text when it is whole: one call of decoding.WholeText makes all of them."""
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
