"""A small BERT learns to fill in masked words, as a pipeline over two IPUs.

Shows: blocks on several IPUs, gradient accumulation, keyword inputs and a dict as output, two parameter groups, a
learning rate schedule whose rates reach the device through setOptimizer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

import poptorch

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 64, 16, 32, 4, 2
MASK, IGNORED = 0, -100
STEPS, MICRO_BATCH, ACCUMULATION = 20, 4, 3


class Layer(torch.nn.Module):
    """(B, T, C) -> (B, T, C): attention over all positions that `mask` (B, T) allows, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(x).reshape(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = heads[0], heads[1], heads[2]  # (B, H, T, C / H) each
        scores = q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5
        scores = scores + (1 - mask[:, None, None, :].float()) * -1e4
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, WIDTH)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(torch.nn.Module):
    """Token ids (B, T) -> {"loss", "logits" (B, T, V)}; labels are -100 where nothing is to be predicted."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = torch.nn.Embedding(VOCABULARY, WIDTH), torch.nn.Embedding(LENGTH, WIDTH)
        torch.nn.init.normal_(self.words.weight, std=0.1)
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))
        self.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> dict:
        x = self.norm(self.words(input_ids) + self.positions(torch.arange(LENGTH)))
        for layer in self.layers:
            x = layer(x, attention_mask)
        logits = F.linear(x, self.words.weight, self.bias)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        return {"loss": poptorch.identity_loss(loss, "none"), "logits": logits}


def make_model() -> Bert:
    torch.manual_seed(0)
    model = Bert()
    poptorch.BeginBlock(model.layers[1], ipu_id=1)  # the first layer and the embedding stay on IPU 0
    return model


def make_options() -> poptorch.Options:
    options = poptorch.Options()
    options.Training.gradientAccumulation(ACCUMULATION)
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    return options


def sentences(step: int) -> dict[str, torch.Tensor]:
    """The inputs of a call: counting sequences, the last positions unused, every fourth word masked."""
    generator = torch.Generator().manual_seed(step)
    rows = MICRO_BATCH * ACCUMULATION
    start = torch.randint(1, VOCABULARY, (rows, 1), generator=generator)
    stride = torch.randint(1, 4, (rows, 1), generator=generator)
    words = (start + stride * torch.arange(LENGTH)) % (VOCABULARY - 1) + 1
    used = torch.arange(LENGTH) < torch.randint(LENGTH // 2, LENGTH + 1, (rows, 1), generator=generator)
    masked = used & (torch.rand(rows, LENGTH, generator=generator) < 0.25)
    masked[:, 1] = True  # one at least
    return {
        "input_ids": words.masked_fill(masked, MASK),
        "attention_mask": used.int(),
        "labels": words.masked_fill(~masked, IGNORED),
    }


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return poptorch.optim.AdamW(groups, lr=3e-3, loss_scaling=128.0)


def make_schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 5, 1.0))


def train(model: Bert) -> list[float]:
    """The loss of the last micro-batch of each of the 20 calls."""
    optimizer = make_optimizer(model)
    schedule = make_schedule(optimizer)
    executor = poptorch.trainingModel(model, make_options(), optimizer)
    losses = []
    for step in range(STEPS):
        losses.append(executor(**sentences(step))["loss"].item())
        schedule.step()
        executor.setOptimizer(optimizer)
    return losses


def main() -> None:
    losses = train(make_model())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
