"""Farthest point sampling (Qi et al., PointNet++, 2017)."""

from __future__ import annotations

import math

import torch


def sample_counts(bounds: list[int], ratio: float) -> list[int]:
    """Points taken from each group [bounds[i], bounds[i + 1])."""
    return [math.ceil(ratio * (end - start)) for start, end in zip(bounds, bounds[1:], strict=False)]


def farthest_points(points: torch.Tensor, bounds: list[int], ratio: float, random_start: bool) -> torch.Tensor:
    """Indices into `points` (N, F): in each group, again and again the point farthest from all that were taken."""
    taken = []
    for start, end, count in zip(bounds, bounds[1:], sample_counts(bounds, ratio), strict=False):
        group = points[start:end].detach()
        index = int(torch.randint(end - start, ())) if random_start else 0
        distance = torch.full((end - start,), float("inf"), device=points.device, dtype=points.dtype)
        chosen = []
        for _ in range(count):
            chosen.append(start + index)
            distance = torch.minimum(distance, (group - group[index]).square().sum(-1))
            index = int(distance.argmax())
        taken.extend(chosen)
    return torch.tensor(taken, device=points.device, dtype=torch.int64)
