"""The protocols by which a corpus is scored: what of the text is tokenized, how it is cut, and what is computed.

A `Job` is one corpus under one protocol; running it needs a Scorer and nothing else. LAMBADA is in lambada.py.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np

from data.building import detokenizer
from model.non_finite import NonFiniteError
from model.scoring import Scores, perplexity
from tasks import texts
from tasks.names import BATCHES, FURTHER, PROTOCOLS, SLIDING
from tasks.system_protocols import Systems
from tasks.windows import DisjointWindows, RollingWindows, SlidingWindows
from tokenizer import Tokenizer

_OF_RAW = ("token-joined", "word", "token-gpt-star")  # of WikiText: computed on the raw file
_DETOKENIZED = ("adjusted", "word", "token-chunks", "token-chunks-eot", "token-lm-finetuning")
_TAIL = 5_000_000  # bytes of enwik8 and text8 that are scored: the last 5 MB


@dataclasses.dataclass
class Result:
    """What one protocol gave. Losses are in nats a token."""

    task: str
    protocol: str
    files: list[str]
    detokenizer: str
    window: int
    stride: int | None  # None: windows of whole rows
    counts: dict[str, int]  # bpe, scored, and what else the protocol counts: words, bytes, rows
    values: dict[str, float]  # measure -> value
    complete: bool  # False: cut short, the values are of the part that was scored
    subject: str  # what published figures are listed under: the task, or the published file
    trouble: NonFiniteError | None = None  # the model's outputs were not finite: where that began

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "trouble"}


class Job(NamedTuple):
    """A corpus under one protocol, ready to be scored."""

    task: str
    protocol: str
    path: Path
    detokenizer: str
    window: int
    stride: int
    counts: dict[str, int]
    cut: Any  # of windows.py
    values: Callable[[float, int], dict[str, float]]  # (summed loss, scored tokens) -> measures
    subject: str
    weights: np.ndarray | None = None  # (n,) of the items' summed losses in the mean loss; None: all tokens are equal

    def result(self, scores: Scores) -> Result:
        """The result, from the scores of all items; of those that were reached, if it was cut short."""
        loss, scored = scores.total()
        complete = scored == sum(len(item.targets) for item in self.cut)
        if self.weights is not None:
            mean = float(self.weights @ scores.losses.sum(axis=1, dtype=np.float64))
            loss = scored * (mean if complete else mean / max(1e-300, float(self.weights @ scores.counts)))
        counts = {**self.counts, "scored": scored}
        values = self.values(loss, scored) if scored else {}
        return Result(
            self.task, self.protocol, [str(self.path)], self.detokenizer, self.window, self.stride, counts, values,
            complete, self.subject,
        )  # fmt: skip


class Corpus(NamedTuple):
    """How a task reads its file."""

    detokenizer: Callable[[str], str] | None = None
    last_bytes: int | None = None


CORPORA = {
    "WIKITEXT103": Corpus(detokenizer.wikitext),
    "PTB": Corpus(detokenizer.penn_treebank),
    "ENWIK8": Corpus(last_bytes=_TAIL),
    "TEXT8": Corpus(last_bytes=_TAIL),
    "TEXT": Corpus(),
}


_MOST = 20.0  # nats; Megatron-LM's bound on what it takes the exp of


def bounded_perplexity(loss: float) -> float:
    """exp of a mean loss in nats, of _MOST if it is larger. What is not finite stays so."""
    return perplexity(_MOST if _MOST < loss < math.inf else loss)


def adjusted_values(bpe: int, words: int) -> Callable[[float, int], dict[str, float]]:
    """Perplexities a token and a word, Megatron-LM's formulas.

    The loss is divided by bpe - 1 where the whole text was scored; of a part, by the tokens of the part.
    """
    ratio = (bpe - 1) / max(1, words - 1)

    def values(loss: float, scored: int) -> dict[str, float]:
        mean = loss / scored
        return {
            "loss": mean,
            "ppl": bounded_perplexity(mean),
            "adjusted ppl": bounded_perplexity(mean * ratio),
            "token ratio": ratio,
        }

    return values


class Planner:
    """Makes the jobs of a task from its file. `window` is T, `stride` --overlapping-eval, `batch` --protocol-batch.

    `padding` is the model's padding_id, which token-tfchat does not score.

    Raises ValueError naming the file for a corpus that cannot be read or is too short.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        window: int,
        stride: int,
        mask_end: bool = False,
        batch: int | None = None,
        padding: int | None = None,
    ) -> None:
        self._batch, self._padding = batch, padding
        self.tokenizer, self.window, self.stride = tokenizer, window, min(stride, window)
        self.masked = tokenizer.eot_id if mask_end else None

    def jobs(self, task: str, path: Path, protocols: Sequence[str] | None = None) -> list[Job]:
        """The jobs of `task` on the file `path`, those in `protocols` (None: those in PROTOCOLS)."""
        chosen = [name for name in PROTOCOLS[task] + FURTHER.get(task, ()) if name in (protocols or PROTOCOLS[task])]
        return [self._job(task, name, self._file(task, name, path)) for name in chosen]

    def _file(self, task: str, protocol: str, path: Path) -> Path:
        """WikiText: the raw file beside the word-level one is what transformers' and the harness's figures are of."""
        raw = texts.as_stored(path.parent / "wiki.test.raw")
        takes_raw = protocol in _OF_RAW and texts.unpacked_name(path) == "wiki.test.tokens"
        return raw if task == "WIKITEXT103" and takes_raw and raw.is_file() else path

    def _job(self, task: str, protocol: str, path: Path) -> Job:
        corpus = CORPORA[task]
        text = texts.read_text(path, corpus.last_bytes)
        subject = texts.unpacked_name(path) if task == "WIKITEXT103" else task
        detokenize = corpus.detokenizer if protocol in _DETOKENIZED else None
        name = "none" if detokenize is None else detokenize.__name__
        of_systems = Systems(self._encode, self.window, self._batch or BATCHES.get(protocol), self.tokenizer.eot_id)
        make = {
            "token": self._token,
            "token-joined": self._joined,
            "word": self._word,
            "token-tfchat": lambda *of: of_systems.tfchat(*of, padding=self._padding),
            "token-chunks": of_systems.chunks,
            "token-chunks-eot": of_systems.chunks_after_end,
            "token-lm-finetuning": of_systems.lm_finetuning,
            "token-gpt-star": of_systems.gpt_star,
            "bits-per-byte-disjoint": of_systems.bits,
            "bits-per-character-disjoint": of_systems.bits,
            **dict.fromkeys(SLIDING, self._sliding),
        }[protocol]
        try:
            stride, counts, cut, values, *weights = make(text, detokenize, protocol)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if counts["bpe"] < 2:
            raise ValueError(f"{path}: a text of {counts['bpe']} tokens; at least 2 are needed to score one")
        return Job(task, protocol, path, name, self.window, stride, counts, cut, values, subject, *weights)

    def _encode(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer.encode(text), np.int32)

    def _token(self, text: str, detokenize: Any, protocol: str) -> tuple:
        ids = self._encode(text)
        cut = DisjointWindows(ids, self.window)
        return self.window, {"bpe": len(ids)}, cut, lambda loss, n: {"loss": loss / n, "ppl": perplexity(loss / n)}

    def _joined(self, text: str, detokenize: Any, protocol: str) -> tuple:
        return self._token(texts.joined_lines(text), None, protocol)

    def _word(self, text: str, detokenize: Callable[[str], str], protocol: str) -> tuple:
        """lm-evaluation-harness's `wikitext`: each article after <|endoftext|>; words counted on the raw article."""
        pages = texts.pages(text)
        encoded = [self._encode(detokenize(page)) for page in pages]
        words = sum(len(re.split(r"\s+", page)) for page in pages)
        bpe = sum(map(len, encoded))

        def values(loss: float, scored: int) -> dict[str, float]:
            share = scored / bpe  # 1, or the part of the words that a cut-short run may count
            return {
                "loss": loss / scored,
                "ppl": perplexity(loss / scored),
                "word ppl": perplexity(loss / (words * share)),
            }

        counts = {"bpe": bpe, "words": words, "articles": len(pages)}
        return self.window, counts, RollingWindows(encoded, self.window, self.tokenizer.eot_id), values

    def _sliding(self, text: str, detokenize: Callable[[str], str] | None, protocol: str) -> tuple:
        """Overlapping windows over the whole text: `adjusted`, and bits a byte or a character."""
        ids = self._encode(detokenize(text) if detokenize else text)
        cut = SlidingWindows(ids, self.window, self.stride, self.masked)
        words, size = texts.count_words(text), len(text.encode("utf-8"))
        counts = {"bpe": len(ids), "words": words, "bytes": size}
        per_word = adjusted_values(len(ids), words)
        unit, units = ("character", len(text)) if protocol == "bits-per-character" else ("byte", size)
        counts[f"{unit}s"] = units

        def values(loss: float, scored: int) -> dict[str, float]:
            bits = {f"bits per {unit}": loss / scored / math.log(2) * len(ids) / units}
            if protocol != "adjusted":
                return {"loss": loss / scored, "ppl": perplexity(loss / scored), **bits}
            return {**per_word(loss, scored), **(bits if detokenize is None else {})}

        return self.stride, counts, cut, values
