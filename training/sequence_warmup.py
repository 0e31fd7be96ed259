"""Sequence-length warm-up: a run begins with short samples, which become longer in steps.

Li et al. 2022, "The Stability-Efficiency Dilemma: Investigating Sequence Length Warmup for Training GPT Models": of a
sample the first tokens are used, the others left out.
"""

from __future__ import annotations

import argparse
from typing import Sequence


class SequenceWarmup:
    """The length of the samples of each call.

    Args:
        lengths: the lengths of the warm-up, ascending; none: there is none.
        steps: the calls at each of them.
        full: the length from then on.
    """

    def __init__(self, lengths: Sequence[int], steps: int, full: int) -> None:
        self._lengths, self._steps, self._full = list(lengths), steps, full

    @classmethod
    def of(cls, args: argparse.Namespace) -> SequenceWarmup:
        """As the flags say."""
        return cls(args.sequence_warmup or (), args.sequence_warmup_steps or 0, args.max_len)

    def length(self, call: int) -> int:
        """Tokens of a sample in call number `call`, from 0."""
        stage = call // self._steps if self._lengths else 0
        return self._lengths[stage] if stage < len(self._lengths) else self._full

    def tokens(self, calls: int) -> int:
        """Tokens that one sample a call has had after so many calls."""
        warm = [min(self._steps, max(0, calls - number * self._steps)) for number in range(len(self._lengths))]
        return sum(map(int.__mul__, warm, self._lengths)) + (calls - sum(warm)) * self._full

    def table(self, calls: int, samples_a_call: int) -> list[str]:
        """A line for each length of a run of so many calls: from which step to which, and how many tokens."""
        lines = []
        for number, length in enumerate([*self._lengths, self._full] if self._lengths else []):
            first, last = number * self._steps + 1, min(calls, (number + 1) * self._steps)
            last = calls if length == self._full else last
            if first <= last:
                tokens = (last - first + 1) * length * samples_a_call
                lines.append(f"  {length:>6,} tokens a sample: steps {first:,} to {last:,}, {tokens:,} tokens")
        return ["sequence warm-up, compiled anew for each length:", *lines] if lines else []
