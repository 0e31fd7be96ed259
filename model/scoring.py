"""How well GPT-2 predicts given tokens: their negative log-likelihoods, and whether each was its first choice.

One PopTorch module for evaluation, validation while training, and the harness adapter, and a `Scorer` that feeds it.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple, Sequence

import numpy as np
import poptorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.documents import document_numbers
from model.gpt2 import GPT2LMHeadModel
from model.non_finite import NonFiniteError, first_non_finite_layer, non_finite_error
from model.pretraining import IGNORED

# Rows of logits that exist at once in a micro-batch: 256 x 50,272 x 4 bytes = 51 MB. Fewer make the product slower.
_LOGIT_ROWS = 256


class ScoringModel(nn.Module):
    """GPT-2 that scores target tokens. The head runs for the wanted positions alone, a block of them at a time.

    Args:
        gpt2: the language model; its placement and serialisation hooks stay in force.
        end_id: the token that ends a document, where the documents of a row are isolated (model/documents.py). None:
            a row is one text.
    """

    def __init__(self, gpt2: GPT2LMHeadModel, end_id: int | None = None) -> None:
        super().__init__()
        self.gpt2, self.end_id = gpt2, end_id

    def forward(self, input_ids: Tensor, targets: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score `targets`, the tokens that follow the inputs at `positions`.

        Args:
            input_ids: (B, T) integers.
            targets: (B, P) token ids; -100: nothing is scored here.
            positions: (B, P) indices below T. None: every one of them in order, P = T.

        Returns:
            Negative log-likelihoods in nats, (B, P) float32, 0 where nothing is scored; and 1 where the target is the
            likeliest token, (B, P) int32.
        """
        documents = None if self.end_id is None else document_numbers(input_ids, self.end_id)
        wanted = None if positions is None else positions.long()
        hidden = self.gpt2.transformer(input_ids, wanted=wanted, documents=documents)  # (B, P, C)
        step = max(1, _LOGIT_ROWS // targets.shape[0])
        blocks = [slice(start, start + step) for start in range(0, targets.shape[1], step)]
        losses, hits = zip(*(self._block(hidden[:, block], targets[:, block]) for block in blocks))
        return torch.cat(losses, dim=1), torch.cat(hits, dim=1)

    def _block(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(B, t, C), (B, t) -> (B, t), (B, t)"""
        return token_scores(self.gpt2.lm_head(hidden), targets)


def token_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(B, P, V), (B, P) -> losses (B, P) float32, 0 where the target is -100; hits (B, P) int32."""
    target = targets.flatten().long()
    logits = logits.flatten(0, 1)  # (B P, V)
    # Half logits are summed up as float32: exp and sum over 50,272 entries need the range.
    loss = F.cross_entropy(logits.float(), target, ignore_index=IGNORED, reduction="none")
    hits = (logits.argmax(dim=-1) == target).int()  # -100 is nobody's argmax
    return loss.view_as(targets), hits.view_as(targets)


class Item(NamedTuple):
    """Something to score: inputs, and the tokens that shall follow some of them."""

    ids: np.ndarray  # (n,) input ids
    positions: np.ndarray  # (p,) indices below n
    targets: np.ndarray  # (p,) the token after each of these inputs


class Scores(NamedTuple):
    """What was found for `n` items of up to P targets each, in their order. An item's targets stand at the front."""

    losses: np.ndarray  # (n, P) float32, nats; 0 where there is no target
    hits: np.ndarray  # (n, P) bool
    counts: np.ndarray  # (n,) targets that were scored; 0 for an item that was not reached

    @classmethod
    def empty(cls, items: int, width: int) -> Scores:
        """Nothing scored yet."""
        return cls(np.zeros((items, width), np.float32), np.zeros((items, width), bool), np.zeros(items, np.int64))

    def total(self) -> tuple[float, int]:
        """Summed loss and number of scored targets."""
        return float(self.losses.sum(dtype=np.float64)), int(self.counts.sum())

    def first_non_finite(self) -> int | None:
        """The first item with a loss that is NaN or infinite; None: all losses are finite."""
        bad = np.flatnonzero(~np.isfinite(self.losses).all(axis=1))
        return int(bad[0]) if len(bad) else None


def perplexity(loss: float) -> float:
    """exp of a mean loss in nats; infinite where a double cannot hold it, NaN for NaN."""
    return math.inf if loss > 700.0 else math.exp(loss)


Stop = Callable[[int], bool]


def go_on(done: int) -> bool:
    """A `stop` that never ends the work."""
    return False


class ItemScorer:
    """Feeds items to a model in batches of one shape. Whatever the batch, every item is scored once.

    The last batch is filled up with rows that have no target. A subclass says how a batch is run.

    Args:
        window: inputs that the model can see at most.
        part: (i, n): of the batches, those with number i modulo n are this process's; it leaves the others out.
        reads: False for a process that holds a replica together with others and is not the first of them: a call takes
            the first one's inputs. It makes as many calls, reads no item and finds nothing.
    """

    def __init__(self, window: int, part: tuple[int, int] = (0, 1), reads: bool = True) -> None:
        self.window, self._part, self._reads = window, part, reads

    def score(self, items: Sequence[Item], length: int, width: int | None, stop: Stop = go_on) -> Scores:
        """Score `items` of up to `length` inputs and `width` targets; None: as many as inputs, where most are scored.

        `stop` is told after each call how many items were dealt with and ends the work by returning True.

        Raises ValueError if an item, or the model, is too small.
        """
        if length > self.window:
            raise ValueError(
                f"a window of {length} tokens, but the model sees {self.window}; use --seq-length {self.window} or less"
            )
        rows = self._prepare(length, width)
        found = Scores.empty(len(items), width or length)
        index, count = self._part
        starts = range(index * rows, len(items), count * rows)
        for number, start in enumerate(starts, start=1):
            batch = items[start : start + rows] if self._reads else []
            losses, hits = self._run(batch, rows, length, width)
            for row, item in enumerate(batch):
                targets = len(item.targets)
                at = item.positions if width is None else slice(targets)
                found.losses[start + row, :targets] = losses[row].numpy()[at]
                found.hits[start + row, :targets] = hits[row].numpy()[at] != 0
                found.counts[start + row] = targets
            if stop(min(len(items), number * count * rows)):
                break
        return found

    def non_finite(self, item: Item) -> NonFiniteError:
        """The error that says that the model's outputs for `item` are not finite, and where that began."""
        hint = "HINT: look at the model's weights and at what its precision can hold"
        return NonFiniteError(f"the model's outputs are not finite\n{hint}")

    def _prepare(self, length: int, width: int | None) -> int:
        """Make ready for batches of this shape; how many rows they have."""
        raise NotImplementedError

    def _run(self, items: Sequence[Item], rows: int, length: int, width: int | None) -> tuple[Tensor, Tensor]:
        """Losses and hits of a batch, (rows, width) each: at the front of a row, or if None at the targets' places."""
        raise NotImplementedError


class Scorer(ItemScorer):
    """Scores with a GPT-2 on the device. One program is there at a time: a new shape takes the place of the last one.

    Args:
        gpt2: the placed model, in the precision to compute in.
        make_options: gives the options of a forward-only model, anew for each program.
        batch_size: rows of a micro-batch.
        part, reads: as for ItemScorer.
        end_id: as for ScoringModel.

    Dropout is off whatever mode the model is in: PopTorch's forward-only programs have none.
    """

    def __init__(
        self,
        gpt2: GPT2LMHeadModel,
        make_options: Callable[[], poptorch.Options],
        batch_size: int,
        part: tuple[int, int] = (0, 1),
        end_id: int | None = None,
        reads: bool = True,
    ) -> None:
        super().__init__(gpt2.config.n_positions, part, reads)
        self._model = ScoringModel(gpt2, end_id)
        self._make_options, self._batch_size = make_options, batch_size
        self._executor: poptorch.PoplarExecutor | None = None
        self._shape: tuple[int, int | None] | None = None
        self._rows = 0

    def _prepare(self, length: int, width: int | None) -> int:
        if self._shape == (length, width):
            return self._rows
        self.close()
        options = self._make_options()
        self._rows = self._batch_size * options.device_iterations * options.replication_factor
        self._executor = poptorch.inferenceModel(self._model, options)
        self._shape = (length, width)
        return self._rows

    def _run(self, items: Sequence[Item], rows: int, length: int, width: int | None) -> tuple[Tensor, Tensor]:
        return self._executor(*batch_of(items, rows, length, width))

    def non_finite(self, item: Item) -> NonFiniteError:
        """As ItemScorer.non_finite, with the first layer whose output is not finite."""
        gpt2 = self._model.gpt2
        precision = "float16" if gpt2.lm_head.weight.dtype == torch.float16 else "float32"
        layer = first_non_finite_layer(gpt2, item.ids, precision)
        return non_finite_error("the model's outputs are", layer, precision)

    def load_weights(self) -> None:
        """The program on the device, if there is one, gets the weights that the host has now."""
        if self._executor is not None and self._executor.isCompiled():
            self._executor.copyWeightsToDevice()

    def close(self) -> None:
        """Take the program off the device."""
        if self._executor is not None:
            self._executor.destroy()
        self._executor = self._shape = None


def batch_of(items: Sequence[Item], rows: int, length: int, width: int | None) -> list[Tensor]:
    """Inputs, targets and, unless all are scored, positions: int32, (rows, length), (rows, P), (rows, P).

    Raises ValueError for an item that is larger.
    """
    ids = np.zeros((rows, length), np.int32)  # causality keeps what is behind an item out of it
    targets = np.full((rows, width or length), IGNORED, np.int32)
    positions = np.zeros((rows, width or length), np.int32)
    for row, item in enumerate(items):
        count = len(item.positions)
        if len(item.ids) > length or count > targets.shape[1]:
            raise ValueError(
                f"an item of {len(item.ids)} inputs and {count} targets does not fit into {length} and "
                f"{targets.shape[1]}"
            )
        ids[row, : len(item.ids)] = item.ids
        positions[row, :count] = item.positions
        targets[row, item.positions if width is None else slice(count)] = item.targets
    arrays = [ids, targets] if width is None else [ids, targets, positions]
    return [torch.from_numpy(array) for array in arrays]
