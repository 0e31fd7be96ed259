"""What the engine is given and what it tells: a text to be made, and its tokens with their probabilities."""

from __future__ import annotations

import dataclasses
import functools
from typing import Callable, Mapping, Sequence

import torch
from torch import Tensor

from generation.requests import Text
from generation.sampling import Sampling


@dataclasses.dataclass
class Scored:
    """A token with its logarithm of probability in the model's own distribution, and the likeliest tokens beside it.

    A prompt's first token has nothing before it: `log_prob` is None, and `best` is empty.
    """

    token: int
    log_prob: float | None = None
    best: list[tuple[int, float]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Job:
    """One text to be made.

    Attributes:
        text: the prompt and what has come; a listener may set `ended`.
        sampling: how to draw; it has no repetition penalty.
        listener: is called on the engine's thread with the job and the tokens that came: once with those of the prompt
            if they are scored, then with each new one, a stop token included (`ended` is "stop" then). The text's
            `ended` says that this was the last call. If `error` is set, it is the last call too. What it raises
            becomes the `error` of its own job, which it is then told.
        alternatives: how many likeliest tokens are told beside each.
        score_prompt: whether the prompt's tokens are told, too.
        frequency, presence, bias: subtracted from the logit of a token of the text so far, for each time it is there
            and once; added to logits by id.
        deadline: of the engine's clock.
    """

    text: Text
    sampling: Sampling
    listener: Callable[[Job, Sequence[Scored]], None]
    stop_ids: Sequence[int] = ()
    alternatives: int = 0
    score_prompt: bool = False
    frequency: float = 0.0
    presence: float = 0.0
    bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    deadline: float = float("inf")
    cancelled: bool = False
    error: Exception | None = None
    submitted: float = 0.0

    @property
    def over(self) -> bool:
        return self.cancelled or self.error is not None or bool(self.text.ended)

    def changed(self, logits: Tensor) -> Tensor:
        """(V,) logits with penalties and bias, which are those of OpenAI's API; without any, `logits` itself."""
        if not (self.frequency or self.presence or self.bias):
            return logits
        logits = logits.clone()
        if (self.frequency or self.presence) and self.text.tokens:
            tokens, times = torch.tensor(self.text.tokens).unique(return_counts=True)
            logits[tokens] -= self.frequency * times + self.presence
        if self.bias:
            tokens, added = self._bias_columns
            logits[tokens] += added
        return logits

    @functools.cached_property
    def _bias_columns(self) -> tuple[Tensor, Tensor]:
        """(N,) int64 ids and (N,) float32 numbers of `bias`."""
        return torch.tensor(list(self.bias), dtype=torch.long), torch.tensor(list(self.bias.values()))
