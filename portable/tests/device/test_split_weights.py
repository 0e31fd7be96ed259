"""Weights in two parts of 16 bits: what they hold, which weights are, and that programs do the same with them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from launch import together
from programs import Body, make_options

import poptorch
from poptorch.device import half_products, native, policy, split_weights
from poptorch.device.native import adam as adam_kernel
from poptorch.execution import session

BFLOAT16 = torch.bfloat16
NUMBERS = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1}

needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")


def split(values: torch.Tensor) -> split_weights.SplitWeight:
    parts = split_weights.SplitWeight(
        torch.empty(values.shape, dtype=BFLOAT16), torch.empty(values.shape, dtype=torch.int16)
    )
    parts.assign(values)
    return parts


def kept(values: torch.Tensor) -> torch.Tensor:
    """What becomes of float32 numbers: one unit less in the last place where rounding down is halfway."""
    bits = values.view(torch.int32)
    down = bits & 0x1FFFF == 0x8000
    return torch.where(down, bits - 1, bits).view(torch.float32)


@settings(deadline=None, max_examples=100)
@given(bits=arrays.arrays("int32", 64))
def test_any_number_is_held_and_rounded_as_torch_rounds(bits):
    values = torch.from_numpy(bits).view(torch.float32)
    parts = split(values)
    number = ~values.isnan()
    assert torch.equal(parts.whole()[number].view(torch.int32), kept(values)[number].view(torch.int32))
    assert parts.whole()[~number].isnan().all() and parts.rounded[~number].isnan().all()
    assert torch.equal(parts.rounded[number].view(torch.int16), values[number].to(BFLOAT16).view(torch.int16))


def test_every_number_of_16_bits_with_all_that_rounding_may_meet():
    upper = torch.arange(1 << 16, dtype=torch.int32).sub_(1 << 15) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper + lower).view(torch.float32)
        values = values[~values.isnan()]
        whole = split(values).whole()
        assert torch.equal(whole.view(torch.int32), kept(values).view(torch.int32))
        assert torch.equal(whole.to(BFLOAT16).view(torch.int16), values.to(BFLOAT16).view(torch.int16))
    exact = torch.tensor([1.0 + 2**-8, -(1.0 + 2**-8), 1.0 + 3 * 2**-8, math.inf, 3.4e38, -0.0])
    found = split(exact).whole()
    assert found[0] == 1.0 + 2**-8 - 2**-23 and found[1] == -found[0] and torch.equal(found[2:], exact[2:])


def test_half_numbers_come_back_as_they_were():
    halves = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.float16)
    halves = halves[halves.isfinite()]
    assert torch.equal(split(halves).whole().half().view(torch.int16), halves.view(torch.int16))


@pytest.mark.parametrize("count", [1, 37, 64, 20_001])
@pytest.mark.parametrize("gradient", [torch.float32, torch.float16])
def test_adam_updates_them_as_it_does_float32(count, gradient, kernels):
    generator = torch.Generator().manual_seed(count)
    w, g, m, v = (torch.randn(count, generator=generator) for _ in range(4))
    whole, parts, rounded = kept(w.clone()), split(w), torch.empty(count, dtype=BFLOAT16)
    states = [[m.half(), v.abs()] for _ in range(2)]
    for step in (1, 2, 3):
        for weight, copied, (first, second) in ((whole, rounded, states[0]), (parts, None, states[1])):
            adam_kernel.adam(
                [weight], [g.to(gradient)], [first], [second], [copied],
                **NUMBERS, step=step, divisor=2.0, decoupled=True,
            )  # fmt: skip
        whole = kept(whole)
        assert torch.equal(parts.whole(), whole) and torch.equal(parts.rounded, rounded)
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf, 3.4e38])
def test_what_is_no_small_number_stays_what_it_is(special, kernels):
    parts, zeros = split(torch.full((20,), special)), torch.zeros(20)
    adam_kernel.adam(
        [parts], [zeros], [zeros.clone()], [zeros.clone()], [None],
        **{**NUMBERS, "weight_decay": 0.0}, step=1, divisor=1.0, decoupled=True,
    )  # fmt: skip
    torch.testing.assert_close(parts.whole(), torch.full((20,), special), rtol=0, atol=0, equal_nan=True)


def test_a_weight_without_memory_says_so():
    weight = split_weights.empty(torch.Size([4, 6])).requires_grad_()
    split_weights.assign(weight, torch.ones(4, 6))
    assert weight.shape == (4, 6) and weight.detach().isnan().all() and weight.untyped_storage().nbytes() == 24
    with torch.no_grad(), pytest.raises(RuntimeError, match="single memory location"):
        weight.copy_(torch.zeros(4, 6))
    assert torch.equal(split_weights.whole(weight), torch.ones(4, 6))
    parts = split_weights.parts_of(weight)
    assert split_weights.rounded(weight, weight) is parts.rounded
    assert split_weights.rounded(weight.t(), weight).data_ptr() == parts.rounded.data_ptr()
    assert split_weights.rounded(weight.t(), weight).shape == (6, 4)
    with pytest.raises(ValueError, match="strides"):
        split_weights.rounded(weight[:2], weight)
    plain = torch.ones(2, 2)
    split_weights.assign(plain, torch.zeros(2, 2))
    assert split_weights.parts_of(plain) is None and split_weights.rounded(plain, plain) is None
    assert split_weights.whole(plain).data_ptr() == plain.data_ptr() and not plain.any()


# -- in programs ----------------------------------------------------------------------------------------------------

N = 256  # N x N numbers are as few as are worth it


@pytest.fixture
def units(monkeypatch):
    """Products of bfloat16 by this CPU, by torch's where native/ has none for it."""
    monkeypatch.setenv(policy.HALF_VARIABLE, "bfloat16")
    monkeypatch.setattr(policy, "products_of", lambda name: policy.Products(BFLOAT16, native=True))
    if not half_products.has_kernel(BFLOAT16):
        monkeypatch.setattr(half_products, "has_kernel", lambda dtype: True)
        monkeypatch.setattr(half_products, "_own", lambda *arguments: False)


def forward(m, x):
    hidden = torch.relu(F.linear(x, m.w, m.b))
    hidden = torch.relu(hidden @ m.square) + hidden
    return torch.tanh(F.linear(hidden, m.other) @ m.v)


def loss_of(m, x, y, *further):
    """What forward() gives, whatever else is returned, and a loss to which the last of `further` adds."""
    out = forward(m, x)
    loss = F.mse_loss(out.float(), y.float()) + sum(more.float().sum() for more in further)
    return out, poptorch.identity_loss(loss, "none")


def made(function=loss_of, seed: int = 0) -> Body:
    """w and other are read as they lie in memory, v and square the other way round."""
    generator = torch.Generator().manual_seed(seed)

    def parameter(*shape):
        return torch.nn.Parameter((torch.randn(*shape, generator=generator) / 16).half())

    return Body(
        function, w=parameter(N, N), b=parameter(N), square=parameter(N, N), other=parameter(2 * N, N),
        v=parameter(2 * N, N),
    )  # fmt: skip


def samples(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(12, N, generator=generator).half() for _ in range(2)]


def adam_of(model, **more):
    halves = {"accum_type": torch.float16, "first_order_momentum_accum_type": torch.float16}
    return poptorch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, loss_scaling=16.0, **halves, **more)


def are_split(executor) -> set[str]:
    parameters = executor._session._state.parameters
    return {name for name, weight in parameters.items() if split_weights.parts_of(weight) is not None}


@pytest.fixture
def never(monkeypatch):
    def switch() -> None:
        monkeypatch.setattr(session, "only_multiplied", lambda program: frozenset())

    return switch


ALL = {"w", "square", "other", "v"}


@needs_kernels
@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_does_the_same_with_them(accumulation, units, never):
    found = []
    for expected in (ALL, set()):
        model = made()
        with torch.no_grad():  # of bfloat16: nothing to keep one unit lower
            for parameter in model.parameters():
                parameter.copy_(parameter.to(BFLOAT16))
        optimizer = adam_of(model)
        executor = poptorch.trainingModel(model, make_options(1, accumulation), optimizer)
        losses = [executor(*samples(call))[1].clone() for call in range(4)]
        assert are_split(executor) == expected
        masters = optimizer.state_dict()[session.MASTERS]
        found.append((torch.stack(losses), masters, {name: p.detach().clone() for name, p in model.named_parameters()}))
        never()
    (losses, masters, host), (theirs, whole, other) = found
    assert torch.equal(losses, theirs) and losses[-1].max() < losses[0].max()
    for name, weight in masters.items():  # a few of them came to lie halfway between two numbers
        ulp = (weight.view(torch.int32) - whole[name].view(torch.int32)).abs()
        assert ulp.max() <= 4 and (ulp > 0).float().mean() < 1e-3, name
        torch.testing.assert_close(host[name], other[name], rtol=2**-10, atol=1e-7)


@needs_kernels
def test_a_resumed_run_continues_to_the_bit(units):
    model = made()
    optimizer = adam_of(model)
    executor = poptorch.trainingModel(model, make_options(), optimizer)
    for call in range(2):
        executor(*samples(call))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    other = made(seed=9)
    other.load_state_dict(weights)
    resumed_optimizer = adam_of(other)
    resumed_optimizer.load_state_dict(state)
    resumed = poptorch.trainingModel(other, make_options(), resumed_optimizer)
    for call in range(3):
        assert torch.equal(executor(*samples(call))[1], resumed(*samples(call))[1])
    assert are_split(resumed) == ALL
    first, second = optimizer.state_dict()[session.MASTERS], resumed_optimizer.state_dict()[session.MASTERS]
    assert first.keys() == second.keys() >= ALL and all(torch.equal(first[name], second[name]) for name in first)


@needs_kernels
def test_the_host_gets_them_and_gives_others(units):
    model = made()
    executor = poptorch.trainingModel(model, make_options(), adam_of(model))
    before = model.w.detach().clone()
    executor(*samples())
    executor.copyWeightsToHost()
    device = executor._session._state.parameters
    assert not torch.equal(model.w, before) and torch.equal(model.w, split_weights.whole(device["w"]).half())
    with torch.no_grad():
        model.w.copy_(before)
    executor.copyWeightsToDevice()
    assert torch.equal(split_weights.whole(device["w"]).half(), before)
    precise = split_weights.whole(device["v"]).clone()
    assert not torch.equal(precise.half().float(), precise)
    executor.copyWeightsToDevice()  # the host's are the device's, but rounded
    assert torch.equal(split_weights.whole(device["v"]), precise)


@needs_kernels
def test_anchors_read_them(units):
    options = make_options().anchorTensor("weight", "w").anchorTensor("updated", "UpdatedVar___w")
    model = made()
    before = model.w.detach().clone()
    executor = poptorch.trainingModel(model, options, adam_of(model))
    executor(*samples())
    assert are_split(executor) == ALL
    assert torch.equal(executor.getAnchoredTensor("weight").half(), before)
    assert torch.equal(
        executor.getAnchoredTensor("updated"), split_weights.whole(executor._session._state.parameters["w"])
    )


@needs_kernels
def test_an_update_without_the_kernel_takes_them_too(units, never, monkeypatch):
    found = []
    for expected in (ALL, set()):
        model = made()
        optimizer = adam_of(model)
        executor = poptorch.trainingModel(model, make_options(), optimizer)
        with monkeypatch.context() as patch:
            patch.setattr(adam_kernel, "serves", lambda tensors: False)
            for call in range(2):
                executor(*samples(call))
        assert are_split(executor) == expected
        found.append(optimizer.state_dict()[session.MASTERS])
        never()
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-5, atol=1e-6)


def returned(m, x, y):
    return m.w, *loss_of(m, x, y)


def transposed_out(m, x, y):
    return m.v.t(), *loss_of(m, x, y)


def summed(m, x, y):
    return loss_of(m, x, y, m.other)


def sliced(m, x, y):
    return loss_of(m, x, y, F.linear(x, m.square[:4]))


def multiplied_by_itself(m, x, y):
    return loss_of(m, x, y, F.linear(m.w, m.w))


@needs_kernels
@pytest.mark.parametrize(
    ("function", "name"),
    [(returned, "w"), (transposed_out, "v"), (summed, "other"), (sliced, "square"), (multiplied_by_itself, "w")],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_weight_with_another_reader_is_whole(function, name, units):
    model = made(function)
    executor = poptorch.trainingModel(model, make_options(), adam_of(model))
    losses = [executor(*samples(call))[-1] for call in range(2)]
    assert are_split(executor) == ALL - {name} and all(loss.isfinite().all() for loss in losses)


@needs_kernels
@pytest.mark.parametrize("case", ["SGD", "LAMB", "float32", "emulated", "native"])
def test_where_nothing_is_split(case, units, monkeypatch):
    model = made().float() if case == "float32" else made()
    optimizer = adam_of(model)
    if case == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    elif case == "LAMB":
        optimizer = poptorch.optim.LAMB(model.parameters(), lr=0.01)
    elif case == "emulated":
        monkeypatch.setattr(policy, "products_of", lambda name: policy.Products(BFLOAT16, native=False))
    elif case == "native":
        monkeypatch.setenv(policy.HALF_VARIABLE, "native")
    executor = poptorch.trainingModel(model, make_options(), optimizer)
    executor(*(x.float() if case == "float32" else x for x in samples()))
    assert are_split(executor) == set()


def test_inference_reads_them(units):
    model = made(forward)
    executor = poptorch.inferenceModel(model)
    found = executor(samples()[0])
    assert are_split(executor) == ALL
    torch.testing.assert_close(found.float(), model.float()(samples()[0].float()), rtol=0.05, atol=0.05)


def _of_processes(ipus: int):
    import popdist.poptorch

    options = popdist.poptorch.Options(ipus_per_replica=ipus)
    options.Training.gradientAccumulation(4)
    model = made()
    optimizer = adam_of(model)
    executor = poptorch.trainingModel(model, options, optimizer)
    losses = [executor(*(x.repeat(4, 1) for x in samples(call)))[1].item() for call in range(2)]
    masters = optimizer.state_dict()[session.MASTERS]
    return losses, sorted(are_split(executor)), {name: weight.double().sum().item() for name, weight in masters.items()}


@needs_kernels
@pytest.mark.skipif(not half_products.has_kernel(BFLOAT16), reason="needs a CPU with AVX512_BF16")
def test_processes_that_train_together_have_the_same(units):
    variables = {policy.HALF_VARIABLE: "bfloat16", "POPDIST_NUM_TOTAL_REPLICAS": "2"}
    first, second = together(2, _of_processes, 1, **variables)
    assert first == second and set(first[1]) == ALL
