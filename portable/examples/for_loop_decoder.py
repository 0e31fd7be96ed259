"""A decoder writes 20 tokens in one call: the loop runs on the device, the most probable token goes in again.

Shows: poptorch.for_loop with a state of several tensors, tensors made in forward(), int32 results.
"""

from __future__ import annotations

import torch

import poptorch

VOCABULARY, WIDTH, STEPS, BATCH = 40, 24, 20, 3


class Decoder(torch.nn.Module):
    """First tokens (B,) and encoded sources (B, C) -> tokens (B, 20) and the scores of the chosen ones (B, 20)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.cell = torch.nn.GRUCell(WIDTH, WIDTH)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def step(self, token: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One token (B,) -> the next one, its score, and the state after it."""
        state = self.cell(self.embedding(token), state)
        score, token = self.head(state).log_softmax(dim=-1).max(dim=-1)
        return token.int(), score, state

    def forward(self, first: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def body(number, token, state, tokens, scores):
            token, score, state = self.step(token, state)
            here = torch.arange(STEPS) == number  # (20,): one is true
            return (
                number + 1,
                token,
                state,
                torch.where(here, token[:, None], tokens),
                torch.where(here, score[:, None], scores),
            )

        number = torch.zeros(1, dtype=torch.int32)
        tokens = torch.zeros(BATCH, STEPS, dtype=torch.int32)
        scores = torch.zeros(BATCH, STEPS)
        results = poptorch.for_loop(STEPS, body, [number, first, source, tokens, scores])
        return results[3], results[4]


def make_model() -> Decoder:
    torch.manual_seed(1)
    return Decoder().eval()


def make_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(VOCABULARY, (BATCH,), generator=generator, dtype=torch.int32)
    return first, torch.randn(BATCH, WIDTH, generator=generator)


def decode(model: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int32 (3, 20) and their log probabilities (3, 20)."""
    return poptorch.inferenceModel(model, poptorch.Options())(*make_inputs())


def main() -> None:
    tokens, scores = decode(make_model())
    for line, log_probability in zip(tokens.tolist(), scores.sum(dim=1).tolist(), strict=True):
        print(f"{' '.join(map(str, line))}  (log probability {log_probability:.2f})")


if __name__ == "__main__":
    main()
