"""The error of data that turn out to be damaged, or of another vocabulary, while they are read."""

from __future__ import annotations


class BadData(ValueError):
    """The message names file and position.

    A loader process sends its error to the program as text, its traceback included; the message alone is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{__name__}.{type(self).__name__}: ")[2].strip())
