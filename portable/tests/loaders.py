"""What the tests of asynchronous loaders share."""

from __future__ import annotations

import time

import torch
from torch.utils.data import TensorDataset

from poptorch import SharingStrategy

FORK = {"sharing_strategy": SharingStrategy.Fork}  # starts in milliseconds


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def contents(loader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


def wait_until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
