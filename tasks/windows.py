"""How a text longer than the model's window is cut, so that every token that has a context is scored exactly once.

Each cut is a sequence of `Item`s made when they are asked for: a corpus in overlapping windows is many times its size.
T is the window in tokens. Token 0 of a text has nothing before it and is not scored, unless something is put there.
"""

from __future__ import annotations

import bisect
from typing import Sequence, overload

import numpy as np

from model.scoring import Item


class _Cut(Sequence[Item]):
    """A sequence of items by number; `length` and `width` are what a Scorer needs for them."""

    length: int  # inputs of the longest item
    width: int | None  # targets of the widest; None: about as many as inputs

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self._item(index % len(self))

    def _item(self, index: int) -> Item:
        raise NotImplementedError


class DisjointWindows(_Cut):
    """Windows of T tokens that share none. The first token of each has no context and is not scored.

    This is how transformers' guide to perplexity cuts when its stride is the window.
    """

    def __init__(self, ids: np.ndarray, window: int) -> None:
        self.ids, self.window = ids, window
        self.length, self.width = max(1, min(window, len(ids)) - 1), None
        self._count = -(-len(ids) // window)
        if len(ids) % window == 1:  # a single token is left over: there is nothing to predict it from
            self._count -= 1

    def __len__(self) -> int:
        return self._count

    def _item(self, index: int) -> Item:
        tokens = self.ids[index * self.window : (index + 1) * self.window]
        return Item(tokens[:-1], np.arange(len(tokens) - 1), tokens[1:])


class SlidingWindows(_Cut):
    """Windows of T inputs that start `stride` tokens apart; each scores what those before it have not (Megatron-LM).

    All targets of the first window are scored and the last `stride` of each other one; the last window is shorter.
    The first is dealt with in several items, so that all of them have equally few targets and share one program.

    Args:
        masked: targets that follow this id are not scored (--eod-mask-loss); None: all are.
    """

    # Targets of an item, at least: a shorter stride would score the first window in too many items.
    _LEAST_WIDTH = 32

    def __init__(self, ids: np.ndarray, window: int, stride: int, masked: int | None = None) -> None:
        if not 1 <= stride <= window:
            raise ValueError(f"a stride of {stride} for windows of {window} tokens: it must be from 1 to {window}")
        self.ids, self.window, self.stride, self.masked = ids, window, stride, masked
        targets = max(0, len(ids) - 1)
        self._later = -(-max(0, targets - window) // stride)  # windows behind the first one
        self.windows = self._later + (targets > 0)
        self.length = max(1, min(window, targets))
        width = min(self.length, max(stride, self._LEAST_WIDTH))
        self.width = None if width == self.length else width
        self._first = -(-min(targets, window) // width)  # items of the first window
        self._step = width

    def __len__(self) -> int:
        return self._first + self._later

    def _item(self, index: int) -> Item:
        if index < self._first:
            start, positions = 0, np.arange(index * self._step, min((index + 1) * self._step, self.window))
        else:
            start = (index - self._first + 1) * self.stride
            positions = np.arange(self.window - self.stride, self.window)
        tokens = self.ids[start : start + self.window + 1]
        inputs, targets = tokens[:-1], tokens[1:]
        positions = positions[positions < len(targets)]
        if self.masked is not None:
            positions = positions[inputs[positions] != self.masked]
        return Item(inputs, positions, targets[positions])


class RollingWindows(_Cut):
    """Texts one by one, each after `first`, in windows of T targets that share none (lm-evaluation-harness).

    The last window of a text is filled up on the left with tokens that were scored before.
    """

    def __init__(self, texts: Sequence[Sequence[int]], window: int, first: int) -> None:
        self._texts = [np.asarray([first, *text], np.int64) for text in texts if len(text)]
        longest = max((len(text) - 1 for text in self._texts), default=1)
        self.window, self.length, self.width = window, min(window, longest), None
        # Where the windows of each text end in the list of all windows.
        counts = [-(-(len(text) - 1) // window) for text in self._texts]
        self._ends = np.cumsum(counts).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _item(self, index: int) -> Item:
        number = bisect.bisect_right(self._ends, index)
        text = self._texts[number]
        before = self._ends[number - 1] if number else 0
        start = (index - before) * self.window
        end = min(start + self.window, len(text) - 1)
        left = max(0, end - self.window)
        return Item(text[left:end], np.arange(start - left, end - left), text[start + 1 : end + 1])


class WithoutTarget(_Cut):
    """The items of another cut, in which one token is not scored, wherever it is a target."""

    def __init__(self, cut: _Cut, token: int) -> None:
        self._cut, self._token = cut, token
        self.length, self.width = cut.length, cut.width

    def __len__(self) -> int:
        return len(self._cut)

    def _item(self, index: int) -> Item:
        item = self._cut[index]
        kept = item.targets != self._token
        return Item(item.ids, item.positions[kept], item.targets[kept])
