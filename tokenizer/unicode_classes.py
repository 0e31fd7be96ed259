"""Writes unicode_classes.inc: which characters are \\p{L}, \\p{N} and \\s, as the `tokenizers` library has it.

    python -m tokenizer.unicode_classes > tokenizer/unicode_classes.inc

Regular-expression libraries differ in the version of Unicode they carry. The native encoder takes the classes of the
library that serves where it is not built, so that both give the same ids; a test compares them.
"""

from __future__ import annotations

import textwrap

from tokenizers import Regex, pre_tokenizers

CLASSES = (("LETTERS", r"\p{L}+"), ("NUMBERS", r"\p{N}+"), ("SPACES", r"\s+"))


def runs(pattern: str) -> list[tuple[int, int]]:
    """First and last code point of each run of neighbours that match, surrogates (which are no characters) left out."""
    characters = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    split = pre_tokenizers.Split(Regex(pattern), "removed")  # what is left are the runs that do not match
    found, at = [], 0
    for _, (begin, end) in [*split.pre_tokenize_str("".join(map(chr, characters))), ("", (len(characters),) * 2)]:
        if begin > at:
            found.append((characters[at], characters[begin - 1]))
        at = end
    return found


def main() -> None:
    """Print the file: for each class an array of first, last, first, last, …"""
    print("// Written by `python -m tokenizer.unicode_classes`. Runs of code points: first, last, first, last, …")
    print("// clang-format off")
    for name, pattern in CLASSES:
        numbers = ", ".join(f"{number:#x}" for run in runs(pattern) for number in run)
        print(f"static const uint32_t {name}[] = {{")
        print(textwrap.fill(numbers, 118, initial_indent="  ", subsequent_indent="  "))
        print("};")


if __name__ == "__main__":
    main()
