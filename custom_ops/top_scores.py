"""TopScores (domain gpt2.decode): what it means, in plain torch.

The k best of a vocabulary's scores, and how likely the model thinks them. Sampling needs no more of 50,257 logits,
which then need not leave the device. top_scores_torch.cpp reads them once where k is small, and where it is not sorts
them by digits: a sort of torch takes ten times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor

from custom_ops.decode_blocks import NAMESPACE


def penalised(logits: Tensor, seen: Tensor | None, penalty: float) -> Tensor:
    """(B, V) logits, those of the tokens `seen` (B, V) bool divided by the penalty, or multiplied if negative.

    The repetition penalty of Keskar et al. 2019, CTRL, section 4.1.
    """
    if seen is None or penalty == 1.0:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_scores(logits: Tensor, seen: Tensor | None, k: int, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest penalised logits of each row, the best first.

    Args:
        logits: (B, V) float32.
        seen: (B, V) bool; for penalty 1 None, or to the operator any tensor.

    Returns:
        (B, k) float32 scores, (B, k) int32 ids, of equal scores the smaller one first for k = 1 (the operator: always),
        and (B, k) float32 logarithms of the probabilities that softmax gives the logits themselves.
    """
    scores = penalised(logits, seen, penalty)
    if k == 1:
        ids = scores.argmax(-1, keepdim=True)
        best = scores.gather(-1, ids)
    elif k == scores.shape[-1]:
        best, ids = scores.sort(dim=-1, descending=True)
    else:
        best, ids = scores.topk(k)
    log_probs = logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)
    return best, ids.to(torch.int32), log_probs


def host_top_scores(logits: Tensor, seen: Tensor | None, k: int, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """As top_scores, for logits that the host holds: by the operator if the library that was loaded has it."""
    namespace = getattr(torch.ops, NAMESPACE)
    if not hasattr(namespace, "TopScores"):
        return top_scores(logits, seen, k, penalty)
    return namespace.TopScores(logits, unlooked_at(logits) if seen is None else seen, k=k, penalty=penalty)


def unlooked_at(logits: Tensor) -> Tensor:
    """What the operator is given for `seen` where there is no penalty."""
    return logits[:, :1] > 0
