"""Optimizers as the program makes them, and learning-rate schedules against their formulas."""

import math
import warnings

import poptorch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import flags, run_here, write_config, write_corpus

from arguments import parse_train_args
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from training.optimization import make_optimizer, make_schedule, parameter_groups, schedule_factor, warmup_length
from training.run import TrainingRun

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


BY_HAND = {"eps": 0.5, "betas": (0.75, 0.5)}
SETTINGS = [pytest.param(name, further, id=f"{name}-{len(further)}") for name in KINDS for further in ({}, BY_HAND)]
SETTINGS += [
    pytest.param(name, {**further, "gradient_clipping": 2.0}, id=f"{name}-clipped-{len(further)}")
    for name in ("AdamW", "Adam")
    for further in ({}, BY_HAND)
]


@pytest.mark.parametrize("name, further", SETTINGS)
def test_two_updates_are_those_of_the_formula(name, further):
    """On the device, with gradients and first moment in half: a matrix, so that it decays."""
    weight, lr, decay = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), 0.125, 0.25
    eps, (beta1, beta2) = further.get("eps", 1e-6), further.get("betas", (0.9, 0.999))
    longest = further.get("gradient_clipping", math.inf)
    gradients = [torch.tensor([[0.5, -1.0], [0.25, 2.0]]), torch.tensor([[-0.25, 0.5], [1.0, -0.5]])]
    model = Square(weight)
    options = poptorch.Options()
    executor = poptorch.trainingModel(model, options, make_optimizer(name, model, lr, decay, 8.0, **further))
    w, m, v = weight.double(), torch.zeros(2, 2).double(), torch.zeros(2, 2).double()
    for step, gradient in enumerate(gradients, start=1):
        executor(gradient[None])
        g = gradient.double() * min(1.0, longest / float(gradient.norm()))  # 2.3 and 1.3
        g = g + (decay * w if name == "Adam" else 0.0)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        corrected = name != "LAMBNoBiasCorrection"  # AdamW(bias_correction=False) corrects all the same
        m_hat, v_hat = (m / (1 - beta1**step), v / (1 - beta2**step)) if corrected else (m, v)
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


@given(st.sampled_from(["linear", "cosine"]), st.integers(0, 50), st.integers(1, 300), st.floats(0.0, 1.0))
def test_a_schedule_with_a_floor_ends_there_and_stays(kind, warmup, decay, floor):
    rates = [schedule_factor(kind, call, warmup, decay, floor) for call in range(warmup, max(warmup, decay) + 3)]
    assert min(rates) >= floor * (1 - 1e-12) and rates == sorted(rates, reverse=True)
    assert rates[-1] == rates[-2] == pytest.approx(floor, abs=1e-12) and rates[0] == 1.0
    without = [schedule_factor(kind, call, warmup, decay) for call in range(warmup, max(warmup, decay) + 3)]
    assert rates == pytest.approx([floor + (1 - floor) * rate for rate in without])
    assert schedule_factor("constant", 400, warmup, decay, floor) == 1.0


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


# ---- the flags, over a run ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flags")
    write_config(folder)
    write_corpus(folder / "corpus.pkl")
    return folder


def run_of(folder, **changes):
    return TrainingRun(parse_train_args(flags(folder, train_path=folder / "corpus.pkl", **changes)))


def test_the_flags_reach_optimizer_schedule_and_model(folder):
    words = {"adam_betas": "0.8 0.95", "adam_epsilon": 1e-3, "gradient_clipping": 0.5, "dropout": "0.2 0 0.3"}
    run = run_of(folder, min_learning_rate=0.004, lr_schedule="linear", lr_decay_steps=2, lr_warmup=0, **words)
    assert [(g["betas"], g["eps"]) for g in run.optimizer.param_groups] == [((0.8, 0.95), 1e-3)] * 2
    assert run.optimizer.max_grad_norm == 0.5
    config = run.model.gpt2.config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.2, 0.0, 0.3)
    assert run.model.gpt2.transformer.drop.p == 0.0
    rates = []
    for _ in range(4):
        rates.append(run.schedule.get_last_lr()[0])
        run.schedule.step()
    assert rates == pytest.approx([0.01, 0.007, 0.004, 0.004])
    assert run_of(folder).optimizer.max_grad_norm == math.inf, "without the flag nothing is clipped"


def test_dropout_of_a_checkpoint_can_be_changed_and_stays_so(folder, tmp_path):
    save = run_here(
        flags(folder, train_path=folder / "corpus.pkl", save_model_path=tmp_path, training_steps=1, dropout=0.25)
    )
    assert save.status == 0, save.err
    checkpoint = {"pretrained_checkpoint": tmp_path / "step_1"}
    assert run_of(folder, **checkpoint).model.gpt2.config.attn_pdrop == 0.25
    gpt2 = run_of(folder, **checkpoint, dropout=0).model.gpt2
    assert gpt2.config.attn_pdrop == gpt2.config.resid_pdrop == gpt2.config.embd_pdrop == 0.0


CHANGED = {"adam_betas": "0.8 0.95", "adam_epsilon": 1e-3, "gradient_clipping": 0.5, "dropout": 0.3}
CHANGED["min_learning_rate"] = 1e-3


@pytest.fixture(scope="module")
def saved(folder):
    words = {"train_path": folder / "corpus.pkl", "lr_schedule": "linear", "save_per_steps": 1}
    done = run_here(flags(folder, **words, training_steps=2, save_model_path=folder / "save"))
    assert done.status == 0, done.err
    del words["save_per_steps"]
    words.update(pretrained_checkpoint=folder / "save" / "step_1", resume_training_from_checkpoint=True)
    return {**words, "training_steps": 2}


@pytest.mark.parametrize("flag", CHANGED)
def test_a_run_is_not_resumed_with_other_numerics(folder, saved, flag):
    done = run_here(flags(folder, **saved, **{flag: CHANGED[flag]}))
    assert done.status == 2 and "these flags make it another one" in done.err
    name = "pdrop" if flag == "dropout" else f"--{flag.replace('_', '-')} "
    assert name in done.err.split("another one\n")[1]


def test_a_run_from_before_these_flags_is_resumed(folder, saved):
    path = folder / "save" / "step_1" / "training_state.pt"
    state = torch.load(str(path), weights_only=True)
    for flag in CHANGED:
        state["facts"].pop(f"--{flag.replace('_', '-')}", None)
    torch.save(state, str(path))
    done = run_here(flags(folder, **saved))
    assert done.status == 0, done.err
