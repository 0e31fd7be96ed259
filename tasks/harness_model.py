"""A scorer as a model of lm-evaluation-harness."""

from __future__ import annotations

from typing import Any, NoReturn, Sequence

import numpy as np
from lm_eval.api.model import LM

from model.ranks import combine
from model.scoring import Item, ItemScorer, Scores
from tasks.lambada import item_of, score_bucketed
from tasks.windows import RollingWindows
from tokenizer import Tokenizer

_SHOWN = 160  # characters of a text in an error


class HarnessModel(LM):
    """A scorer as a model of the harness: log-likelihoods. Text generation is refused.

    Where the harness's own model (lm_eval 0.4.13) has no log-likelihood but an error, so has this one: a choice of
    which nothing is scored would have the best score that there is, and win.

    Args:
        scorer: a Scorer of a checkpoint (model/scoring.py), or the LogitsScorer of a PopTorch model that is running.
        tokenizer: of the checkpoint; a context that is empty becomes <|endoftext|>.
    """

    def __init__(self, scorer: ItemScorer, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._scorer, self._tokenizer = scorer, tokenizer
        self._window = scorer.window

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether it is the greedy one) of each continuation after its context.

        Raises:
            ValueError: with both texts, for a continuation of no token or of more than the window, and for a context
                of white space alone, before anything is scored.
            NonFiniteError: if the model's outputs are not finite.
        """
        items = [self._item(*request.args) for request in requests]
        found = self._checked(items, combine(score_bucketed(self._scorer, items)))
        losses = found.losses.sum(axis=1, dtype=np.float64)
        return [(-float(loss), bool(hits[:count].all())) for loss, hits, count in zip(losses, found.hits, found.counts)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-likelihood in nats of each whole text, after <|endoftext|>, in windows that share no target.

        Raises NonFiniteError if the model's outputs are not finite.
        """
        texts = [self._tokenizer.encode(request.args[0]) for request in requests]
        cuts = [RollingWindows([text], self._window, self._tokenizer.eot_id) for text in texts]
        length = max(cut.length for cut in cuts)
        items = [item for cut in cuts for item in cut]
        found = self._checked(items, combine(self._scorer.score(items, length, None)))
        losses = found.losses.sum(axis=1, dtype=np.float64)
        ends = np.cumsum([len(cut) for cut in cuts])
        return [-float(part.sum()) for part in np.split(losses, ends[:-1])]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Refused: ValueError."""
        raise ValueError("tasks that generate text are not available; choose tasks of log-likelihoods")

    def _checked(self, items: Sequence[Item], found: Scores) -> Scores:
        number = found.first_non_finite()
        if number is not None:
            raise self._scorer.non_finite(items[number])
        return found

    def _item(self, context: str, continuation: str) -> Item:
        """The harness's rule: white space at the end of the context belongs to the continuation."""
        if not context:
            before, target = [self._tokenizer.eot_id], list(self._tokenizer.encode(continuation))
            if not target:
                _refuse("the continuation is empty: nothing is scored", context, continuation)
        else:
            kept = context.rstrip()
            if not kept:
                _refuse("the context is white space alone, which belongs to the continuation", context, continuation)
            whole = list(self._tokenizer.encode(context + continuation))
            before = list(self._tokenizer.encode(kept))
            target = whole[len(before) :]
            if not target:
                _refuse(
                    "the continuation merges into the last token of the context, so that nothing of it is scored; "
                    "begin it with a space, or end the context in one",
                    context,
                    continuation,
                )
        if len(target) > self._window:
            over = f"the continuation has {len(target):,} tokens, more than the {self._window:,} that the model sees"
            _refuse(over, context, continuation)
        return item_of(before, target, self._window)


def _refuse(why: str, context: str, continuation: str) -> NoReturn:
    raise ValueError(f"{why}. Context: {_shown(context)}, continuation: {_shown(continuation)}")


def _shown(text: str) -> str:
    """The text in quotes, of a long one the end."""
    return repr(text) if len(text) <= _SHOWN else "…" + repr(text[-_SHOWN:])
