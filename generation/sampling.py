"""Choosing the next token of each row: the same tensor operations on the host and inside a loop on the device.

Randomness comes in as one number per row and token, drawn from the row's own stream. A row's tokens therefore depend
neither on the rows beside it nor on where the choice is made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Callable, Sequence

import torch
from torch import Tensor

from custom_ops.top_scores import penalised, top_scores

# What custom_ops.top_scores.top_scores does.
TopScores = Callable[[Tensor, "Tensor | None", int, float], "tuple[Tensor, Tensor, Tensor]"]
NEVER = float("-inf")  # score of what may not be drawn


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw, applied in this order; the defaults leave the model's distribution as it is.

    Attributes:
        repetition_penalty: on the logits of tokens in the text so far, prompt included (custom_ops/top_scores.py).
        top_k: the k likeliest tokens only; 0: all of them; 1: greedy, and nothing below matters.
        temperature: divides the logits, > 0.
        top_p: the fewest likeliest tokens whose probabilities add up to this (Holtzman et al. 2020, nucleus sampling).
        min_p: tokens with at least this fraction of the largest probability (Nguyen et al. 2024).
        typical_p: the tokens whose information is nearest to the entropy, up to this probability (Meister et al. 2022,
            locally typical sampling).
        eta_cutoff: tokens of a probability of at least min(this, the root of this / exp(entropy)), and the likeliest;
            0: all of them (Hewitt et al. 2022, eta sampling).
    """

    repetition_penalty: float = 1.0
    top_k: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    eta_cutoff: float = 0.0

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


def candidates(scores: Tensor, sampling: Sampling) -> Tensor:
    """(B, K) scores of what may be drawn, NEVER for what may not. For top_p, `scores` has the largest first."""
    scores = scores / sampling.temperature
    if sampling.top_p < 1.0:  # sorted: keep what has less than top_p before it, the first one always
        probs = torch.softmax(scores, -1)
        scores = torch.where(probs.cumsum(-1) - probs < sampling.top_p, scores, NEVER)
    if sampling.min_p > 0.0:
        probs = torch.softmax(scores, -1)
        scores = torch.where(probs >= sampling.min_p * probs.amax(-1, keepdim=True), scores, NEVER)
    if sampling.typical_p < 1.0:
        probs, information, entropy = _information(scores)
        distance = torch.where(probs > 0, (information - entropy).abs(), -NEVER)
        order = distance.argsort(dim=-1)
        sorted_probs = probs.gather(-1, order)
        kept = sorted_probs.cumsum(-1) - sorted_probs < sampling.typical_p
        scores = torch.where(torch.zeros_like(kept).scatter(-1, order, kept), scores, NEVER)
    if sampling.eta_cutoff > 0.0:
        probs, _, entropy = _information(scores)
        least = (math.sqrt(sampling.eta_cutoff) * torch.exp(-entropy)).clamp(max=sampling.eta_cutoff)
        scores = torch.where((probs >= least) | (probs == probs.amax(-1, keepdim=True)), scores, NEVER)
    return scores


def _information(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (B, K), information in nats (B, K), 0 where nothing can come, and its mean, the entropy (B, 1)."""
    probs = torch.softmax(scores, -1)
    information = torch.where(probs > 0, -torch.log_softmax(scores, -1), 0.0)
    return probs, information, (probs * information).sum(-1, keepdim=True)


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """(B, K) scores, (B,) numbers in [0, 1) -> (B, 1) int64: where their cumulated softmax reaches the number."""
    cumulated = torch.softmax(scores, -1).cumsum(-1)
    total = cumulated[:, -1:]
    place = (cumulated <= uniform[:, None] * total).sum(-1, keepdim=True)
    return torch.minimum(place, (cumulated < total).sum(-1, keepdim=True))  # rounding may have reached the total


def choose(
    logits: Tensor, seen: Tensor | None, uniform: Tensor, sampling: Sampling, best: TopScores = top_scores
) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: (B, V) float32.
        seen: (B, V) bool, the tokens in each row's text; None if the sampling does not ask.
        uniform: (B,) numbers in [0, 1): the cumulated probabilities are cut there.
        best: finds the top_k tokens, or sorts all of them.

    Returns:
        (B,) int64 tokens, (B,) float32 logarithms of their probabilities in the model's own distribution.
    """
    vocab_size = logits.shape[-1]
    k = sampling.top_k if 0 < sampling.top_k < vocab_size else vocab_size
    if k < vocab_size or sampling.top_p < 1.0:  # which needs the largest first
        scores, ids, log_probs = best(logits, seen, k, sampling.repetition_penalty)  # (B, K) each
        place = uniform[:, None].long() if sampling.greedy else draw(candidates(scores, sampling), uniform)
        return ids.gather(-1, place).squeeze(-1).long(), log_probs.gather(-1, place).squeeze(-1)
    scores = penalised(logits, seen, sampling.repetition_penalty)
    token = draw(candidates(scores, sampling), uniform)  # (B, 1)
    log_probs = logits.gather(-1, token) - logits.logsumexp(-1, keepdim=True)
    return token.squeeze(-1), log_probs.squeeze(-1)
