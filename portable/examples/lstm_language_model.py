"""An LSTM learns to predict the next character. Its state stays on the device from one call to the next.

Shows: buffers that forward() changes in place, two micro-batches in a row through the same state, saving weights and
optimizer state and going on from them.
"""

from __future__ import annotations

import io

import torch
import torch.nn.functional as F

import poptorch

TEXT = "the quick brown fox jumps over the lazy dog. pack my box with five dozen liquor jugs. " * 80
LETTERS = sorted(set(TEXT))
ROWS, LENGTH, HIDDEN, STEPS = 8, 12, 48, 20


class LanguageModel(torch.nn.Module):
    """Characters (B, T) and those that follow -> logits (B, T, V), loss. Goes on from the state it was left in."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(len(LETTERS), 16)
        self.lstm = torch.nn.LSTM(16, HIDDEN, batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, len(LETTERS))
        self.register_buffer("hidden", torch.zeros(1, ROWS, HIDDEN))
        self.register_buffer("cell", torch.zeros(1, ROWS, HIDDEN))

    def forward(self, letters: torch.Tensor, following: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Clones: what the backward pass needs must not change below.
        found, (hidden, cell) = self.lstm(self.embedding(letters), (self.hidden.clone(), self.cell.clone()))
        self.hidden.copy_(hidden.detach())
        self.cell.copy_(cell.detach())
        logits = self.head(found)
        return logits, F.cross_entropy(logits.flatten(0, 1), following.flatten())


def make_model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel()


def make_options() -> poptorch.Options:
    return poptorch.Options().deviceIterations(2).outputMode(poptorch.OutputMode.All)


def parts() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The calls' inputs, (16, 12) each: the text in 8 rows, of which a call takes the next two times 12 characters."""
    ids = torch.tensor([LETTERS.index(letter) for letter in TEXT])
    rows = ids[: ROWS * (len(ids) // ROWS)].reshape(ROWS, -1)
    windows = rows[:, : 2 * STEPS * LENGTH + 1].unfold(1, LENGTH + 1, LENGTH)  # (8, 40, 13)
    calls = windows.transpose(0, 1).reshape(STEPS, 2 * ROWS, LENGTH + 1)
    return [(call[:, :-1].contiguous(), call[:, 1:].contiguous()) for call in calls]


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return poptorch.optim.RMSprop(model.parameters(), lr=5e-3)


def train(model: LanguageModel) -> list[float]:
    """The losses of the 40 optimizer steps of 20 calls. After half of them everything is saved and loaded."""
    losses = []
    optimizer = make_optimizer(model)
    executor = poptorch.trainingModel(model, make_options(), optimizer)
    for number, inputs in enumerate(parts()):
        if number == STEPS // 2:
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            executor.destroy()
            file.seek(0)
            saved = torch.load(file)
            model.load_state_dict(saved["model"])
            optimizer = make_optimizer(model)
            optimizer.load_state_dict(saved["optimizer"])
            executor = poptorch.trainingModel(model, make_options(), optimizer)
        losses += executor(*inputs)[1].tolist()
    return losses


def main() -> None:
    losses = train(make_model())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
