"""The training objective: GPT-2 with its loss, as one module for PopTorch."""

from __future__ import annotations

import poptorch
import torch.nn.functional as F
from torch import Tensor, nn

from model.documents import document_numbers
from model.gpt2 import GPT2LMHeadModel
from model.placement import remap_logits

IGNORED = -100  # label of a position without a target


class PretrainingModel(nn.Module):
    """GPT-2 that returns (loss, accuracy) of next-token prediction.

    Args:
        gpt2: the language model.
        serialized_seq_len: compute logits and loss in blocks of that many positions; None: all at once. The
            (B, T, V) logits then never exist as a whole.
        remap: pass the logits through the custom op RemapCE.
        end_id: the token that ends a document. Given, the documents of a sample are isolated: no token attends to
            another document's, positions start again at each, and the first token of a document is no label.
    """

    def __init__(
        self,
        gpt2: GPT2LMHeadModel,
        serialized_seq_len: int | None = None,
        remap: bool = False,
        end_id: int | None = None,
    ) -> None:
        super().__init__()
        self.gpt2 = gpt2
        self.serialized_seq_len = serialized_seq_len
        self.remap = remap
        self.end_id = end_id

    def forward(self, input_ids: Tensor, labels: Tensor, label_counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy in nats a token and the share of tokens predicted right, over labels that are not -100.

        An executor averages gradients over the micro-batches of a weight update, and the program averages what is
        returned over those of a call. Both are means over all labels, as if the update were one batch, if each
        micro-batch divides its sums by the labels that a micro-batch has on average. PopTorch differentiates the
        marked loss and not what is made of it afterwards, so that the two may differ.

        Args:
            input_ids, labels: (B, T) integers; a label is the token that follows its position.
            label_counts: (1, 2) float32, the labels that a micro-batch has on average in this weight update and in
                this call. None: those of this micro-batch, which then is the whole batch.
        """
        documents = None if self.end_id is None else document_numbers(input_ids, self.end_id)
        hidden = self.gpt2.transformer(input_ids, documents=documents)  # (B, T, C)
        labels = self.counted(input_ids, labels)
        length = input_ids.shape[1]
        step = self.serialized_seq_len or length
        parts = [self._part(hidden, labels, slice(start, start + step)) for start in range(0, length, step)]
        losses, corrects = zip(*parts)
        loss, correct = sum(losses[1:], losses[0]), sum(corrects[1:], corrects[0])
        if label_counts is None:
            # A micro-batch may be all padding: its loss is then 0 and not 0 / 0.
            count = (labels != IGNORED).float().sum().clamp(min=1.0)
            return poptorch.identity_loss(loss / count, reduction="none"), correct / count
        of_update, of_call = label_counts[0, 0], label_counts[0, 1]
        # Where all micro-batches have equally many labels the last factor is exactly 1.
        loss = poptorch.identity_loss(loss / of_update, reduction="none") * (of_update / of_call)
        return loss, correct / of_call

    def counted(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The labels (B, T) that make up the loss, the others -100.

        None crosses from one document to the next, and none is the token that pads.
        """
        if self.end_id is not None:
            labels = labels.masked_fill(input_ids == self.end_id, IGNORED)
        padding_id = self.gpt2.config.padding_id
        return labels if padding_id is None else labels.masked_fill(labels == padding_id, IGNORED)

    def _part(self, hidden: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Summed loss and number of right predictions at these positions: two scalars in float32."""
        logits = self.gpt2.lm_head(hidden[:, part])  # (B, t, V)
        if self.remap:
            logits = remap_logits(logits)
        target = labels[:, part].reshape(-1).long()  # after the head, so that labels go to its IPU and to no other
        rows = logits.reshape(target.shape[0], -1)
        # Half logits are summed up as float32: exp and sum over 50,272 entries need the range.
        loss = F.cross_entropy(rows.float(), target, ignore_index=IGNORED, reduction="sum")
        correct = (rows.argmax(dim=-1) == target).float().sum()
        return loss, correct
