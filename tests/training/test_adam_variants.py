"""Adam with each gradient clipped by itself, and with moments in 8 bits, against formulas in float64 and torch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.adam_variants import AdamRule, AdamW8bit, TensorClippedAdam, TensorClippedAdamW
from training.block_quantization import dequantize, quantize, values
from training.optimizer_memory import BLOCK

LR, EPS, BETAS, DECAY = 0.05, 1e-3, (0.8, 0.9), 0.25


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(5, 3, generator=generator), 0.01 * torch.randn(4, generator=generator)]


def by_hand(weights, steps, limit, decoupled):
    found = []
    for number, weight in enumerate(weights):
        w = weight.detach().double()
        m = v = torch.zeros_like(w)
        for t in range(1, steps + 1):
            g = gradients(t)[number].double()
            g = g * min(1.0, limit / float(g.norm()))
            if not decoupled:
                g = g + DECAY * w
            m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
            x = (m / (1 - BETAS[0] ** t)) / ((v / (1 - BETAS[1] ** t)).sqrt() + EPS)
            w = w - LR * (x + (DECAY * w if decoupled else 0.0))
        found.append(w)
    return found


@pytest.mark.parametrize("cls, decoupled", [(TensorClippedAdam, False), (TensorClippedAdamW, True)])
@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_each_gradient_is_clipped_by_its_own_norm(cls, decoupled, limit):
    """Of the two gradients one is above 0.5, the other below."""
    weights = [torch.nn.Parameter(each.clone()) for each in gradients(99)]
    expected = by_hand(weights, 4, limit, decoupled)
    optimizer = cls([{"params": weights}], LR, BETAS, EPS, DECAY, max_tensor_norm=limit)
    for step in range(1, 5):
        for weight, gradient in zip(weights, gradients(step)):
            weight.grad = gradient
        optimizer.step()
    for weight, other in zip(weights, expected):  # the first moment is half
        torch.testing.assert_close(weight.detach().double(), other, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("signed", [True, False])
def test_there_are_256_values_with_the_ends_and_zero(signed):
    each = values(signed)
    assert len(each) == 256 == len(set(each.tolist())) and each.tolist() == sorted(each.tolist())
    assert {0.0, 1.0} <= set(each.tolist()) and float(each.min()) == (pytest.approx(-0.99296875) if signed else 0.0)
    assert 3e-7 < float(each[each > 0].min()) < 1e-6


@given(st.integers(1, 1000), st.floats(1e-12, 1e6), st.booleans(), st.integers(0, 9999))
@settings(max_examples=60, deadline=None)
def test_a_number_comes_back_as_near_as_its_block_allows(count, size, signed, seed):
    numbers = size * torch.randn(count, generator=torch.Generator().manual_seed(seed))
    numbers = numbers if signed else numbers.abs()
    codes, scales = torch.zeros(count, dtype=torch.uint8), torch.zeros(-(-count // BLOCK))
    quantize(numbers, codes, scales, signed)
    found = dequantize(codes, scales, signed)
    largest = torch.stack([part.abs().max() for part in numbers.split(BLOCK)])
    assert torch.equal(scales.abs(), largest)
    # A decade down to a millionth has at least one value; the first decade 64, or 128.
    bound = largest.repeat_interleave(BLOCK)[:count]
    assert ((found - numbers).abs() <= bound * (0.0075 if signed else 0.004)).all()
    near = numbers.abs() > 0.1 * bound
    assert ((found - numbers).abs()[near] <= 0.08 * numbers.abs()[near]).all()
    assert (found.sign() == numbers.sign()).all() or signed
    again_codes, again_scales = codes.clone(), scales.clone()
    quantize(found, again_codes, again_scales, signed)
    assert torch.equal(again_codes, codes), "what was quantized stays"


def test_zeros_are_the_state_at_the_start():
    assert torch.equal(dequantize(torch.zeros(3, dtype=torch.uint8), torch.zeros(1), True), torch.zeros(3))


def test_eight_bits_are_for_large_parameters_of_groups_that_say_so():
    rule = AdamW8bit.portable_update_rule
    sizes = {
        (bits, shape): sum(s.numel() * torch.zeros((), dtype=d).element_size() for s, d in forms.values())
        for bits in (8, 32)
        for shape in ((64, 64), (4095,))
        for forms in [rule.states(torch.Size(shape), {"bits": bits})]
    }
    assert sizes == {
        (8, (64, 64)): 4096 * 2 + 16 * 8,
        (32, (64, 64)): 4096 * 8,
        (8, (4095,)): 4095 * 8,
        (32, (4095,)): 4095 * 8,
    }
    assert isinstance(rule, AdamRule) and rule.block == BLOCK


def test_eight_bits_learn_a_regression_as_well_as_32():
    """Least squares of 8,192 weights: after 150 updates the loss has fallen to within a tenth of 32 bits' loss."""
    generator = torch.Generator().manual_seed(0)
    target, inputs = torch.randn(64, 128, generator=generator), torch.randn(256, 128, generator=generator)
    losses = []
    for bits in (32, 8):
        weight = torch.nn.Parameter(torch.zeros(64, 128))
        optimizer = AdamW8bit([{"params": [weight], "bits": bits}], 0.02, weight_decay=0.01)
        for _ in range(150):
            loss = (inputs @ (weight - target).T).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 5.0 and losses[1] == pytest.approx(losses[0], rel=0.1)


def test_32_bits_are_torchs_adamw():
    weights = [[torch.nn.Parameter(each.clone()) for each in gradients(99)] for _ in range(2)]
    ours = AdamW8bit([{"params": weights[0]}], LR, BETAS, EPS, DECAY)
    theirs = torch.optim.AdamW(weights[1], LR, BETAS, EPS, DECAY)
    for step in range(1, 5):
        for each in weights:
            for weight, gradient in zip(each, gradients(step)):
                weight.grad = gradient
        ours.step(), theirs.step()
    for one, other in zip(*weights):
        torch.testing.assert_close(one, other)
