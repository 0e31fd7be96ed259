"""Choosing the next token: one position's logits from the device, sampling on the host."""

from __future__ import annotations

from typing import Iterator

import poptorch
import torch
from torch import Tensor, nn

from model.gpt2 import GPT2LMHeadModel


class NextTokenModel(nn.Module):
    """Logits of the token that follows position `index`, computed for that position only."""

    def __init__(self, gpt2: GPT2LMHeadModel) -> None:
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, input_ids: Tensor, index: Tensor) -> Tensor:
        """(B, T) ids padded behind `index` (B,) -> (B, V) logits in float32. Causality keeps the padding out."""
        hidden = self.gpt2.transformer(input_ids)  # (B, T, C)
        chosen = index.long().view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        return self.gpt2.lm_head(torch.gather(hidden, 1, chosen)).squeeze(1).float()


def choose_token(
    logits: Tensor,
    seen: list[int],
    temperature: float,
    top_k: int,
    repetition_penalty: float,
    generator: torch.Generator,
) -> int:
    """Draw one token id.

    Args:
        logits: (V,) float32.
        seen: ids already in the text; the penalty divides their positive logits and multiplies negative ones (Keskar et
            al. 2019, section 4.1).
        temperature: divides the logits, > 0. top_k: draw from the k likeliest only; 0: from all; 1: greedy.
    """
    scores = logits.clone()
    if repetition_penalty != 1.0 and seen:
        index = torch.tensor(sorted(set(seen)))
        values = scores[index]
        scores[index] = torch.where(values > 0, values / repetition_penalty, values * repetition_penalty)
    if top_k == 1:
        return int(scores.argmax())
    scores = scores / temperature
    if 0 < top_k < scores.numel():
        best, index = scores.topk(top_k)
        return int(index[torch.multinomial(torch.softmax(best, -1), 1, generator=generator)])
    return int(torch.multinomial(torch.softmax(scores, -1), 1, generator=generator))


def generate(
    executor: poptorch.PoplarExecutor,
    prompt: list[int],
    length: int,
    window: int,
    stop_id: int,
    temperature: float,
    top_k: int,
    repetition_penalty: float,
    generator: torch.Generator,
) -> Iterator[int]:
    """Yield up to `length` token ids that continue `prompt`, ending before `stop_id`.

    The whole text is encoded again for every token (T = `window`). When it outgrows the window, its last
    window / 2 tokens are taken as the context and generation goes on.
    """
    context, seen = list(prompt), list(prompt)
    for _ in range(length):
        if len(context) > window:
            context = context[-(window // 2) :]
        ids = torch.zeros(1, window, dtype=torch.int32)
        ids[0, : len(context)] = torch.tensor(context, dtype=torch.int32)
        logits = executor(ids, torch.tensor([len(context) - 1], dtype=torch.int32))[0]
        token = choose_token(logits, seen, temperature, top_k, repetition_penalty, generator)
        if token == stop_id:
            return
        context.append(token)
        seen.append(token)
        yield token
