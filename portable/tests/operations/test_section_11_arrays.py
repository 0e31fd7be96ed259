"""Dynamic slices, decoding, point clouds (section 11)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from programs import gradient_of, infer

import poptorch

# -- dynamic_slice, dynamic_update


@pytest.mark.parametrize(
    "dim, start, size, step", [(0, 1, 3, 1), (1, 0, 4, 2), (1, 2, 3, 2), (0, -2, 2, 1), (-1, 1, 1, 1)]
)
def test_dynamic_slice_equals_indexing(dim, start, size, step):
    x = torch.arange(30.0).reshape(5, 6)
    index = [slice(None)] * 2
    first = start % x.shape[dim]
    index[dim] = slice(first, first + size, step)

    def forward(m, x, start):
        return poptorch.dynamic_slice(x, dim, start, size, step)

    assert torch.equal(infer(forward, x, torch.tensor([start], dtype=torch.int32)), x[tuple(index)])
    assert torch.equal(poptorch.dynamic_slice(x, dim, torch.tensor(start), size, step), x[tuple(index)])


def test_dynamic_slice_passes_its_gradient_on():
    def forward(m, start):
        return poptorch.identity_loss(poptorch.dynamic_slice(m.w, 0, start, 2, 1), "sum")

    found = gradient_of(forward, torch.tensor([1], dtype=torch.int32), w=torch.nn.Parameter(torch.zeros(4)))
    assert found["w"].tolist() == [0, 1, 1, 0]


def test_dynamic_update_writes_a_copy():
    def forward(m, x, src, start):
        return poptorch.dynamic_update(x, src, 1, start, 2), x * 1

    x, src = torch.zeros(2, 5), torch.ones(2, 2)
    out, same = infer(forward, x, src, torch.tensor([3], dtype=torch.int32))
    assert out[:, 3:].eq(1).all() and out.sum() == 4 and same.sum() == 0


@pytest.mark.parametrize(
    "start, size, step",
    [(torch.tensor(1.0), 1, 1), (torch.tensor([1, 2]), 1, 1), (torch.tensor(0), 9, 1), (torch.tensor(0), 1, 0)],
)
def test_dynamic_slice_checks_its_arguments(start, size, step):
    with pytest.raises(poptorch.Error, match="dynamic_slice: (start|size|step) must be"):
        poptorch.dynamic_slice(torch.zeros(4), 0, start, size, step)
    with pytest.raises(poptorch.Error, match="dynamic_slice: (start|size|step) must be"):
        infer(lambda m, x, start: poptorch.dynamic_slice(x, 0, start, size, step), torch.zeros(4), start)


@pytest.mark.parametrize("dim", [1, -2, None])
def test_dynamic_slice_and_update_along_no_dimension(dim):
    zeros, start = torch.zeros(4), torch.tensor(0)
    with pytest.raises(poptorch.Error, match=f"dynamic_slice: dim must be one of the tensor's 1 dimensions, got {dim}"):
        poptorch.dynamic_slice(zeros, dim, start, 1, 1)
    with pytest.raises(poptorch.Error, match="dynamic_update: dim must be"):
        poptorch.dynamic_update(zeros, zeros, dim, start, 1)


@pytest.mark.parametrize(
    "src, text",
    [
        (torch.ones(1, 3, dtype=torch.int32), "float32 but src is torch.int32"),
        (torch.ones(1, 3), r"src must have the shape \[2, 3\].*got \[1, 3\]"),
        (torch.ones(2, 4), r"src must have the shape \[2, 3\].*got \[2, 4\]"),
        (torch.ones(2), r"src must have the shape \[2, 3\].*got \[2\]"),
        (1.0, "needs a tensor, not <class 'float'>"),
    ],
)
def test_dynamic_update_checks_its_arguments(src, text):
    with pytest.raises(poptorch.Error, match=text):
        poptorch.dynamic_update(torch.zeros(4, 3), src, 0, torch.tensor(0), 2)


# -- ctc_beam_search_decoder


def exhaustive_paths(log_probs, blank):
    """{labels: log-probability}, by adding up every alignment. `log_probs` is (T, C)."""
    found = {}
    steps, classes = log_probs.shape
    for alignment in itertools.product(range(classes), repeat=steps):
        labels = tuple(label for label, _ in itertools.groupby(alignment) if label != blank)
        score = sum(log_probs[t, label].item() for t, label in enumerate(alignment))
        found[labels] = found.get(labels, 0.0) + math.exp(score)
    return sorted(((math.log(p), labels) for labels, p in found.items()), reverse=True)


@pytest.mark.parametrize("blank", [0, 2])
def test_beam_search_equals_exhaustive_search(blank):
    log_probs = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    lengths = torch.tensor([4, 3], dtype=torch.int32)

    def forward(m, probs, lengths):
        return poptorch.ctc_beam_search_decoder(probs.transpose(0, 1), lengths, blank, beam_width=100, top_paths=3)

    scores, sizes, labels = infer(forward, log_probs.transpose(0, 1), lengths)
    assert sizes.dtype == labels.dtype == torch.int32 and labels.shape == (2, 3, 4)
    for n, length in enumerate(lengths.tolist()):
        for p, (score, path) in enumerate(exhaustive_paths(log_probs[:length, n].double(), blank)[:3]):
            assert tuple(labels[n, p, : sizes[n, p]].tolist()) == path
            assert scores[n, p].item() == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("arguments", [dict(blank=5), dict(top_paths=0), dict(beam_width=1, top_paths=2)])
def test_beam_search_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match="ctc_beam_search_decoder"):
        poptorch.ctc_beam_search_decoder(torch.zeros(2, 1, 3), torch.tensor([2]), **arguments)


# -- fps, nearest


def test_farthest_points_by_hand():
    points = torch.tensor([[0.0], [1.0], [10.0], [4.0], [0.0], [3.0]])
    out = infer(lambda m, x: poptorch.fps(x, [0, 4, 6], ratio=0.75), points)
    assert out.tolist() == [0, 2, 3, 4, 5] and out.dtype == torch.int32
    assert poptorch.fps(points, [0, 4, 6], ratio=0.75).tolist() == [0, 2, 3, 4, 5]


def test_farthest_points_from_a_random_start():
    points = torch.randn(8, 3)
    starts = {
        infer(lambda m, x: poptorch.fps(x, [0, 8], 0.1, True), points, options=seeded(s)).item() for s in range(8)
    }
    assert len(starts) > 1


def seeded(seed):
    return poptorch.Options().randomSeed(seed)


@pytest.mark.parametrize("ptr, ratio", [([0, 3], 0.5), ([0, 2, 1, 4], 0.5), ([0, 4], 0.0), ([4], 0.5)])
def test_farthest_points_checks_its_arguments(ptr, ratio):
    with pytest.raises(ValueError, match="fps"):
        poptorch.fps(torch.zeros(4, 2), ptr, ratio)


def test_nearest_with_and_without_batches():
    x = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    y = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert infer(lambda m, x, y: poptorch.nearest(x, y), x, y).tolist() == [0, 0, 1, 1]
    batches = [torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1])]
    assert infer(lambda m, x, y, a, b: poptorch.nearest(x, y.flip(0), a, b), x, y, *batches).tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="both"):
        poptorch.nearest(x, y, [0, 0, 0, 0])
