"""Whether words are flags of train_gpt2.py with values it can read: asked by the recipes of run/ before they make data.

    python -m command_line.further_flags run/gpt_star.sh --epochs 3

What flags have to satisfy together, and with the files that they name, train_gpt2.py says itself.
"""

from __future__ import annotations

import sys
from typing import Sequence

from command_line.flags import BOOLEAN, TEXT, Flag
from command_line.parser import Parser
from command_line.training_flags import TRAIN_GROUPS

# Of the scripts themselves: a misspelt one may mean them.
RECIPE = (Flag("--sample", False, BOOLEAN, "a small model"), Flag("--row", None, TEXT, "which of the published rows"))


def main(argv: Sequence[str]) -> int:
    """argv: the name of the script, then the words. Ends the program with status 2 if one of them is wrong."""
    program, *words = argv
    Parser(program, "", {**TRAIN_GROUPS, "recipe": RECIPE}).read(words).finish()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
