"""What the flags of several benchmarks have in common."""

from __future__ import annotations

import argparse
from typing import Iterable


def below_one(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """What is wrong with those of the named whole numbers that are not at least 1: a line each."""
    return [f"--{name} must be at least 1" for name in names if getattr(args, name) < 1]
