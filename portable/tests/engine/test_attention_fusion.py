"""Causal attention in plain operators runs as torch's fused kernel, and only where that is the same."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from programs import Body
from test_recompute import LiveBytes

import poptorch
from poptorch.device import native
from poptorch.device.alibi import with_alibi
from poptorch.device.biased_attention import biased_attention
from poptorch.device.dropout_attention import causal_attention, dropout_attention
from poptorch.device.key_bias import with_key_bias
from poptorch.device.native import wide_products
from poptorch.engine.passes.attention import fuse_attention

B, H, T, D, POSITIONS = 2, 3, 8, 4, 12
LOW = -1e4
SLOPES = (0.5, 0.15, 2.0**-8)  # of ALiBi
SDPA = torch.ops.aten.scaled_dot_product_attention.default


class Attention(torch.nn.Module):
    """One projection, attention, one scalar loss. `scores_to_probabilities(module, scores[, x])` is what differs."""

    def __init__(self, scores_to_probabilities, positions: int = POSITIONS, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.project = torch.nn.Linear(H * D, 3 * H * D)
        self.dropout = torch.nn.Dropout(dropout)
        self.register_buffer("slopes", torch.tensor(SLOPES))
        self.register_buffer("mask", torch.ones(positions, positions, dtype=torch.bool).tril()[None, None])
        self.scores_to_probabilities = scores_to_probabilities
        self.asks_for_input = scores_to_probabilities.__code__.co_argcount == 3

    def forward(self, x):
        """(B, T, H D) -> context (B, H, T, D), loss"""
        length = x.shape[1]
        q, k, v = (part.view(x.shape[0], length, H, D).transpose(1, 2) for part in self.project(x).split(H * D, 2))
        scores = torch.matmul(q, k.transpose(-1, -2)) * (1.0 / math.sqrt(D))
        given = (self, scores, x) if self.asks_for_input else (self, scores)
        context = torch.matmul(self.dropout(self.scores_to_probabilities(*given)), v)
        return context, poptorch.identity_loss(context.sin(), "sum")


def masked(m, scores):
    length = scores.shape[-1]
    return torch.softmax(torch.where(m.mask[..., :length, :length], scores, LOW), dim=-1)


def low_as_tensor(m, scores):
    length = scores.shape[-1]
    low = torch.full((), -1e9, dtype=scores.dtype)
    return F.softmax(torch.where(m.mask[..., :length, :length], scores, low), dim=3)


def mask_made_in_forward(m, scores):
    length = scores.shape[-1]
    return torch.softmax(torch.where(torch.ones(length, length).tril() > 0, scores, LOW), dim=-1)


FUSED = {"buffer": masked, "low as a tensor": low_as_tensor, "mask made in forward": mask_made_in_forward}


def window(m, scores):
    length = scores.shape[-1]
    seen = m.mask[..., :length, :length] & ~m.mask[..., :length, :length].tril(-3)
    return torch.softmax(torch.where(seen, scores, LOW), dim=-1)


def mild(m, scores):
    length = scores.shape[-1]
    return torch.softmax(torch.where(m.mask[..., :length, :length], scores, -2.0), dim=-1)


def all_seen(m, scores):
    return torch.softmax(scores, dim=-1)


def over_queries(m, scores):
    length = scores.shape[-1]
    return torch.softmax(torch.where(m.mask[..., :length, :length], scores, LOW), dim=-2)


def scores_used_twice(m, scores):
    return masked(m, scores) + 0.01 * scores


def mask_from_data(m, scores):
    length = scores.shape[-1]
    return torch.softmax(torch.where(m.mask[..., :length, :length] & (scores < 100.0), scores, LOW), dim=-1)


def biased(distance):
    """Causal attention whose scores have the module's slopes, (H,), times a distance added."""

    def probabilities(m, scores):
        places = torch.arange(scores.shape[-1])
        return masked(m, scores + distance(places[:, None], places).to(scores.dtype) * m.slopes[:, None, None])

    return probabilities


ALIBI = biased(lambda queries, keys: keys - queries)


def bias_from_data(m, scores):
    places = torch.arange(scores.shape[-1])
    return masked(m, scores + (places - places[:, None]) * scores.detach().amax())


def of_keys(bias, low=3 * LOW):
    """Causal attention to whose scores `bias(module, x)`, (B, T), is added, one for each key."""

    def probabilities(m, scores, x):
        length = scores.shape[-1]
        scores = scores + bias(m, x).to(scores.dtype)[:, None, None, :]
        return torch.softmax(torch.where(m.mask[..., :length, :length], scores, low), dim=-1)

    return probabilities


def alibi_bias(m, scores):
    places = torch.arange(scores.shape[-1])
    return (places - places[:, None]).to(scores.dtype) * m.slopes[:, None, None]


def padding(m, x):
    """Some of the first tokens and others; lowered by what softmax makes 0 of and float32 has the scores beside."""
    places = torch.arange(x.shape[1])
    return ((x[..., 0] > 0.2) | (places < 2)).to(x.dtype) * -40.0


KEY_BIASES = {
    "padding": of_keys(padding),
    "one for all samples": of_keys(lambda m, x: torch.linspace(-3, 3, x.shape[1])[None]),
    "learned": of_keys(lambda m, x: torch.matmul(x, m.project.weight[0])),
    "beside ALiBi": lambda m, scores, x: KEY_BIASES["padding"](m, scores + alibi_bias(m, scores), x),
}


UNFUSED = {
    "a bias for each query": lambda m, scores, x: masked(m, scores + x[..., 0].detach()[:, None, :, None]),
    "two biases of keys": lambda m, scores, x: KEY_BIASES["padding"](m, scores + x[..., 1][:, None, None, :], x),
    "a bias as low as what masks": of_keys(padding, LOW),
    "a bias that is no slope": biased(lambda queries, keys: -((keys - queries) ** 2)),
    "a bias by the place of the query alone": biased(lambda queries, keys: queries + 0 * keys),
    "a bias from data": bias_from_data,
    "another mask": window,
    "masked scores that count": mild,
    "no mask": all_seen,
    "softmax over queries": over_queries,
    "scores used twice": scores_used_twice,
    "mask from data": mask_from_data,
}


def executor_of(model) -> poptorch.PoplarExecutor:
    return poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=1.0))


def targets(executor) -> list[object]:
    return [node.target for stage in executor.program.stages for s in stage.segments for node in s.module.graph.nodes]


def sample(length: int = T) -> torch.Tensor:
    return torch.randn(B, length, H * D, generator=torch.Generator().manual_seed(1))


def assert_like_eager(model, scores_to_probabilities, x, close=1e-6):
    """One step of SGD with learning rate 1 shows the gradient; compared with eager float64."""
    before = model.project.weight.detach().clone()
    executor = executor_of(model)
    context, _ = executor(x)
    exact = Attention(scores_to_probabilities, model.mask.shape[-1]).double()
    expected, loss = exact(x.double())
    loss.backward()
    torch.testing.assert_close(context.double(), expected.detach(), rtol=1e-5, atol=close)
    found = (before - model.project.weight.detach()).double()
    torch.testing.assert_close(found, exact.project.weight.grad, rtol=1e-4, atol=10 * close)
    return executor


@pytest.mark.parametrize("length", [1, T, POSITIONS])
@pytest.mark.parametrize("case", FUSED)
def test_causal_attention_is_fused(case, length):
    executor = assert_like_eager(Attention(FUSED[case]), FUSED[case], sample(length))
    assert targets(executor).count(SDPA) == 1


def own_kernel(monkeypatch, there: bool) -> bool:
    """Whether there is a kernel of ours, which there is not to be unless `there`."""
    if not there:
        monkeypatch.setattr(native, "available", lambda: False)
    return native.available()


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("length", [2, T, 600])
def test_the_bias_of_alibi_goes_into_the_kernel(length, kernel, monkeypatch):
    """As columns into torch's. 600 positions: further than one of the two parts that a place is split into."""
    inside = own_kernel(monkeypatch, kernel) and length >= 64
    executor = assert_like_eager(Attention(ALIBI, positions=600), ALIBI, sample(length), close=2e-5)
    counts = [targets(executor).count(each) for each in (biased_attention, SDPA, with_alibi, causal_attention)]
    assert counts == ([1, 0, 0, 0] if inside else [0, 1, 1, 0])
    names = " ".join(str(target) for target in targets(executor))
    assert not any(left in names for left in ("softmax", "where", "matmul", "arange"))


def test_alibi_with_dropout_has_its_kernel_too():
    """With a dropout that drops nothing the result is that without."""
    executor = executor_of(Attention(ALIBI, dropout=1e-12))
    context, _ = executor(sample())
    own = biased_attention if native.available() else dropout_attention
    assert targets(executor).count(own) == 1 and context.shape == (B, H, T, D)
    plain, _ = Attention(ALIBI)(sample())
    torch.testing.assert_close(context, plain.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("length", [1, T, 70])
@pytest.mark.parametrize("case", KEY_BIASES)
def test_a_bias_of_the_keys_goes_into_the_kernel(case, length, kernel, monkeypatch):
    """Padding at the beginning too: who sees nothing else sees that. What is learned has its gradient."""
    inside = own_kernel(monkeypatch, kernel) and length >= 64
    model = Attention(KEY_BIASES[case], positions=70)
    executor = assert_like_eager(model, KEY_BIASES[case], sample(length), close=2e-5)
    counts = [targets(executor).count(each) for each in (biased_attention, SDPA, with_key_bias, causal_attention)]
    if case != "beside ALiBi" or length > 1:
        assert counts == ([1, 0, 0, 0] if inside else [0, 1, 1, 0])


@pytest.mark.parametrize("word", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 1e-12])
def test_a_bias_in_a_program_of_half(word, dropout, monkeypatch):
    """Inside the kernel wherever products of half are its own; the context is rounded to 11 bits, or to 8."""
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", word)
    case = KEY_BIASES["beside ALiBi"]
    model, x = Attention(case, positions=100, dropout=dropout), sample(100)
    expected, _ = Attention(case, positions=100).double()(x.double())
    executor = executor_of(model.half())
    context, _ = executor(x.half())
    torch.testing.assert_close(context.double(), expected.detach(), rtol=0.02, atol=0.02)
    own = native.available() and (word == "float32" or dropout > 0 or wide_products.available())
    assert targets(executor).count(biased_attention) == own
    assert targets(executor).count(with_alibi) == targets(executor).count(with_key_bias) == (not own)


def test_padding_with_dropout_has_its_kernel_too():
    executor = executor_of(Attention(KEY_BIASES["padding"], dropout=1e-12))
    context, _ = executor(sample())
    own = biased_attention if native.available() else dropout_attention
    assert targets(executor).count(own) == 1 and context.shape == (B, H, T, D)
    plain, _ = Attention(KEY_BIASES["padding"])(sample())
    torch.testing.assert_close(context, plain.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_bias_of_the_keys_in_16_bits(dtype):
    """Of operands rounded to them, as a kernel sees them: padding vanishes, and of -inf nothing becomes NaN."""
    nothing = torch.zeros(1, H, 4, D)
    for low in (-1e4, -1e9, -torch.inf):
        bias = torch.tensor([low, low, 0.0, 1.25]).view(1, 1, 1, 4)
        query, key, value = (
            each.to(dtype).float() for each in with_key_bias(nothing, nothing, nothing, bias, 0.125, True)
        )
        scores = (query @ key.transpose(-1, -2) * 0.125).masked_fill(torch.ones(4, 4).tril() == 0, -torch.inf)
        expected = [
            [1, 0, 0, 0],
            [0.5, 0.5, 0, 0],
            [0, 0, 1, 0],
            [0, 0, *torch.tensor([0.0, 1.25]).softmax(0).tolist()],
        ]
        torch.testing.assert_close(scores[0, 0].softmax(-1), torch.tensor(expected), rtol=1e-3, atol=1e-6)
        assert not value.any()


@pytest.mark.parametrize("dtype, exact", [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_the_columns_of_alibi_are_its_bias(dtype, exact):
    """As a kernel sees them: operands of that type, sums in float32; at 2,000 positions whatever softmax can tell."""
    length, scale = 2000, 0.25
    nothing = torch.zeros(1, H, length, D, dtype=dtype)
    query, key, value = with_alibi(nothing, nothing, nothing, SLOPES, scale)
    assert query.dtype == dtype and query.shape == key.shape == value.shape and not value.any()
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    places = torch.arange(length)
    bias = (places - places[:, None]) * torch.tensor(SLOPES)[:, None, None]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    found, expected = (torch.where(seen, each, -torch.inf).softmax(-1) for each in (scores[0], bias))
    torch.testing.assert_close(found, expected, rtol=exact, atol=1e-6)


@pytest.mark.parametrize("case", UNFUSED)
def test_anything_else_stays(case):
    executor = assert_like_eager(Attention(UNFUSED[case]), UNFUSED[case], sample())
    assert SDPA not in targets(executor)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_nothing_of_the_pattern_is_left_behind(dropout):
    """Random operations survive torch's elimination of dead code, and everything that leads to them with them."""
    executor = executor_of(Attention(masked, dropout=dropout).eval())  # traced in the mode it is in
    executor(sample())
    assert SDPA in targets(executor)
    names = " ".join(str(target) for target in targets(executor))
    assert not any(left in names for left in ("softmax", "where", "matmul", "dropout"))


@pytest.mark.parametrize("mode", [True, False])
def test_attention_with_dropout_is_fused_in_a_forward_only_program(mode):
    """Whatever mode the model is in: torch traces a dropout that is off as a copy."""
    model = Attention(masked, dropout=0.3).train(mode)
    executor = poptorch.inferenceModel(model)
    context, _ = executor(sample())
    assert targets(executor).count(SDPA) == 1
    torch.testing.assert_close(context, model.eval()(sample())[0].detach(), rtol=1e-5, atol=1e-6)


def test_dropout_on_a_cpu_has_a_kernel_of_its_own():
    model = Attention(masked, dropout=0.5)
    executor = executor_of(model)
    context, _ = executor(sample())
    assert targets(executor).count(dropout_attention) == 1 and SDPA not in targets(executor)
    plain, _ = Attention(masked)(sample())
    assert not torch.allclose(context, plain.detach(), atol=1e-3)


def operands(length: int = T, size: int = D) -> list[torch.Tensor]:
    """Query, key and value (B, H, length, size) in float64, views of one tensor as in a model."""
    generator = torch.Generator().manual_seed(4)
    parts = torch.randn(B, length, 3 * H * size, generator=generator, dtype=torch.float64).split(H * size, 2)
    return [part.view(B, length, H, size).transpose(1, 2).requires_grad_() for part in parts]


def test_dropout_drops_probabilities_and_scales_the_rest():
    length, dropout = 64, 0.25
    query, key, _ = operands(length)
    identity = torch.eye(length, dtype=torch.float64).expand(B, H, length, length)
    found = dropout_attention(query, key, identity, dropout, 0.5).detach()  # the probabilities themselves
    plain = F.scaled_dot_product_attention(query, key, identity, is_causal=True, scale=0.5).detach()
    kept = found > 0
    torch.testing.assert_close(found, torch.where(kept, plain / (1 - dropout), 0.0))
    share = kept.sum() / (plain > 0).sum()
    assert abs(share - 0.75) < 0.02  # 12,480 draws: five standard deviations
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[0, 0], kept[0, 1])


@pytest.mark.parametrize("part_bytes", [1, 1 << 20])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradient_with_dropout_is_that_of_the_same_draw(dropout, part_bytes, monkeypatch):
    monkeypatch.setattr("poptorch.device.dropout_attention._PART_BYTES", part_bytes)

    def seeded(*tensors):
        torch.manual_seed(5)
        return dropout_attention(*tensors, dropout, 0.7)

    assert torch.autograd.gradcheck(seeded, operands(), fast_mode=True)
    if not dropout:
        expected = F.scaled_dot_product_attention(*operands(), is_causal=True, scale=0.7)
        torch.testing.assert_close(seeded(*operands()), expected)


def test_certain_dropout_is_left_alone():
    executor = executor_of(Attention(masked, dropout=1.0))
    context, _ = executor(sample())
    assert dropout_attention not in targets(executor) and not context.any()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_goes_along_on_a_gpu(dropout, monkeypatch):
    """The graph alone: nothing runs."""
    seen = {}

    def as_on_a_gpu(traced, device, philox):
        count = fuse_attention(traced, torch.device("cuda"))
        seen.update(count=count, nodes=[node for node in traced.graph.nodes if node.target is SDPA])
        return count

    monkeypatch.setattr("poptorch.engine.passes.fuse_attention", as_on_a_gpu)
    executor_of(Attention(masked, dropout=dropout)).compile(sample())
    assert seen["count"] == 1
    _, _, _, mask, probability, causal = seen["nodes"][0].args
    assert (mask, probability, causal) == (None, dropout, True)
    assert seen["nodes"][0].kwargs == {"scale": pytest.approx(1 / math.sqrt(D))}


def test_operands_changed_in_between_are_read_in_time():
    def forward(m, x):
        value = x.clone()
        scores = torch.matmul(value, value.transpose(-1, -2)) * 0.5
        probabilities = torch.softmax(torch.where(torch.ones(T, T).tril() > 0, scores, LOW), dim=-1)
        value.mul_(2.0)
        return poptorch.identity_loss(torch.matmul(probabilities, value) * m.w, "sum")

    x = torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(2))
    model = Body(forward, w=torch.nn.Parameter(torch.ones(D)))
    executor = executor_of(model)
    loss = executor(x)
    assert SDPA not in targets(executor)
    expected = F.scaled_dot_product_attention(x, x, 2.0 * x, is_causal=True, scale=0.5).double().sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_mask_that_changes_after_compilation_is_refused():
    model = Attention(masked)
    executor = executor_of(model)
    executor(sample())
    model.mask.copy_(torch.ones_like(model.mask))
    with pytest.raises(poptorch.Error, match="mask was compiled into the program as a constant"):
        executor.copyWeightsToDevice()


def test_a_mask_that_the_program_changes_is_none():
    def forward(m, x):
        probabilities = masked(m, torch.matmul(x, x.transpose(-1, -2)) * 0.5)
        m.mask.logical_not_()
        return poptorch.identity_loss(torch.matmul(probabilities, x) * m.w, "sum")

    x = torch.randn(B, H, T, D)
    model = Body(
        forward, w=torch.nn.Parameter(torch.ones(D)), mask=torch.ones(T, T, dtype=torch.bool).tril()[None, None]
    )
    executor = executor_of(model)
    executor(x)
    assert SDPA not in targets(executor)


def test_the_scores_are_never_held():
    length = 256
    model = Attention(masked, positions=length)
    executor = executor_of(model)
    executor.compile(sample(length))
    with LiveBytes() as seen:
        executor(sample(length))
    assert seen.peak < 4 * B * H * length * length
