"""Word-level corpora back to ordinary text: published perplexities depend on these rules and on their order."""

from __future__ import annotations

import re

# What stands around text without white space just inside, each a shortest match that holds no closing mark.
_BRACKETED = tuple(
    (re.compile(rf"{re.escape(left)}\s*([^{re.escape(right)}]*?)\s*{re.escape(right)}"), rf"{left}\1{right}")
    for left, right in ("()", "[]", "{}", '""', "''")
)


def wikitext(text: str) -> str:
    """WikiText as GPT-2 is evaluated on it by Megatron-LM and lm-evaluation-harness.

    Their rule for `' [0-9]` is left out: as it is published it never matches.
    """
    text = text.replace("s '", "s'")
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        text = text.replace(f" {mark} ", f"{mark} ")
    for pattern, replacement in _BRACKETED:
        text = pattern.sub(replacement, text)
    for spaced in ("= = = =", "= = =", "= ="):
        text = text.replace(spaced, spaced.replace(" ", ""))
    text = text.replace(" ° ", "°").replace(" \n", "\n").replace("\n ", "\n")
    return text.replace(" N ", " 1 ").replace(" 's", "'s")


def penn_treebank(text: str) -> str:
    """The Penn Treebank as Mikolov prepared it: contractions closed up, `N` for a number becomes 1."""
    for spaced, closed in ((" 's", "'s"), (" '", "'"), (" n't", "n't"), ("$ N", "$1"), ("# N", "#1"), (" N ", " 1 ")):
        text = text.replace(spaced, closed)
    return text.replace(" \n", "\n").replace("\n ", "\n")
