"""Perplexity of a GPT-2 checkpoint on WikiText-103 and other texts.

    python tasks/evaluate_wiki.py --pretrained-checkpoint DIR --valid-data data/wikitext-103/wiki.test.tokens

--help lists the flags; tasks/run_evaluate.sh fills in the usual ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # started as a script: modules are found from the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tasks.evaluation import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main("tasks/evaluate_wiki.py", "WIKITEXT103"))
