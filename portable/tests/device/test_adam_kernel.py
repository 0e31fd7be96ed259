"""The kernel for Adam and AdamW: weights and moments against float64 and torch, on every kind of processor."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poptorch.device import native
from poptorch.device.native import adam as module

TYPES = [torch.float32, torch.float16, torch.bfloat16]
NUMBERS = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1}

decoupled = pytest.mark.parametrize("decoupled", [True, False], ids=["AdamW", "Adam"])


def operands(count: int, types=(torch.float32,) * 4, seed: int = 0, scale: float = 1.0) -> list[torch.Tensor]:
    """Weight, gradient and both moments (count,), of these types; the gradient is larger by `scale`."""
    generator = torch.Generator().manual_seed(seed)
    w, g, m, v = (torch.randn(count, generator=generator) for _ in range(4))
    numbers = (w, g * scale, 0.3 * m, 0.1 * v.square())
    return [number.to(dtype) for number, dtype in zip(numbers, types, strict=True)]


def updated(tensors, rounded=None, *, step=3, divisor=1.0, decoupled=True, **numbers) -> list[torch.Tensor]:
    """Weight and moments after one step by the kernel; what is given stays."""
    w, g, m, v = (tensor.clone() for tensor in tensors)
    given = g.clone()
    numbers = {**NUMBERS, **numbers}
    module.adam([w], [g], [m], [v], [rounded], step=step, divisor=divisor, decoupled=decoupled, **numbers)
    assert torch.equal(g.view(torch.uint8), given.view(torch.uint8))
    return [w, m, v]


def exact(tensors, *, step=3, divisor=1.0, decoupled=True, **numbers) -> list[torch.Tensor]:
    """The same in float64, nothing rounded."""
    n = {**NUMBERS, **numbers}
    w, g, m, v = (tensor.double() for tensor in tensors)
    g = g / divisor + (0.0 if decoupled else n["weight_decay"]) * w
    m = n["beta1"] * m + (1 - n["beta1"]) * g
    v = n["beta2"] * v + (1 - n["beta2"]) * g * g
    update = m / (1 - n["beta1"] ** step) / ((v / (1 - n["beta2"] ** step)).sqrt() + n["eps"])
    return [w - n["lr"] * (update + (n["weight_decay"] if decoupled else 0.0) * w), m, v]


def torchs(tensors, *, step=3, divisor=1.0, decoupled=True, **numbers) -> list[torch.Tensor]:
    """The same by torch's fused kernel, in float32."""
    w, g, m, v = (tensor.clone() for tensor in tensors)
    rule = torch._fused_adamw_ if decoupled else torch._fused_adam_
    scale = None if divisor == 1.0 else torch.tensor(divisor)
    steps = [torch.tensor(float(step))]
    numbers = {**NUMBERS, **numbers}
    rule([w], [g], [m], [v], [], steps, amsgrad=False, maximize=False, grad_scale=scale, **numbers)
    return [w, m, v]


def assert_rounded(found: torch.Tensor, expected: torch.Tensor, size: float = 1.0) -> None:
    """`found` is float64's result but for errors of float32's arithmetic on numbers of this size, and one rounding."""
    kind = torch.finfo(found.dtype)
    rtol = 0.51 * kind.eps if kind.bits == 16 else 0.0
    atol = 1e-6 * size + (0.5 * kind.smallest_normal * kind.eps if kind.bits == 16 else 0.0)
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol)


@decoupled
@pytest.mark.parametrize("count", [1, 37, 64])
def test_every_combination_of_types_gives_what_float64_gives(decoupled, count, kernels):
    for types in itertools.product(TYPES, repeat=4):
        tensors = operands(count, types, scale=64.0)
        found = updated(tensors, decoupled=decoupled, divisor=64.0)
        assert [tensor.dtype for tensor in found] == [types[0], *types[2:]]
        for mine, theirs in zip(found, exact(tensors, decoupled=decoupled, divisor=64.0), strict=True):
            assert_rounded(mine, theirs, size=4.0)


@decoupled
@pytest.mark.parametrize("numbers", [{}, {"beta1": 0.0}, {"beta1": 0.3}, {"weight_decay": 0.0}, {"lr": 0.0}], ids=str)
@pytest.mark.parametrize("divisor", [1.0, 1024.0, 0.7])
def test_in_float32_it_is_torchs_to_a_few_units_in_the_last_place(decoupled, numbers, divisor, kernels):
    tensors = operands(5000, scale=divisor)
    arguments = {"decoupled": decoupled, "divisor": divisor, **numbers}
    found, theirs, right = (function(tensors, **arguments) for function in (updated, torchs, exact))
    # In units of the largest number that goes into a sum: what is left after a cancellation has fewer digits.
    n = {**NUMBERS, **numbers}
    w, g, m, v = (tensor.abs().double() for tensor in tensors)
    g = g / divisor + n["weight_decay"] * w
    first, second = torch.maximum(m, g), v + g * g
    update = n["lr"] * first / (1 - n["beta1"] ** 3) / (right[2] / (1 - n["beta2"] ** 3)).sqrt()
    for mine, other, truth, size in zip(found, theirs, right, (torch.maximum(w, update), first, second), strict=True):
        unit = 2.0 ** (size.log2().floor() - 23)
        assert float(((mine.double() - other.double()).abs() / unit).max()) <= 4
        assert float(((mine.double() - truth).abs() / unit).max()) <= 3


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_numbers_give_what_float64_gives(kernels, data):
    tensors = operands(data.draw(st.integers(1, 100)), seed=data.draw(st.integers(0, 2**31)))
    arguments = {
        "lr": data.draw(st.floats(0.0, 0.1)),
        "beta1": data.draw(st.floats(0.0, 0.99)),
        "beta2": data.draw(st.floats(0.5, 0.9999)),
        "eps": data.draw(st.sampled_from([1e-8, 1e-6, 1e-3])),
        "weight_decay": data.draw(st.sampled_from([0.0, 0.01, 0.2])),
        "decoupled": data.draw(st.booleans()),
        "step": data.draw(st.integers(1, 10**6)),
        "divisor": data.draw(st.sampled_from([1.0, 3.7, 50000.0])),
    }
    tensors[1] = (tensors[1] * arguments["divisor"]).float()
    w, m, v = (tensor.double() for tensor in updated(tensors, **arguments))
    expected = exact(tensors, **arguments)
    torch.testing.assert_close(v, expected[2], rtol=1e-6, atol=0)
    torch.testing.assert_close(m, expected[1], rtol=1e-6, atol=2e-6)
    update = float((expected[0] - tensors[0].double()).abs().max())
    torch.testing.assert_close(w, expected[0], rtol=1e-6, atol=1e-6 + 1e-5 * update)


@decoupled
def test_what_is_not_finite_becomes_what_it_becomes_in_torch(decoupled, kernels):
    special = [math.inf, -math.inf, math.nan, 0.0, 1.0, 3e38, 1e-45]
    table = torch.tensor(list(itertools.product(special, repeat=4))).t().contiguous()
    tensors = [table[0], table[1], table[2], table[3].abs()]
    for divisor in (1.0, 2.0, 0.0, math.inf, math.nan):
        for numbers in ({}, {"weight_decay": 0.0}, {"beta1": 0.3}):
            arguments = {"decoupled": decoupled, "divisor": divisor, **numbers}
            for mine, theirs in zip(updated(tensors, **arguments), torchs(tensors, **arguments), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-44, equal_nan=True)


def test_a_gradient_of_zero_leaves_a_new_weight_but_for_its_decay(kernels):
    weight, zero = torch.randn(45), torch.zeros(45)
    w, m, v = updated([weight, zero, zero, zero], eps=1e-8)
    torch.testing.assert_close(w, weight * (1 - 0.01 * 0.1), rtol=1e-6, atol=0)
    assert not m.any() and not v.any()
    assert torch.equal(updated([weight, zero, zero, zero], weight_decay=0.0)[0], weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_read_as_what_it_is(dtype, kernels):
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite()]
    zeros = torch.zeros(len(numbers))
    # With beta1 = 0 the first moment is the gradient, and a weight of 16 bits stays what it is with lr = 0.
    w, m, _ = updated([numbers, numbers, zeros, zeros], lr=0.0, beta1=0.0)
    assert torch.equal(m, numbers.float()) and torch.equal(w, numbers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_are_rounded_to_16_bits_as_torch_rounds(dtype, kernels):
    """Some 430,000 floats of every size, and those between two numbers of 16 bits."""
    bits = torch.from_numpy(np.arange(0, 0x7F800000, 4_999, dtype=np.int64).astype(np.int32))
    halves = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    between = (halves[:-1] + halves[1:]) / 2
    floats = torch.cat([bits.view(torch.float32), halves, between, between.nextafter(halves[1:])])
    floats = floats[floats.isfinite()]
    floats = torch.cat([floats, -floats, torch.tensor([math.nan, -math.nan])])
    rounded, zeros = torch.empty(len(floats), dtype=dtype), torch.zeros(len(floats))
    w, m, _ = updated([floats, floats, zeros.to(dtype), zeros], rounded, lr=0.0, beta1=0.0)
    assert torch.equal(w[:-2], floats[:-2])
    for found, unrounded in ((m, floats), (rounded, w)):  # the weight -0 is 0 by then, in torch too
        assert torch.equal(found[:-2].view(torch.int16), unrounded[:-2].to(dtype).view(torch.int16))
        assert found[-2:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [3, 64, 20_001])
def test_a_rounded_copy_is_written_with_the_weight(dtype, count, kernels):
    tensors = operands(count)
    rounded = torch.full((count + 2,), 7.0, dtype=dtype)
    plain, copied = updated(tensors), updated(tensors, rounded[1:-1])
    assert all(torch.equal(a, b) for a, b in zip(plain, copied, strict=True))
    assert torch.equal(rounded[1:-1], plain[0].to(dtype)) and rounded[0] == rounded[-1] == 7.0


def halves_of(sizes) -> list[list[torch.Tensor]]:
    """Lists of weights, gradients and moments, of the types that half programs have."""
    types = (torch.float32, torch.float16, torch.float16, torch.float32)
    made = [operands(size, types, seed=size) for size in sizes]
    return [list(tensors) for tensors in zip(*made, strict=True)]


def run(lists, rounded=None) -> None:
    copies = [None] * len(lists[0]) if rounded is None else rounded
    module.adam(*lists, copies, step=2, divisor=4.0, decoupled=True, **NUMBERS)


@pytest.mark.skipif(not native.available(), reason="the kernels are not built (run `make`)")
def test_any_number_of_threads_gives_the_same_bits():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            lists = halves_of((100_003, 1, 0, 16_384, 40_000))
            run(lists)
            found.append([tensor for tensors in lists for tensor in tensors])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 70), min_size=1, max_size=6))
def test_however_tensors_are_cut_the_bits_are_the_same(kernels, sizes):
    """Pieces of a tensor begin wherever they do, at no address that suits a vector."""
    whole, cut = halves_of([sum(sizes)]), halves_of([sum(sizes)])
    rounded = [torch.empty(sum(sizes), dtype=torch.bfloat16) for _ in range(2)]
    run(whole, rounded[:1])
    run([list(tensors[0].split(sizes)) for tensors in cut], rounded[1].split(sizes))
    for one, other in zip((*whole, rounded[:1]), (*cut, rounded[1:]), strict=True):
        assert torch.equal(one[0], other[0])


def test_no_tensors_at_all(kernels):
    run([[], [], [], []])


def test_which_tensors_it_takes(kernels, monkeypatch):
    fit = torch.zeros(4, 6)
    assert module.serves([fit, fit.half(), fit.bfloat16(), fit[2:]])
    for other in (fit.double(), fit.t(), fit[:, 1:], torch.zeros(4, device="meta")):
        assert not module.serves([fit, other])
    monkeypatch.setattr(native, "library", lambda: None)
    assert not module.serves([fit])
