"""Two processes with a GPU each, over NCCL: the numbers of one process that has one. `make test-gpu` runs it."""

from __future__ import annotations

import pytest
import test_pipelines
import test_replicas
import torch
from launch import together

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2,
        reason="torch sees fewer than two CUDA devices: it takes two NVIDIA GPUs and torch's CUDA build",
    ),
]


@pytest.mark.parametrize("name", ["adamw", "adamw, sharded", "clipped", "dropout"])
def test_whole_replicas(name):
    (one,), two = (together(processes, test_replicas.trained, [name]) for processes in (1, 2))
    losses, weights, *_ = one[name]
    torch.testing.assert_close(torch.cat([each[name][0] for each in two], dim=-1), losses, rtol=1e-4, atol=1e-6)
    for each in two:
        torch.testing.assert_close(each[name][1], weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "recomputed", "weight of two processes"])
def test_a_pipeline(name):
    (one,), two = (together(processes, test_pipelines.trained, 1, [name]) for processes in (1, 2))
    losses, predictions, weights, *_ = one[name]
    for each in two:
        torch.testing.assert_close(each[name][:2], (losses, predictions), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(two[0][name][2]), dict(weights), rtol=1e-4, atol=1e-5)
