"""Operations on host tensors alone inside forward(): ordinary Python while it is traced (spec section 11)."""

from __future__ import annotations

import pytest
import torch
from programs import Body, infer, make_options, train

import poptorch
from poptorch.engine.tracing import export as tracing
from poptorch.engine.tracing import recording

X = torch.arange(6.0).view(2, 3)
TWO, FLAG, SIZES = torch.tensor(2), torch.tensor(True), torch.tensor([3, 2])
HALF = torch.tensor([0.5])


class Counter(torch.nn.Module):
    """Of the user guide: an attribute that is no buffer."""

    def __init__(self):
        super().__init__()
        self.i = torch.tensor([0.0])

    def forward(self):
        self.i += 1
        return self.i


def test_a_counter_that_is_no_buffer_counts_while_forward_is_traced(capsys):
    model = Counter()
    executor = poptorch.inferenceModel(model)
    assert [executor().tolist(), executor().tolist()] == [[1.0], [1.0]]
    assert model.i.tolist() == executor.model.i.tolist() == [1.0]
    assert "Output expected to be on the IPU but is on cpu" in capsys.readouterr().err


def test_what_is_returned_is_a_constant_of_its_own():
    model = Counter()
    executor = poptorch.inferenceModel(model)
    executor().fill_(7)
    model.i.fill_(8)
    assert executor().tolist() == [1.0]


VALUES = {
    "item": (lambda m, x: x * TWO.item(), 2 * X),
    "int": (lambda m, x: x * int(m.k), 3 * X),
    "float": (lambda m, x: x + float(HALF), X + 0.5),
    "branch": (lambda m, x: x + 1 if FLAG else x, X + 1),
    "comparison": (lambda m, x: x + 1 if m.k * 2 > TWO else x, X + 1),
    "range": (lambda m, x: sum(x for _ in range(TWO)), 2 * X),
    "tolist": (lambda m, x: x.view(SIZES.tolist()), X.view(3, 2)),
    "numpy": (lambda m, x: x * float(SIZES.numpy().sum()), 5 * X),
    "iteration": (lambda m, x: x.view([int(size) for size in SIZES]), X.view(3, 2)),
    "arithmetic": (lambda m, x: x * ((SIZES.float() @ SIZES.float()).sqrt().round().int() + TWO).item(), 6 * X),
    "attributes": (lambda m, x: x * SIZES.view(1, 2).T.data[0].item(), 3 * X),
    "slice": (lambda m, x: x[TWO - 1 :, m.k - 2 : m.k], X[1:, 1:3]),
    "index": (lambda m, x: x[TWO - 1], X[1]),
    "index among others": (lambda m, x: x[:, TWO], X[:, 2]),
    "sizes": (lambda m, x: x.reshape(m.k, TWO).repeat(TWO, 1).narrow(0, TWO, 2), X.view(3, 2).repeat(2, 1)[2:4]),
    "padding": (lambda m, x: torch.nn.functional.pad(x, (TWO, 0)), torch.nn.functional.pad(X, (2, 0))),
    "made on the device": (
        lambda m, x: x + torch.full((1, m.k), TWO) + torch.zeros(m.k) + torch.arange(m.k),
        X + 2 + torch.arange(3),
    ),
    "like": (lambda m, x: x.view(3, 2) + torch.zeros_like(SIZES) + torch.full_like(SIZES, 2), X.view(3, 2) + 2),
    "moved": (
        lambda m, x: x.view(3, 2) * (SIZES + 1).to("ipu") + torch.tensor(HALF),
        X.view(3, 2) * torch.tensor([4, 3]) + 0.5,
    ),
    "moved to another tensor's device": (lambda m, x: x * TWO.float().to(x.device), 2 * X),
    "made on the host": (lambda m, x: x * torch.ones(3, device="cpu").sum().item(), 3 * X),
    "a host constructor": (lambda m, x: x.view((torch.LongTensor([2, 1]) + 1).tolist()), X.view(3, 2)),
    "written": (lambda m, x: x * _identity(3).trace().item(), 3 * X),
    "a layer that is not registered": (lambda m, x: x * m.hidden[0](torch.zeros(1, device="cpu")).item(), 4 * X),
    "sparse": (lambda m, x: x * torch.sparse.mm(ROWS.to_sparse(), ROWS).sum().item(), 3 * X),
    "no_grad": (lambda m, x: x * _no_grad(), 2 * X),
}
ROWS = torch.eye(3)


def _identity(size):
    matrix = torch.zeros(size, size, device="cpu")
    for i in range(size):
        matrix[i, i] = 1
    return matrix


def _no_grad():
    with torch.no_grad():
        return (TWO * 1).item()


def _layer():
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.bias, 4.0)
    return layer


class Attributes(Body):
    """Has tensors that are neither parameters nor buffers."""

    def __init__(self, function):
        super().__init__(function, hidden=[_layer()])
        self.__dict__["k"] = torch.tensor(3)


@pytest.mark.parametrize("name", VALUES)
def test_values_of_host_tensors_are_known(name):
    function, expected = VALUES[name]
    torch.testing.assert_close(poptorch.inferenceModel(Attributes(function))(X), expected, check_dtype=False)


MIXED = {
    "sum": lambda x: x + TWO,
    "after an operation": lambda x: x * (SIZES.float() * 2).sum(),
    "of a type": lambda x: x * TWO.to(torch.float32),
    "to the host": lambda x: x * TWO.to("cpu"),
    "as_tensor": lambda x: x * torch.as_tensor(TWO),
    "in place": lambda x: x.mul_(HALF),
    "into a host tensor": lambda x: HALF.clone().add_(x.sum()),
    "an index of several": lambda x: x[:, SIZES - 1],
    "a loss": lambda x: poptorch.identity_loss(HALF, "none") + x,
    "a checkpoint": lambda x: poptorch.recomputationCheckpoint(HALF) + x,
}


@pytest.mark.parametrize("name", MIXED)
def test_mixing_one_with_a_tensor_of_the_program_is_an_error(name):
    with pytest.raises(poptorch.Error, match=r"Expected an IPU tensor but got tensor\(device=cpu\)"):
        infer(lambda m, x: MIXED[name](x), X)


def test_values_of_the_program_are_not_known_for_all_that():
    with pytest.raises(poptorch.Error, match=r"item\(\) of a tensor was asked for"):
        infer(lambda m, x: x * (x.sum() * TWO.item()).item(), X)


def test_what_is_moved_is_a_constant_as_it_was_then():
    state = torch.zeros(3)

    def forward(m, x):
        before = state.to("ipu")
        state.add_(1)
        return x + before, x + state.to("ipu")

    executor = poptorch.inferenceModel(Body(forward))
    for _ in range(2):
        before, after = executor(X)
        assert torch.equal(before, X) and torch.equal(after, X + 1)
        state.fill_(9)


def test_a_program_that_is_traced_a_second_time_counts_once(monkeypatch):
    """forward() runs a second time then, and nobody may notice."""
    total, table = torch.zeros(1), torch.zeros(2, 2)

    def forward(m, x):
        total.add_(1)
        table[0] += 1
        m.seen = (total * 10).tolist()
        return x * total.item() * table[0, 0].item()

    monkeypatch.setattr(tracing, "record", _run_and_refuse)
    executor = poptorch.inferenceModel(Body(forward))
    assert torch.equal(executor(X), X)
    assert total.item() == 1 and table.tolist() == [[1, 1], [0, 0]] and executor.model.seen == [10.0]


def _run_and_refuse(entry, model, leaves):
    recording.record(entry, model, leaves)
    raise recording.NotRecorded("refused")


def test_in_training_too():
    scale = torch.tensor([1.0])

    def forward(m, x):
        scale.mul_(2)
        return poptorch.identity_loss((m.w * x * scale.item()).sum(), "none")

    assert train(forward, torch.ones(4), options=make_options(2, 2)).item() == 2
    assert scale.item() == 2
