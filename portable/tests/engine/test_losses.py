"""Which value is differentiated, and what is refused (spec section 4)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from programs import Body, assert_trains_like, gradient_of, parameter, train

import poptorch

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
CLASSES = torch.tensor([0, 1, 3, -100, 2, 1])
SIGNS = torch.tensor([1.0, -1, 1, 1, -1, -1])

LOSSES = {
    "nll": lambda h: F.nll_loss(F.log_softmax(h, -1), torch.arange(6) % 4),
    "nll_2d": lambda h: F.nll_loss(F.log_softmax(h.view(1, 4, 2, 3), 1), torch.ones(1, 2, 3, dtype=torch.long)),
    "cross_entropy": lambda h: F.cross_entropy(h, torch.arange(6) % 4),
    "cross_entropy_sum": lambda h: F.cross_entropy(h, torch.arange(6) % 4, reduction="sum", ignore_index=2),
    "cross_entropy_probabilities": lambda h: F.cross_entropy(h, torch.full((6, 4), 0.25, dtype=h.dtype)),
    "mse": lambda h: F.mse_loss(h, torch.ones_like(h)),
    "l1": lambda h: F.l1_loss(h, torch.full_like(h, 0.3)),
    "smooth_l1": lambda h: F.smooth_l1_loss(h, torch.zeros_like(h)),
    "kl_div": lambda h: F.kl_div(F.log_softmax(h, -1), torch.full_like(h, 0.25)),
    "kl_div_batchmean": lambda h: F.kl_div(F.log_softmax(h, -1), torch.full_like(h, 0.25), reduction="batchmean"),
    "bce": lambda h: F.binary_cross_entropy(torch.sigmoid(h), torch.full_like(h, 0.7)),
    "bce_logits": lambda h: F.binary_cross_entropy_with_logits(h, torch.full_like(h, 0.7)),
    "poisson": lambda h: F.poisson_nll_loss(h, torch.ones_like(h)),
    "hinge": lambda h: F.hinge_embedding_loss(h, torch.ones_like(h) - 2 * (torch.arange(4) % 2)),
    "margin_ranking": lambda h: F.margin_ranking_loss(h[:, 0], h[:, 1], torch.ones(6), margin=0.1),
    "soft_margin": lambda h: F.soft_margin_loss(h, torch.ones_like(h)),
    "multilabel_soft_margin": lambda h: F.multilabel_soft_margin_loss(h, torch.ones_like(h)),
    "cosine": lambda h: F.cosine_embedding_loss(h, h.flip(0) * 2 + 1, torch.ones(6)),
    "triplet": lambda h: F.triplet_margin_loss(h, h + 0.5, h.flip(1)),
    "ctc": lambda h: F.ctc_loss(F.log_softmax(h, -1).view(6, 1, 4), torch.tensor([[1, 2]]), (6,), (2,)),
    "module": lambda h: torch.nn.MSELoss(reduction="sum")(h, torch.ones_like(h)),
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_each_loss_function_is_a_loss_by_itself(name):
    def forward(m, x):
        return LOSSES[name](x @ m.w)

    assert_trains_like(forward, forward, X, w=parameter(4, 4))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_labels_of_either_integer_type_and_ignored_ones(dtype, reduction):
    def forward(m, x, y):
        return F.cross_entropy(x @ m.w, y, reduction=reduction)

    def reference(m, x, y):
        return F.cross_entropy(x @ m.w, y.long(), reduction=reduction).sum()

    assert_trains_like(forward, reference, X, CLASSES.to(dtype), w=parameter(4, 4))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_identity_loss_reduces_and_marks(reduction):
    def forward(m, x):
        return poptorch.identity_loss((x @ m.w) ** 2, reduction)

    def reference(m, x):
        values = (x @ m.w) ** 2
        return values.mean() if reduction == "mean" else values.sum()

    assert_trains_like(forward, reference, X, w=parameter(4, 4))


def test_identity_loss_outside_an_executor_is_a_differentiable_reduction():
    x = torch.tensor([1.0, 3.0], requires_grad=True)
    loss = poptorch.identity_loss(x * x, "mean")
    loss.backward()
    assert loss.item() == 5 and x.grad.tolist() == [1, 3]
    assert poptorch.identity_loss(x, "none").tolist() == [1, 3]
    with pytest.raises(AssertionError, match="Unsupported reduction type!"):
        poptorch.identity_loss(x, "max")


def test_no_loss():
    with pytest.raises(poptorch.Error, match="Couldn't find a loss in graph!"):
        train(lambda m, x: (x * m.w).mean(), X)


@pytest.mark.parametrize("used", [True, False])
def test_two_losses_even_if_one_is_only_a_metric(used):
    def forward(m, x):
        first, second = F.mse_loss(x * m.w, x), F.l1_loss(x * m.w, x)
        return (first, second) if used else first

    text = (
        "Multiple independent losses found in graph. Graph must have one final loss. Wrap final graph loss in "
        "poptorch.identity_loss."
    )
    with pytest.raises(poptorch.Error, match=text):
        train(forward, X)


NOT_LOSSES = {
    "huber": lambda h, y: F.huber_loss(h, 2 * h),
    "gaussian_nll": lambda h, y: F.gaussian_nll_loss(h, 2 * h, torch.ones_like(h)),
    "multi_margin": lambda h, y: F.multi_margin_loss(h, y),
}


@pytest.mark.parametrize("name", NOT_LOSSES)
def test_some_functions_of_torch_are_losses_only_through_identity_loss(name):
    with pytest.raises(poptorch.Error, match="Couldn't find a loss"):
        train(lambda m, x, y: NOT_LOSSES[name](x * m.w, y), X, CLASSES.clamp(min=0))

    def forward(m, x, y):
        return poptorch.identity_loss(NOT_LOSSES[name](x @ m.w, y), "none")

    assert_trains_like(
        forward, lambda m, x, y: NOT_LOSSES[name](x @ m.w, y), X, CLASSES.clamp(min=0), w=parameter(4, 4)
    )


def test_losses_are_found_when_the_model_is_compiled():
    model = Body(lambda m, x: (x * m.w).mean(), w=parameter(4))
    with pytest.raises(poptorch.Error, match="Couldn't find a loss in graph!"):
        poptorch.trainingModel(model).compile(X)
    assert poptorch.inferenceModel(model)(X).dim() == 0  # inference needs none


def test_any_other_reduction_is_refused_while_tracing():
    with pytest.raises(AssertionError, match="Unsupported reduction type!"):
        train(lambda m, x: poptorch.identity_loss(x * m.w, "max"), X)


def test_a_loss_module_with_settings():
    smooth = torch.nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=2)
    assert_trains_like(
        lambda m, x, y: smooth(x @ m.w, y),
        lambda m, x, y: smooth(x @ m.w, y),
        X,
        CLASSES.clamp(min=0),
        w=parameter(4, 4),
    )


def test_a_loss_that_feeds_a_loss_is_an_ordinary_value():
    def forward(m, x, y):
        return poptorch.identity_loss(F.mse_loss(x @ m.w, y) + 2 * F.l1_loss(x @ m.w, y), "none")

    def reference(m, x, y):
        return F.mse_loss(x @ m.w, y) + 2 * F.l1_loss(x @ m.w, y)

    assert_trains_like(forward, reference, X, Y, w=parameter(4, 4))


def test_a_loss_feeds_another_through_memory():
    def forward(m, x, y):
        parts = torch.zeros(2)
        parts[0] = F.mse_loss(x @ m.w, y)
        parts[1] = F.l1_loss(x @ m.w, y)
        return poptorch.identity_loss(parts, "sum")

    def reference(m, x, y):
        return F.mse_loss(x @ m.w, y) + F.l1_loss(x @ m.w, y)

    assert_trains_like(forward, reference, X, Y, w=parameter(4, 4))


def test_losses_added_in_place_as_over_slices_of_a_sequence():
    def forward(m, x, y):
        loss = torch.zeros(())
        for part in range(3):
            loss += F.mse_loss(x[2 * part : 2 * part + 2] @ m.w, y[2 * part : 2 * part + 2], reduction="sum")
        loss /= 6
        return poptorch.identity_loss(loss, "none")

    def reference(m, x, y):
        return F.mse_loss(x @ m.w, y, reduction="sum") / 6

    assert_trains_like(forward, reference, X, Y, w=parameter(4, 4))


@pytest.mark.parametrize("in_place", [False, True])
def test_what_happens_after_the_loss_changes_the_value_but_not_the_gradient(in_place):
    def forward(m, x, y):
        loss = poptorch.identity_loss(F.mse_loss(x @ m.w, y), "none")
        if in_place:
            loss *= 5
        else:
            loss = loss * 5
        return loss + (m.other**2).sum()

    def reference(m, x, y):
        return F.mse_loss(x @ m.w, y) + 0 * m.other.sum()

    assert_trains_like(forward, reference, X, Y, w=parameter(4, 4), other=parameter(3))


def test_the_value_after_the_loss_is_returned():
    def forward(m, x, y):
        loss = F.mse_loss(x * m.w, y)
        loss *= 5
        return loss + 1

    value = train(forward, X, Y)
    torch.testing.assert_close(value, F.mse_loss(X, Y) * 5 + 1)


def test_the_position_among_the_outputs_does_not_matter():
    def forward(m, x, y):
        loss = F.mse_loss(x @ m.w, y)
        return {"aux": (x @ m.w).sum(), "rest": [loss.detach() * 0, loss]}

    assert_trains_like(forward, lambda m, x, y: F.mse_loss(x @ m.w, y), X, Y, w=parameter(4, 4))


def test_a_loss_that_is_not_returned_is_still_the_loss():
    def forward(m, x, y):
        F.mse_loss(x @ m.w, y)
        return x + 0

    assert_trains_like(forward, lambda m, x, y: F.mse_loss(x @ m.w, y), X, Y, w=parameter(4, 4))


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_class_weights_are_refused(loss):
    with pytest.raises(poptorch.Error, match="class weights of .* are not supported"):
        train(lambda m, x, y: loss(x * m.w, y, weight=torch.ones(4)), X, CLASSES)


def test_computed_without_grad_passes_no_gradient_on():
    def forward(m, x, y):
        with torch.no_grad():
            scale = (x @ m.w).abs().mean()
        return F.mse_loss(x @ m.w * scale, y)

    assert_trains_like(forward, forward, X, Y, w=parameter(4, 4))


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        ctx.save_for_backward(x)
        return x.sin(), x + 0

    @staticmethod
    def backward(ctx, grad, grad_x):
        (x,) = ctx.saved_tensors
        return -ctx.factor * grad * x + grad_x, None


def test_the_backward_of_an_autograd_function_is_kept():
    def forward(m, x, y):
        a, b = _Reversed.apply(x @ m.w, 3.0)
        return F.mse_loss(a + b, y)

    assert_trains_like(forward, forward, X, Y, w=parameter(4, 4))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_of_torch_are_a_part_of_the_program(reentrant):
    def forward(m, x, y):
        hidden = torch.utils.checkpoint.checkpoint(lambda x: torch.tanh(x @ m.w), x, use_reentrant=reentrant)
        return F.mse_loss(hidden, y)

    def reference(m, x, y):
        return F.mse_loss(torch.tanh(x @ m.w), y)

    assert_trains_like(forward, reference, X, Y, w=parameter(4, 4))


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return 7 * grad


def test_an_autograd_function_that_returns_its_input():
    def forward(m, x, y):
        h = x @ m.w
        return F.mse_loss(_Straight.apply(h) + h, y)

    assert_trains_like(forward, forward, X, Y, w=parameter(4, 4))


class _Sparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return None, x * 2, "note"

    @staticmethod
    def backward(ctx, _, grad, note):
        return 5 * grad


def test_an_autograd_function_that_returns_more_than_tensors():
    def forward(m, x, y):
        nothing, doubled, note = _Sparse.apply(x @ m.w)
        assert nothing is None and note == "note"
        return F.mse_loss(doubled, y)

    assert_trains_like(forward, forward, X, Y, w=parameter(4, 4))


def test_frozen_parameters_do_not_move():
    found = gradient_of(
        lambda m, x, y: F.mse_loss(x @ m.w @ m.frozen, y),
        X,
        Y,
        w=parameter(4, 4),
        frozen=torch.nn.Parameter(torch.ones(4, 4), requires_grad=False),
    )
    assert found["frozen"].abs().max() == 0 < found["w"].abs().max()


def test_a_model_without_anything_to_train_runs():
    frozen = torch.nn.Parameter(torch.ones(4, 4), requires_grad=False)
    found = gradient_of(lambda m, x, y: F.mse_loss(x @ m.frozen, y), X, Y, frozen=frozen)
    assert found["frozen"].abs().max() == 0
