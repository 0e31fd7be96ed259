"""Optimizers as the program makes them, and learning-rate schedules against their formulas."""

import math
import warnings

import poptorch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from training.optimization import make_optimizer, make_schedule, parameter_groups, schedule_factor, warmup_length

SMALL = GPT2Config(32, 8, 8, 2, 2)
KINDS = {
    "AdamW": (poptorch.optim.AdamW, False),  # accepted and without effect: the bias is corrected
    "Adam": (poptorch.optim.Adam, True),
    "LAMB": (poptorch.optim.LAMB, True),
    "LAMBNoBiasCorrection": (poptorch.optim.LAMB, False),
}


def test_matrices_decay_and_vectors_do_not():
    model = GPT2LMHeadModel(SMALL)
    decayed, plain = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in plain["params"]} == {
        name for name in names.values() if name.endswith("bias") or ".ln_" in name
    }
    grouped = [id(p) for p in decayed["params"] + plain["params"]]
    assert len(grouped) == len(set(grouped)) == len(names), "each parameter once, the tied one too"


def test_frozen_parameters_are_in_no_group():
    model = GPT2LMHeadModel(SMALL)
    model.transformer.wpe.weight.requires_grad_(False)
    grouped = [p for group in parameter_groups(model, 0.0) for p in group["params"]]
    assert not any(p is model.transformer.wpe.weight for p in grouped)


@pytest.mark.parametrize("name", KINDS)
def test_an_optimizer_has_the_numerics_of_the_reference(name):
    kind, bias_correction = KINDS[name]
    optimizer = make_optimizer(name, GPT2LMHeadModel(SMALL), 0.002, 0.01, 512.0)
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [0.002, 0.002]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert [group["eps"] for group in optimizer.param_groups] == [1e-6, 1e-6]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.999)] * 2
    assert getattr(optimizer, "bias_correction", True) is bias_correction
    assert optimizer.loss_scaling == 512.0
    assert optimizer.accum_type == optimizer.first_order_momentum_accum_type == torch.float16
    assert optimizer.second_order_momentum_accum_type == torch.float32


class Square(torch.nn.Module):
    """Loss sum(target * w): the gradient is `target`, and w stays out of it."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())

    def forward(self, target):
        return poptorch.identity_loss((target[0] * self.weight).sum(), reduction="none")


@pytest.mark.parametrize("name", KINDS)
def test_two_updates_are_those_of_the_formula(name):
    """On the device, with gradients and first moment in half: a matrix, so that it decays."""
    weight, lr, decay, eps = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), 0.125, 0.25, 1e-6
    gradients = [torch.tensor([[0.5, -1.0], [0.25, 2.0]]), torch.tensor([[-0.25, 0.5], [1.0, -0.5]])]
    model = Square(weight)
    options = poptorch.Options()
    executor = poptorch.trainingModel(model, options, make_optimizer(name, model, lr, decay, 8.0))
    w, m, v = weight.double(), torch.zeros(2, 2).double(), torch.zeros(2, 2).double()
    for step, gradient in enumerate(gradients, start=1):
        executor(gradient[None])
        g = gradient.double() + (decay * w if name == "Adam" else 0.0)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        corrected = name != "LAMBNoBiasCorrection"  # AdamW(bias_correction=False) corrects all the same
        m_hat, v_hat = (m / (1 - 0.9**step), v / (1 - 0.999**step)) if corrected else (m, v)
        x = m_hat / (v_hat.sqrt() + eps) + (decay * w if name != "Adam" else 0.0)
        trust = float(w.norm() / x.norm()) if name.startswith("LAMB") else 1.0
        w = w - lr * trust * x
    torch.testing.assert_close(model.weight.detach().double(), w, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "kind, points",
    [  # warm-up 4, decay 12: (call, share of the highest rate)
        ("constant", {0: 0.2, 1: 0.4, 3: 0.8, 4: 1.0, 5: 1.0, 12: 1.0, 100: 1.0}),
        ("linear", {0: 0.2, 3: 0.8, 4: 1.0, 6: 0.75, 8: 0.5, 11: 0.125, 12: 0.0, 100: 0.0}),
        ("cosine", {0: 0.2, 3: 0.8, 4: 1.0, 6: 0.8535534, 8: 0.5, 10: 0.1464466, 12: 0.0, 100: 0.0}),
    ],
)
def test_schedules_at_points_computed_by_hand(kind, points):
    for call, share in points.items():
        assert schedule_factor(kind, call, 4, 12) == pytest.approx(share, abs=1e-7), call


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 50), st.integers(1, 300), st.integers(0, 400))
def test_a_schedule_rises_to_one_and_does_not_rise_again(kind, warmup, decay, call):
    here, after = (schedule_factor(kind, c, warmup, decay) for c in (call, call + 1))
    assert 0.0 <= here <= 1.0
    if call + 1 < warmup:
        assert after - here == pytest.approx(1 / (warmup + 1))
    elif call >= warmup:
        assert after <= here
        assert here == 1.0 or kind != "constant"
        if call >= max(decay, warmup + 1) and kind != "constant":
            assert here == pytest.approx(0.0, abs=1e-12)
    assert schedule_factor(kind, warmup, warmup, max(decay, warmup + 1)) == 1.0
    assert here > 0.0 or kind != "constant", "no call of the warm-up is spent on a rate of 0"


def test_warmup_is_a_fraction_of_the_decay_steps_or_given():
    assert warmup_length(0.1, None, 200) == 20
    assert warmup_length(0.01, None, 80) == 0
    assert warmup_length(0.1, 7, 200) == 7
    assert warmup_length(0.1, 0, 200) == 0


def test_the_scheduler_follows_the_formula_without_a_warning_and_can_be_saved():
    optimizer = make_optimizer("AdamW", GPT2LMHeadModel(SMALL), 0.5, 0.0, 1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schedule = make_schedule(optimizer, "cosine", 2, 10)
        rates = []
        for _ in range(6):
            rates.append(schedule.get_last_lr()[0])
            schedule.step()  # without optimizer.step(), which the device does
    assert not [str(warning.message) for warning in caught if "lr_scheduler" in str(warning.message)]
    expected = [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(4))]
    assert rates == pytest.approx([0.5 * share for share in expected])
    other = make_schedule(make_optimizer("AdamW", GPT2LMHeadModel(SMALL), 0.5, 0.0, 1.0), "cosine", 2, 10)
    other.load_state_dict(schedule.state_dict())
    assert other.get_last_lr() == schedule.get_last_lr()
    other.step(), schedule.step()
    assert other.get_last_lr() == schedule.get_last_lr()
