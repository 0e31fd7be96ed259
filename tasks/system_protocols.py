"""How the perplexities of other published systems were computed (docs/systems.md): protocols of tfchat,
lm-finetuning (ALGPT2's author) and GPT*.

Each method has the text, its detokenizer and the protocol's name, and returns what a Job (tasks/protocols.py) needs:
stride, counts, cut, measures from (summed loss, scored tokens), and the weights of the items in the mean if they
differ.
"""

from __future__ import annotations

import math
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np

from model.scoring import perplexity
from tasks import texts
from tasks.windows import DisjointWindows, RollingWindows, SlidingWindows, WithoutTarget

Measures = Callable[[float, int], "dict[str, float]"]  # (summed loss, scored tokens) -> by name
Detokenizer = Callable[[str], str]


def _token_measures(loss: float, scored: int) -> dict[str, float]:
    return {"loss": loss / scored, "ppl": perplexity(loss / scored)}


class Systems(NamedTuple):
    """The protocols, for windows of T tokens.

    Args:
        encode: text -> (n,) token ids.
        window: T.
        batch: windows in a batch, for those protocols whose figure depends on it.
        end: the id of <|endoftext|>.
    """

    encode: Callable[[str], np.ndarray]
    window: int
    batch: int | None
    end: int

    def tfchat(self, text: str, detokenize: Any, protocol: str, padding: int | None) -> tuple:
        """Lines encoded one by one, without their ends; windows of T + 1 tokens that share one; batches filled only.

        Lines of white space have no token. What fills no window, or no batch of windows, is left out, as are targets
        that are `padding`.
        """
        lines = [self.encode(line) for line in text.split("\n") if line.strip()]
        ids = np.concatenate(lines) if lines else np.zeros(0, np.int32)
        windows = max(0, len(ids) - 1) // self.window // self.batch * self.batch
        if not windows:
            raise ValueError(
                f"its {len(ids):,} tokens fill no {self.batch} windows of {self.window:,}; lower --seq-length or "
                "--protocol-batch"
            )
        kept = SlidingWindows(ids[: windows * self.window + 1], self.window, self.window)
        cut = kept if padding is None else WithoutTarget(kept, padding)
        return self.window, {"bpe": len(ids), "windows": windows, "batch": self.batch}, cut, _token_measures

    def chunks(self, text: str, detokenize: Detokenizer | None, protocol: str) -> tuple:
        """Chunks of T - 1 tokens, the first of each not scored: what lm_finetuning means, without its padding."""
        ids = self._encoded(text, detokenize)
        cut = DisjointWindows(ids, self._chunk)
        return self._chunk, {"bpe": len(ids), "chunks": len(cut)}, cut, _per_word(ids, text)

    def chunks_after_end(self, text: str, detokenize: Detokenizer | None, protocol: str) -> tuple:
        """The same chunks, each after <|endoftext|>, so that all of their tokens are scored."""
        ids = self._encoded(text, detokenize)
        starts = range(0, len(ids), self._chunk)
        cut = RollingWindows([ids[start : start + self._chunk] for start in starts], self._chunk, self.end)
        return self._chunk, {"bpe": len(ids), "chunks": len(cut)}, cut, _per_word(ids, text)

    def lm_finetuning(self, text: str, detokenize: Detokenizer | None, protocol: str) -> tuple:
        """As published: the mean of the batches' mean losses, a shorter last chunk filled up with id 0.

        Beside longer chunks in its batch it is filled up to their length, and what fills it is scored like text.
        """
        ids = self._encoded(text, detokenize)
        chunks = -(-len(ids) // self._chunk)
        alone = chunks % self.batch == 1 or self.batch == 1
        padding = 0 if alone else chunks * self._chunk - len(ids)
        cut = DisjointWindows(np.concatenate([ids, np.zeros(padding, ids.dtype)]), self._chunk)
        counts = {"bpe": len(ids), "chunks": len(cut), "batch": self.batch, "padding": padding}
        return self._chunk, counts, cut, _per_word(ids, text), _of_batch_means(cut, self.batch)

    def gpt_star(self, text: str, detokenize: Any, protocol: str) -> tuple:
        """Windows of T tokens as token-joined has them, but a shorter last one is not run.

        In its place the loss of the window before counts once more. A window's loss is the mean over its T - 1 targets
        times T, and the sum is divided by the tokens of the text.
        """
        ids = self.encode(texts.joined_lines(text))
        whole, rest = divmod(len(ids), self.window)
        if not whole:
            raise ValueError(f"its {len(ids):,} tokens fill no window of {self.window:,}; lower --seq-length")
        cut = DisjointWindows(ids[: whole * self.window], self.window)
        weights = np.full(len(cut), self.window / (self.window - 1) / len(ids))
        if rest:
            weights[-1] *= 2
        return self.window, {"bpe": len(ids), "windows": whole}, cut, _token_measures, weights

    def bits(self, text: str, detokenize: Any, protocol: str) -> tuple:
        """Bits a byte or character, over windows of T tokens that share none: the mean loss times all tokens."""
        ids = self.encode(text)
        unit = "character" if "character" in protocol else "byte"
        units = len(text) if unit == "character" else len(text.encode("utf-8"))

        def measures(loss: float, scored: int) -> dict[str, float]:
            bits = loss / scored / math.log(2) * len(ids) / units
            return {**_token_measures(loss, scored), f"bits per {unit}": bits}

        return self.window, {"bpe": len(ids), f"{unit}s": units}, DisjointWindows(ids, self.window), measures

    @property
    def _chunk(self) -> int:
        """Tokens of a chunk of lm-finetuning: its sequences have room for one more in front."""
        if self.window < 3:
            raise ValueError(f"chunks of {self.window} - 1 tokens; raise --seq-length to 3 or more")
        return self.window - 1

    def _encoded(self, text: str, detokenize: Detokenizer | None) -> np.ndarray:
        return self.encode(detokenize(text) if detokenize else text)


def _per_word(ids: np.ndarray, text: str) -> Measures:
    """lm-finetuning's perplexities a token and a word, of the text as it was before it was detokenized."""
    ratio = (len(ids) - 1) / max(1, texts.count_words(text) - 1)

    def measures(loss: float, scored: int) -> dict[str, float]:
        adjusted = perplexity(loss / scored * ratio)
        return {**_token_measures(loss, scored), "adjusted ppl": adjusted, "token ratio": ratio}

    return measures


def _of_batch_means(cut: Sequence[Any], batch: int) -> np.ndarray:
    """(n,) weights of the items' summed losses in the mean of the means of batches."""
    targets = [len(item.targets) for item in cut]
    batches = [sum(targets[start : start + batch]) for start in range(0, len(targets), batch)]
    return np.asarray([1.0 / len(batches) / batches[number // batch] for number in range(len(targets))])
