"""Buffers: changed in place once a micro-batch, kept on the device between calls (spec section 9)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from programs import Body, infer, make_options, train

import poptorch
from poptorch import notices


def test_a_buffer_changes_with_every_micro_batch_and_stays_on_the_device():
    def forward(m, x):
        m.count.add_(1)
        m.seen.copy_(x.sum())
        return m.count + 0

    model = Body(forward, count=torch.zeros(1), seen=torch.zeros(()))
    executor = poptorch.inferenceModel(model, make_options(3))
    assert executor(torch.arange(3.0)).tolist() == [1, 2, 3]
    assert executor(torch.arange(3.0)).tolist() == [4, 5, 6]
    assert model.count.item() == 0  # inference never writes back by itself
    executor.copyWeightsToHost()
    assert model.count.item() == 6 and model.seen.item() == 2
    model.count.fill_(100)
    assert executor(torch.arange(3.0)).tolist() == [7, 8, 9]
    executor.copyWeightsToDevice()
    assert executor(torch.arange(3.0)).tolist() == [101, 102, 103]


def test_detaching_loses_what_inference_did_to_buffers():
    def forward(m, x):
        m.count.add_(1)
        return x + m.count

    executor = poptorch.inferenceModel(Body(forward, count=torch.zeros(1)))
    assert executor(torch.zeros(1)).item() == 1
    executor.detachFromDevice()
    executor.attachToDevice()
    assert executor(torch.zeros(1)).item() == 1


def test_a_cache_is_written_at_a_position_that_counts_on():
    def forward(m, x):
        m.cache.index_copy_(0, m.position.long(), x)
        m.position.add_(1)
        return m.cache.sum() + 0 * x.sum()

    executor = poptorch.inferenceModel(Body(forward, cache=torch.zeros(4, 2), position=torch.zeros(1)), make_options(4))
    assert executor(torch.ones(4, 2)).tolist() == [2, 4, 6, 8]


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)

    def forward(self, x, y):
        return F.mse_loss(self.norm(self.linear(x)), y)


def test_batch_norm_follows_every_micro_batch():
    model, reference = Normed(), Normed()
    x, y = torch.randn(12, 3), torch.randn(12, 4)
    for k in range(2):
        for part in range(2):
            rows = slice(6 * k + 3 * part, 6 * k + 3 * part + 3)
            (reference(x[rows], y[rows]) / 2).backward()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter -= 0.01 * parameter.grad
                parameter.grad = None
    poptorch.trainingModel(model, make_options(2, 2))(x, y)
    assert model.norm.num_batches_tracked.item() == 4
    for name, expected in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_in_inference_is_what_its_mode_says():
    x, y = torch.randn(6, 3), torch.randn(6, 4)
    model = Normed()
    before = copy.deepcopy(model.norm.state_dict())
    expected = Normed().eval()(x, y)
    model.eval()
    torch.testing.assert_close(poptorch.inferenceModel(model)(x, y), expected.detach())
    assert all(torch.equal(model.norm.state_dict()[name], value) for name, value in before.items())


def test_an_update_that_depends_on_parameters_does_not_join_micro_batches():
    def forward(m, x):
        hidden = x * m.w
        m.average.mul_(0.5).add_(hidden.mean())
        return poptorch.identity_loss((hidden - m.average) ** 2, "sum")

    model = Body(forward, w=torch.nn.Parameter(torch.ones(())), average=torch.zeros(()))
    executor = poptorch.trainingModel(model, make_options(2, 3), torch.optim.SGD(model.parameters(), lr=0.0))
    executor(torch.ones(6))
    executor(torch.ones(6))
    expected = 0.0
    for _ in range(12):
        expected = 0.5 * expected + 1
    assert model.average.item() == pytest.approx(expected)


def test_reassignment_is_refused():
    def forward(m, x):
        m.count = m.count + 1
        return x + m.count

    text = (
        "Buffer count is reassigned within the model when calling the forward method. This is not supported. "
        "Consider using self.count.copy_\\(src\\) to copy data from a source tensor, where src is the name of the "
        "source tensor."
    )
    with pytest.raises(poptorch.Error, match=text):
        infer(forward, torch.ones(2), count=torch.zeros(1))


def test_removal_is_refused():
    def forward(m, x):
        del m.count
        return x + 1

    with pytest.raises(poptorch.Error, match="Buffer count is removed from the model when calling the forward method."):
        infer(forward, torch.ones(2), count=torch.zeros(1))


def test_a_parameter_is_neither_reassigned_nor_written():
    def reassigned(m, x):
        m.w = torch.nn.Parameter(torch.ones(1))
        return x * m.w

    def written(m, x):
        with torch.no_grad():
            m.w.clamp_(0, 1)
        return x * m.w

    with pytest.raises(poptorch.Error, match="Parameter w is reassigned"):
        infer(reassigned, torch.ones(2), w=torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(poptorch.Error, match="changes the parameter w in place"):
        infer(written, torch.ones(2), w=torch.nn.Parameter(torch.zeros(1)))


def test_section9_a_copy_of_a_buffer_for_each_replica():
    def forward(m, x):
        left, right = m.table.split(1)
        right += x.sum()
        return m.table.sum() + 0

    model = Body(forward, table=torch.zeros(2), constant=torch.ones(1))
    executor = poptorch.inferenceModel(model, make_options(2, replicas=3).broadcastBuffers(False))
    # Replica r of iteration s gets input 3 s + r.
    assert executor(torch.arange(6.0)).tolist() == [0, 1, 2, 3, 5, 7]
    assert executor(torch.arange(6.0)).tolist() == [3, 6, 9, 6, 10, 14]
    executor.copyWeightsToHost()
    assert model.table.tolist() == [0, 6]  # replica 0's
    model.table.fill_(10)
    executor.copyWeightsToDevice()
    assert executor(torch.zeros(6)).tolist() == [20] * 6


def test_section9_batch_norm_of_replicas():
    x, y = torch.randn(12, 3), torch.randn(12, 4)
    model, reference = Normed(), Normed()
    options = make_options(2, replicas=2).broadcastBuffers(False)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.0))
    executor(x, y)
    for rows in (slice(0, 3), slice(6, 9)):  # replica 0's
        reference(x[rows], y[rows])
    torch.testing.assert_close(model.norm.running_mean, reference.norm.running_mean)
    torch.testing.assert_close(model.norm.running_var, reference.norm.running_var)


def test_batch_norm_needs_no_option_for_replicas():
    """Each replica has statistics of its own; the host gets the first one's."""
    x, y = torch.randn(12, 3), torch.randn(12, 4)
    model, reference = Normed(), Normed()
    executor = poptorch.trainingModel(model, make_options(2, replicas=2), torch.optim.SGD(model.parameters(), lr=0.0))
    executor(x, y)
    for rows in (slice(0, 3), slice(6, 9)):
        reference(x[rows], y[rows])
    for name, expected in reference.norm.state_dict().items():
        torch.testing.assert_close(model.norm.state_dict()[name], expected, rtol=1e-5, atol=1e-6)


def test_statistics_that_the_program_changes_itself_are_not_shared():
    def forward(m, x):
        m.norm.running_mean.mul_(0.5)
        return m.norm(x)

    with pytest.raises(poptorch.Error, match="does not support broadcasting buffers"):
        infer(forward, torch.ones(4, 3), options=make_options(replicas=2), norm=torch.nn.BatchNorm1d(3))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
@pytest.mark.parametrize("replicas", [1, 2])
def test_an_integer_buffer_is_a_constant(dtype, replicas, monkeypatch, capsys):
    monkeypatch.setattr(notices, "_said", set())

    def forward(m, x):
        m.n += 1
        m.n.mul_(2)
        return x + m.n

    model = Body(forward, n=torch.zeros(1, dtype=dtype))
    executor = poptorch.inferenceModel(model, make_options(3, replicas=replicas))
    for _ in range(2):
        assert executor(torch.zeros(3 * replicas)).tolist() == [2] * 3 * replicas
    executor.copyWeightsToHost()
    assert model.n.item() == 0
    assert capsys.readouterr().err.count("Integer buffer n is changed by forward()") == 1
    model.n.fill_(4)
    executor.copyWeightsToDevice()
    assert executor(torch.zeros(3 * replicas)).tolist() == [10] * 3 * replicas


def test_an_integer_buffer_is_a_constant_in_training():
    def forward(m, x):
        m.mask.index_fill_(0, m.at, True)
        m.at += 1
        return poptorch.identity_loss((m.w * x).sum() + m.mask.sum(), "none")

    options = make_options(1, 3, mode=poptorch.OutputMode.All)
    members = {"mask": torch.zeros(4, dtype=torch.bool), "at": torch.zeros(1, dtype=torch.int64)}
    assert train(forward, torch.zeros(3), options=options, **members).tolist() == [1, 1, 1]


def test_an_integer_buffer_of_a_native_operator_keeps_its_values():
    """PopTorch has no operators of this kind: what they write to is state, as the program means it."""
    library = torch.library.Library("test_buffers", "FRAGMENT")
    library.define("count(Tensor(a!) total, Tensor x) -> ()")
    library.impl("count", lambda total, x: total.add_(x.int()) and None, "CPU")
    torch.library.register_fake("test_buffers::count", lambda total, x: None, lib=library)

    def forward(m, x):
        torch.ops.test_buffers.count(m.n, x)
        return m.n + 0

    executor = poptorch.inferenceModel(Body(forward, n=torch.zeros(1, dtype=torch.int16)), make_options(3))
    assert executor(torch.ones(3)).tolist() == [1, 2, 3]
    assert executor(torch.ones(3)).tolist() == [4, 5, 6]


def test_section9_named_buffers_are_updated_alone():
    def forward(m, x):
        m.count.add_(1)
        return x * m.w + m.shift + m.count

    members = {"w": torch.nn.Parameter(torch.ones(1)), "shift": torch.zeros(1), "count": torch.zeros(1)}
    model = Body(forward, **members)
    options = make_options(replicas=2).broadcastBuffers(False).updatableNamedBuffers(["shift"])
    executor = poptorch.inferenceModel(model, options)
    with pytest.raises(poptorch.Error, match="has not been compiled"):
        executor.copyNamedBuffersToDevice()
    assert executor(torch.zeros(2)).tolist() == [1, 1]
    with torch.no_grad():
        for tensor in (model.w, model.shift, model.count):
            tensor.fill_(100)
    executor.copyNamedBuffersToDevice()
    assert executor(torch.ones(2)).tolist() == [103, 103]

    executor = poptorch.inferenceModel(Body(forward, **members))
    executor(torch.zeros(1))
    with pytest.raises(poptorch.Error, match="updatableNamedBuffers"):
        executor.copyNamedBuffersToDevice()
    with pytest.raises(poptorch.Error, match="no buffer 'other'"):
        infer(forward, torch.zeros(1), options=make_options().updatableNamedBuffers(["other"]), **members)


def test_replicas_cannot_share_a_buffer_that_changes():
    def forward(m, x):
        m.count.add_(1)
        return x + m.count

    with pytest.raises(poptorch.Error, match="PopTorch does not support broadcasting buffers. If your model is able"):
        infer(forward, torch.ones(2), options=make_options(replicas=2), count=torch.zeros(1))
    assert (
        infer(lambda m, x: x + m.count, torch.ones(2), options=make_options(replicas=2), count=torch.ones(1)).sum() == 4
    )


def test_views_and_parts_of_buffers_count_as_the_buffer():
    def forward(m, x):
        left, right = m.table.split(2)
        right[0] += x.sum()
        return left.sum() + right.sum()

    executor = poptorch.inferenceModel(Body(forward, table=torch.zeros(4)), make_options(3))
    assert executor(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, 3, 6]
    with pytest.raises(poptorch.Error, match="broadcasting buffers"):
        infer(forward, torch.ones(2), options=make_options(replicas=2), table=torch.zeros(4))
