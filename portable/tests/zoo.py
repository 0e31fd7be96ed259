"""Small models of many kinds, with a loss at their end, and the data they take: for comparisons with plain torch.

Each entry of ZOO is (a function that makes the model, one of `(rows, generator)` that makes its inputs).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from programs import Body
from torch import nn

CLASSES = 5


def floats(*shape: int) -> Callable:
    return lambda rows, generator: torch.randn(rows, *shape, generator=generator, dtype=torch.float64)


def integers(high: int, *shape: int) -> Callable:
    return lambda rows, generator: torch.randint(0, high, (rows, *shape), generator=generator)


LABELS = integers(CLASSES)


def cross_entropy(hidden, labels):
    return F.cross_entropy(hidden, labels)


def convolutional(m, x, y):
    return cross_entropy(m.head(F.max_pool2d(F.relu(m.norm(m.conv(x))), 2).flatten(1)), y)


def recurrent(m, x, y):
    return cross_entropy(m.head(m.rnn(m.embedding(x))[0][:, -1]), y)


def pooled(m, x, y):
    return cross_entropy(m.head(m.body(x).mean(1)), y)


def attention(m, x, mask, y):
    return cross_entropy(m.head(m.body(x, x, x, key_padding_mask=mask > 1)[0].mean(1)), y)


def causal_attention(m, x, y):
    q, k, v = m.qkv(x).chunk(3, -1)
    return cross_entropy(m.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1)), y)


def cells(m, x, y):
    state = None
    for step in x.unbind(1):
        state = m.cell(step, state)
    return cross_entropy(m.head(state[0]), y)


def segmentation(m, x, y):
    return F.nll_loss(F.log_softmax(m.conv(x), 1), y, ignore_index=0)


def written_slices(m, x, y):
    h = m.head(x) * 1
    h[:, 0] = 0.1
    h[h < 0] *= 0.5
    return cross_entropy(h, y)


def scattered(m, x, index, y):
    return cross_entropy(torch.zeros(x.shape[0], CLASSES, dtype=x.dtype).scatter_add(1, index, m.head(x)), y)


def sorted_values(m, x, y):
    h = m.head(x)
    return cross_entropy(torch.cat([h.topk(3)[0], h.sort()[0][:, :2]], 1), y)


def several_losses(m, x, y):
    h = m.head(x)
    return poptorch_identity(F.cross_entropy(h, y) + 0.1 * h.square().mean(), "mean")


def poptorch_identity(x, reduction):
    import poptorch

    return poptorch.identity_loss(x, reduction)


def ctc(m, x, y):
    rows = x.shape[0]
    lengths = [torch.full((rows,), length, dtype=torch.int32) for length in (6, 2)]
    return F.ctc_loss(F.log_softmax(m.head(x), -1).transpose(0, 1), y + 1, *lengths)


def contrastive(m, a, b, y):
    return F.cosine_embedding_loss(m.head(a), m.head(b), (y % 2) * 2 - 1, margin=0.3)


def triplets(m, a, b, c):
    return F.triplet_margin_loss(m.head(a), m.head(b), m.head(c))


def labelled_many(m, x, y):
    return F.multilabel_soft_margin_loss(m.head(x), (y > 0).to(x.dtype))


def counted(m, x, y):
    return F.poisson_nll_loss(m.head(x), y)


def distances(m, x, y):
    return F.smooth_l1_loss(m.head(x), y, beta=0.5)


def divergence(m, x, y):
    return F.kl_div(F.log_softmax(m.head(x), -1), y.softmax(-1), reduction="batchmean")


def logits(m, x, y):
    return F.binary_cross_entropy_with_logits(
        m.head(x), (y > 0).to(x.dtype), pos_weight=torch.full((CLASSES,), 2.0).to(x)
    )


def tied(m, x, y):
    return cross_entropy(F.linear(m.embedding(x).mean(1), m.embedding.weight), y)


def moving_average(m, x, y):
    m.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return cross_entropy(m.head(x - m.average), y)


ZOO: dict[str, tuple[Callable, list[Callable]]] = {
    "convolutional, BatchNorm": (
        lambda: Body(
            convolutional, conv=nn.Conv2d(1, 3, 3, padding=1), norm=nn.BatchNorm2d(3), head=nn.Linear(12, CLASSES)
        ),
        [floats(1, 4, 4), LABELS],
    ),
    "LSTM": (
        lambda: Body(
            recurrent,
            embedding=nn.Embedding(9, 4),
            rnn=nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True),
            head=nn.Linear(6, CLASSES),
        ),
        [integers(9, 4), LABELS],
    ),
    "GRU": (
        lambda: Body(
            recurrent, embedding=nn.Embedding(9, 4), rnn=nn.GRU(4, 3, batch_first=True), head=nn.Linear(3, CLASSES)
        ),
        [integers(9, 4), LABELS],
    ),
    "LSTM cells": (lambda: Body(cells, cell=nn.LSTMCell(4, 3), head=nn.Linear(3, CLASSES)), [floats(3, 4), LABELS]),
    "encoder layer": (
        lambda: Body(
            pooled, body=nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), head=nn.Linear(4, CLASSES)
        ),
        [floats(3, 4), LABELS],
    ),
    "attention with a mask": (
        lambda: Body(attention, body=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, CLASSES)),
        [floats(3, 4), integers(2, 3), LABELS],
    ),
    "causal attention": (
        lambda: Body(causal_attention, qkv=nn.Linear(4, 12), head=nn.Linear(4, CLASSES)),
        [floats(3, 4), LABELS],
    ),
    "GroupNorm": (
        lambda: Body(pooled, body=nn.Sequential(nn.Conv1d(3, 4, 1), nn.GroupNorm(2, 4)), head=nn.Linear(4, CLASSES)),
        [floats(3, 4), LABELS],
    ),
    "InstanceNorm": (
        lambda: Body(
            pooled, body=nn.InstanceNorm1d(3, affine=True, track_running_stats=True), head=nn.Linear(4, CLASSES)
        ),
        [floats(3, 4), LABELS],
    ),
    "embedding bag": (
        lambda: Body(lambda m, x, y: cross_entropy(m.bag(x), y), bag=nn.EmbeddingBag(9, CLASSES)),
        [integers(9, 3), LABELS],
    ),
    "weight norm": (
        lambda: Body(
            lambda m, x, y: cross_entropy(m.head(x), y),
            head=nn.utils.parametrizations.weight_norm(nn.Linear(4, CLASSES)),
        ),
        [floats(4), LABELS],
    ),
    "upsampling": (
        lambda: Body(
            lambda m, x, y: cross_entropy(
                m.up(F.interpolate(m.down(x), scale_factor=2.0, mode="bilinear")).mean((2, 3)), y
            ),
            down=nn.Conv2d(1, 2, 2),
            up=nn.ConvTranspose2d(2, CLASSES, 2),
        ),
        [floats(1, 4, 4), LABELS],
    ),
    "segmentation": (
        lambda: Body(segmentation, conv=nn.Conv2d(1, CLASSES, 2)),
        [floats(1, 3, 3), integers(CLASSES, 2, 2)],
    ),
    "tied weights": (lambda: Body(tied, embedding=nn.Embedding(CLASSES, 4)), [integers(CLASSES, 3), LABELS]),
    "a moving average": (
        lambda: Body(moving_average, head=nn.Linear(4, CLASSES), average=torch.zeros(4)),
        [floats(4), LABELS],
    ),
    **{
        function.__name__: ((lambda function=function: Body(function, head=nn.Linear(4, CLASSES))), inputs)
        for function, inputs in [
            (written_slices, [floats(4), LABELS]),
            (scattered, [floats(4), integers(CLASSES, CLASSES), LABELS]),
            (sorted_values, [floats(4), LABELS]),
            (several_losses, [floats(4), LABELS]),
            (ctc, [floats(6, 4), integers(CLASSES - 1, 2)]),
            (contrastive, [floats(4), floats(4), LABELS]),
            (triplets, [floats(4), floats(4), floats(4)]),
            (labelled_many, [floats(4), floats(CLASSES)]),
            (counted, [floats(4), integers(4, CLASSES)]),
            (distances, [floats(4), floats(CLASSES)]),
            (divergence, [floats(4), floats(CLASSES)]),
            (logits, [floats(4), floats(CLASSES)]),
        ]
    },
}
