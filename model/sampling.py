"""Choosing the next token of each row: the same tensor operations on the host and inside a loop on the device.

Randomness comes in as one number per row and token, drawn from the row's own stream. A row's tokens therefore depend
neither on the rows beside it nor on where the choice is made.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Sequence

import torch
from torch import Tensor

NEVER = float("-inf")  # score of what may not be drawn


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw, applied in this order; the defaults leave the model's distribution as it is.

    Attributes:
        repetition_penalty: divides positive logits of tokens in the text so far, prompt included, and multiplies
            negative ones (Keskar et al. 2019, CTRL, section 4.1).
        top_k: the k likeliest tokens only; 0: all of them; 1: greedy, and nothing below matters.
        temperature: divides the logits, > 0.
        top_p: the fewest likeliest tokens whose probabilities add up to this (Holtzman et al. 2020, nucleus sampling).
        min_p: tokens with at least this fraction of the largest probability (Nguyen et al. 2024).
        typical_p: the tokens whose information is nearest to the entropy, up to this probability (Meister et al. 2022,
            locally typical sampling).
    """

    repetition_penalty: float = 1.0
    top_k: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0

    @property
    def greedy(self) -> bool:
        return self.top_k == 1

    @property
    def needs_text(self) -> bool:
        """Whether the choice depends on the tokens so far."""
        return self.repetition_penalty != 1.0


def stream(seed: int, prompt: Sequence[int], sample: int, length: int) -> Tensor:
    """(length,) float32 in [0, 1): the random numbers of one text.

    A function of the seed, the prompt's ids and the number of the sample, so that a prompt gives the same text alone
    and in any batch.
    """
    digest = hashlib.sha256(repr((seed, sample, list(prompt))).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.rand(length, generator=generator)


def penalised(logits: Tensor, seen: Tensor | None, sampling: Sampling) -> Tensor:
    """(B, V) logits and (B, V) bool of the tokens in each text -> (B, V)."""
    if seen is None or not sampling.needs_text:
        return logits
    penalty = sampling.repetition_penalty
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def candidates(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """What may be drawn: (B, K) scores, NEVER for what may not, and their (B, K) token ids, None for 0 ... V - 1."""
    ids = None
    if 0 < sampling.top_k < scores.shape[-1]:
        scores, ids = scores.topk(sampling.top_k)
    elif sampling.top_p < 1.0:
        scores, ids = scores.sort(dim=-1, descending=True)
    scores = scores / sampling.temperature
    if sampling.top_p < 1.0:  # sorted: keep what has less than top_p before it, the first one always
        probs = torch.softmax(scores, -1)
        scores = torch.where(probs.cumsum(-1) - probs < sampling.top_p, scores, NEVER)
    if sampling.min_p > 0.0:
        probs = torch.softmax(scores, -1)
        scores = torch.where(probs >= sampling.min_p * probs.amax(-1, keepdim=True), scores, NEVER)
    if sampling.typical_p < 1.0:
        probs = torch.softmax(scores, -1)
        information = torch.where(probs > 0, -torch.log_softmax(scores, -1), 0.0)
        entropy = (probs * information).sum(-1, keepdim=True)
        distance = torch.where(probs > 0, (information - entropy).abs(), -NEVER)
        order = distance.argsort(dim=-1)
        sorted_probs = probs.gather(-1, order)
        kept = sorted_probs.cumsum(-1) - sorted_probs < sampling.typical_p
        scores = torch.where(torch.zeros_like(kept).scatter(-1, order, kept), scores, NEVER)
    return scores, ids


def choose(logits: Tensor, seen: Tensor | None, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: (B, V) float32.
        seen: (B, V) bool, the tokens in each row's text; None if the sampling does not ask.
        uniform: (B,) numbers in [0, 1): the cumulated probabilities are cut there.

    Returns:
        (B,) int64 tokens, (B,) float32 logarithms of their probabilities in the model's own distribution.
    """
    scores = penalised(logits, seen, sampling)
    if sampling.greedy:
        token = scores.argmax(-1)
    else:
        scores, ids = candidates(scores, sampling)
        cumulated = torch.softmax(scores, -1).cumsum(-1)
        total = cumulated[:, -1:]
        place = (cumulated <= uniform[:, None] * total).sum(-1)
        place = torch.minimum(place, (cumulated < total).sum(-1))  # rounding may have reached the total
        token = place if ids is None else ids.gather(-1, place[:, None]).squeeze(-1)
    log_probs = logits.gather(-1, token[:, None]).squeeze(-1) - logits.logsumexp(-1)
    return token, log_probs
