"""Random programs of a few operations: micro-batches as one give the losses, outputs and gradients of each alone."""

from __future__ import annotations

import os
from unittest import mock

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Body, make_options

import poptorch
from poptorch.engine.as_one.number import VARIABLE

WIDTH = 4


def in_place(m, x):
    made = x * 1
    made[:, :2] *= 2
    made.select(1, 3).add_(m.bias[0])
    return made.clamp_(max=5)


def rows_of_a_table(m, x):
    return F.embedding((x.abs() * 7).long() % WIDTH, m.weight).mean(-1)


def attention(m, x):
    heads = F.linear(x, m.weight).view(1, -1, 2, WIDTH // 2).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(x.shape)


def convolved(m, x):
    return F.conv1d(x.unsqueeze(1), m.weight[:1, :3].unsqueeze(0), padding=1).squeeze(1)


# Each takes and gives (rows, WIDTH).
OPERATIONS = {
    "linear": lambda m, x: F.linear(x, m.weight, m.bias),
    "product": lambda m, x: x @ m.weight,
    "own product": lambda m, x: torch.softmax(x @ x.t(), -1) @ x,
    "einsum": lambda m, x: torch.einsum("ij,jk->ik", x, m.weight),
    "norm": lambda m, x: F.layer_norm(x, (WIDTH,), m.bias),
    "gelu": lambda m, x: F.gelu(x, approximate="tanh"),
    "softmax of columns": lambda m, x: torch.softmax(x, 0),
    "scaled by a scalar": lambda m, x: x * x.mean() + x.sum().tanh() * m.bias,
    "mean of rows": lambda m, x: x - x.mean(0, keepdim=True),
    "spread": lambda m, x: x / (1 + x.std(dim=-1, keepdim=True)),
    "largest": lambda m, x: x.max(dim=1, keepdim=True).values + x,
    "sorted": lambda m, x: x.sort(dim=0).values,
    "best": lambda m, x: torch.cat([x.topk(2, dim=-1).values, x[:, 2:]], -1),
    "moved": lambda m, x: x.t().reshape(-1, WIDTH).roll(1, 0).view(x.shape),
    "flattened": lambda m, x: x.flatten().cumsum(0).view(x.shape),
    "split": lambda m, x: torch.cat([part * (1 + index) for index, part in enumerate(x.split(2, 1))], 1),
    "where": lambda m, x: torch.where(x > m.bias, x, 0.5 * x),
    "expanded": lambda m, x: x[:1].expand_as(x) + m.bias.expand_as(x),
    "types": lambda m, x: x + (x > 0).to(torch.int32) + torch.arange(WIDTH),
    "no gradient": lambda m, x: x * torch.tanh(x).detach(),
    "filled": lambda m, x: x.masked_fill(x < -1, -1.0) + torch.zeros_like(x),
    "gathered": lambda m, x: x.gather(1, (x > 0).long()),
    "scattered": lambda m, x: torch.zeros_like(x).scatter_add(1, (x > 0).long(), x),
    "dropout": lambda m, x: F.dropout(x, 0.3),
    "noise": lambda m, x: x + 0.1 * torch.randn_like(x) + 0.1 * torch.rand(WIDTH),
    "in place": in_place,
    "table": rows_of_a_table,
    "attention": attention,
    "convolved": convolved,
}  # fmt: skip
LOSSES = {
    "mean": lambda m, x, y: (x**2).mean(),
    "sum": lambda m, x, y: torch.tanh(x).sum(),
    "classes": lambda m, x, y: F.cross_entropy(x, y, ignore_index=0),
    "classes, summed": lambda m, x, y: F.cross_entropy(x, y, ignore_index=0, reduction="sum") / 3,
    "weighted": lambda m, x, y: F.cross_entropy(x, y) * (1 + y.sum()),
    "likelihood": lambda m, x, y: F.nll_loss(F.log_softmax(x, -1), y),
    "absolute": lambda m, x, y: F.l1_loss(x, y.unsqueeze(-1).float().expand_as(x)),
}


def run(names, loss, asked, inputs, **counts):
    """(outputs, parameters after a step of SGD with rate 1, micro-batches run as one)."""

    def forward(m, x, y):
        for name in names:
            x = OPERATIONS[name](m, x).reshape(x.shape[0], -1)
            x = x if x.shape[1] == WIDTH else x[:, :1].expand(-1, WIDTH)
        return x, poptorch.identity_loss(LOSSES[loss](m, x, y), "none")

    torch.manual_seed(0)
    model = Body(
        forward, weight=torch.nn.Parameter(torch.randn(WIDTH, WIDTH) / 2), bias=torch.nn.Parameter(torch.randn(WIDTH))
    )
    options = make_options(mode=poptorch.OutputMode.All, **counts).randomSeed(5)
    with mock.patch.dict(os.environ, {VARIABLE: asked}):
        executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=1.0))
        outputs = executor(*(each.clone() for each in inputs))
    return outputs, model.state_dict(), executor._session.runner.as_one


@settings(max_examples=15, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=4),
    loss=st.sampled_from(sorted(LOSSES)),
    accumulation=st.integers(2, 4),
    replicas=st.integers(1, 2),
    rows=st.integers(1, 3),
)
def test_any_program_gives_the_same(names, loss, accumulation, replicas, rows):
    generator = torch.Generator().manual_seed(2)
    total = rows * accumulation * replicas
    inputs = torch.randn(total, WIDTH, generator=generator), torch.randint(1, WIDTH, (total,), generator=generator)
    counts = {"accumulation": accumulation, "replicas": replicas}
    alone, together = run(names, loss, "1", inputs, **counts), run(names, loss, "", inputs, **counts)
    for one, several in zip(alone[:2], together[:2], strict=True):
        torch.testing.assert_close(one, several, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert together[2].number == accumulation * replicas, together[2].reason
