"""Prefix beam search over the outputs of a CTC model (Graves et al. 2006; Hannun et al. 2014)."""

from __future__ import annotations

import math

import torch

_NEVER = -math.inf
_Beams = dict[tuple[int, ...], tuple[float, float]]


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == _NEVER else a + math.log1p(math.exp(b - a))


def _step(beams: _Beams, row: list[float], blank: int) -> _Beams:
    """Extend every prefix by one frame. A prefix has two log-probabilities: ending in a blank, or in its last label."""
    following: _Beams = {}

    def add(prefix: tuple[int, ...], in_blank: float, in_label: float) -> None:
        old_blank, old_label = following.get(prefix, (_NEVER, _NEVER))
        following[prefix] = (_add(old_blank, in_blank), _add(old_label, in_label))

    for prefix, (in_blank, in_label) in beams.items():
        either = _add(in_blank, in_label)
        add(prefix, either + row[blank], _NEVER)
        for label, log_probability in enumerate(row):
            if label == blank:
                continue
            if prefix and prefix[-1] == label:  # the same label again, or a second one behind a blank
                add(prefix, _NEVER, in_label + log_probability)
                add((*prefix, label), _NEVER, in_blank + log_probability)
            else:
                add((*prefix, label), _NEVER, either + log_probability)
    return following


def beam_search(
    log_probs: torch.Tensor, lengths: torch.Tensor, blank: int, beam_width: int, top_paths: int
) -> list[torch.Tensor]:
    """Log-probabilities (N, P), lengths (N, P) and labels (N, P, T) of the P best paths; `log_probs` is (T, N, C).

    Labels beyond a path's length are `blank`; where there are fewer paths than P, the probability is -inf.
    """
    steps, batch, _ = log_probs.shape
    scores = torch.full((batch, top_paths), _NEVER, dtype=torch.float32)
    sizes = torch.zeros((batch, top_paths), dtype=torch.int32)
    labels = torch.full((batch, top_paths, steps), blank, dtype=torch.int32)
    rows = log_probs.detach().double().cpu().transpose(0, 1).tolist()
    for n, length in enumerate(lengths.tolist()):
        beams: _Beams = {(): (0.0, _NEVER)}
        for row in rows[n][: int(length)]:
            following = _step(beams, row, blank)
            best = sorted(following.items(), key=lambda item: -_add(*item[1]))
            beams = dict(best[:beam_width])
        for p, (prefix, parts) in enumerate(list(beams.items())[:top_paths]):
            scores[n, p] = _add(*parts)
            sizes[n, p] = len(prefix)
            labels[n, p, : len(prefix)] = torch.tensor(prefix, dtype=torch.int32)
    device = log_probs.device
    return [scores.to(device, log_probs.dtype), sizes.to(device), labels.to(device)]
