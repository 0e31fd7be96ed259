"""Text as it can be shown while tokens come in: whole characters, and nothing that a stop string may take back."""

from __future__ import annotations

from typing import Callable, Sequence

INCOMPLETE = "\ufffd"  # what bytes become that are not, or not yet, a character


class TextStream:
    """Turns tokens into text piece by piece.

    Args:
        decode: token ids -> text; byte-level, so that texts of parts add up to the text of the whole.
        stop_strings: the text ends before the first occurrence of any of them.

    Attributes:
        text: all that is certain so far.
        stopped: whether a stop string has come; whatever follows is ignored.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop_strings: Sequence[str] = ()) -> None:
        self._decode, self._stop_strings = decode, [stop for stop in stop_strings if stop]
        self._open: list[int] = []  # tokens since the last one that ended with a whole character
        self._taken = 0  # characters of theirs that are in `text`
        self._shown = 0  # characters of `text` that were handed out
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """One more token; the text that can now be shown, often empty."""
        self._open.append(token)
        decoded = self._decode(self._open)
        whole = decoded.rstrip(INCOMPLETE)  # a character may span tokens: its end is still to come
        self._add(whole[self._taken :])
        self._taken = len(whole)
        if whole == decoded:
            self._open, self._taken = [], 0
        return self._show(self._held_back())

    def finish(self) -> str:
        """The text that was held back; what is left of a character shows as U+FFFD."""
        if self._open:
            self._add(self._decode(self._open)[self._taken :])
            self._open, self._taken = [], 0
        return self._show(0)

    def _add(self, piece: str) -> None:
        if self.stopped:
            return
        longest = max(map(len, self._stop_strings), default=0)
        begin = max(0, len(self.text) - longest)
        self.text += piece
        found = [place for place in (self.text.find(stop, begin) for stop in self._stop_strings) if place >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _held_back(self) -> int:
        """How many of the last characters could be the beginning of a stop string."""
        if self.stopped:
            return 0
        for length in range(max(map(len, self._stop_strings), default=1) - 1, 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._stop_strings if len(stop) > length):
                if len(self.text) >= length:
                    return length
        return 0

    def _show(self, held_back: int) -> str:
        end = max(self._shown, len(self.text) - held_back)
        piece, self._shown = self.text[self._shown : end], end
        return piece
