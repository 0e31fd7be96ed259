"""recomputationCheckpoint: activations are dropped and computed again (spec section 8)."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from programs import Body, infer, make_options
from torch.utils._python_dispatch import TorchDispatchMode

import poptorch
from poptorch.engine.as_one.number import VARIABLE

BLOCKS, WIDTH, ROWS = 8, 32, 512


class Block(torch.nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.up, self.down = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x):
        return x + self.dropout(self.down(F.gelu(self.up(F.layer_norm(x, (WIDTH,))))))


class Deep(torch.nn.Module):
    def __init__(self, recompute: bool, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(Block(dropout) for _ in range(BLOCKS))
        if recompute:
            for block in self.blocks:
                block.register_forward_hook(lambda module, inputs, out: poptorch.recomputationCheckpoint(out))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return poptorch.identity_loss(x**2, "mean")


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages made inside the mode that are alive at a time, and how often each operator ran."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.calls: dict[str, int] = {}
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage):
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone():
            self._known.discard(key)
            self.live -= size

        weakref.finalize(storage, gone)


def train(recompute: bool, dropout: float = 0.0, counted: bool = False):
    """(loss, weights, executor) after two calls, or with `counted` the LiveBytes of the second."""
    model = Deep(recompute, dropout)
    options = make_options(1, 2).randomSeed(3)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(2 * ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    executor(x)
    if not counted:
        return executor(x), model.state_dict(), executor
    with LiveBytes() as seen:
        executor(x)
    return seen


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_the_same_dropout_included(dropout):
    plain, recomputed = train(False, dropout), train(True, dropout)
    assert torch.equal(plain[0], recomputed[0])
    assert all(torch.equal(plain[1][name], recomputed[1][name]) for name in plain[1])


def test_the_peak_of_live_bytes_falls_by_half_and_each_block_runs_twice(monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")  # calls are counted for each micro-batch
    plain, recomputed = train(False, counted=True), train(True, counted=True)
    assert plain.calls["native_layer_norm"] == 2 * BLOCKS  # two micro-batches
    assert recomputed.calls["native_layer_norm"] == 2 * 2 * BLOCKS
    assert recomputed.peak <= plain.peak / 2


def test_each_block_is_a_segment():
    executor = train(True)[2]
    (stage,) = executor.program.stages
    assert [segment.recompute for segment in stage.segments] == [True] * BLOCKS + [False]


def test_several_tensors_and_stages():
    def forward(m, x):
        poptorch.Block.start("a", ipu_id=0)
        left, right = poptorch.recomputationCheckpoint(x @ m.w, torch.tanh(x))
        poptorch.Block.start("b", ipu_id=1)
        (out,) = poptorch.recomputationCheckpoint([left * right.exp()])
        return poptorch.identity_loss(out, "sum")

    x = torch.randn(3, 4)
    w = torch.nn.Parameter(torch.randn(4, 4))
    reference = w.detach().clone().requires_grad_()
    sum(((part @ reference) * torch.tanh(part).exp()).sum() / 3 for part in x.chunk(3)).backward()
    model = Body(forward, w=w)
    before = w.detach().clone()
    executor = poptorch.trainingModel(model, make_options(1, 3), torch.optim.SGD(model.parameters(), lr=1.0))
    executor(x)
    torch.testing.assert_close(before - model.w.detach(), reference.grad)
    assert [[segment.recompute for segment in stage.segments] for stage in executor.program.stages] == [
        [True],
        [True, False],
    ]


def test_a_segment_that_changes_a_buffer_runs_once():
    def forward(m, x):
        m.count.add_(1)
        hidden = poptorch.recomputationCheckpoint(torch.tanh(x * m.w + m.count))
        return poptorch.identity_loss(hidden, "sum")

    model = Body(forward, w=torch.nn.Parameter(torch.ones(())), count=torch.zeros(()))
    poptorch.trainingModel(model, make_options(2))(torch.ones(2))
    assert model.count.item() == 2


def test_a_segment_whose_input_is_changed_afterwards_is_not_computed_again_from_it():
    def forward(m, x):
        hidden = x * m.w
        hidden = poptorch.recomputationCheckpoint(hidden)
        left = poptorch.recomputationCheckpoint((hidden + m.w).exp())
        hidden.add_(1)  # only what exp() returned is saved, so autograd sees nothing wrong
        return poptorch.identity_loss(left + hidden, "sum")

    w = torch.nn.Parameter(torch.tensor(0.5))
    reference = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([1.0, 2.0])
    ((x.double() * reference + reference).exp() + x * reference + 1).sum().backward()
    model = Body(forward, w=w)
    poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=1.0))(x)
    assert (0.5 - model.w.item()) == pytest.approx(reference.grad.item(), rel=1e-5)


def test_what_goes_in_comes_out():
    x, y = torch.ones(3), torch.zeros(3)
    assert poptorch.recomputationCheckpoint(x) is x
    assert poptorch.recomputationCheckpoint(x, y) == (x, y)
    assert poptorch.recomputationCheckpoint([x, y]) == [x, y]
    assert poptorch.recomputationCheckpoint((x, y)) == (x, y)
    assert [value.item() for value in poptorch.recomputationCheckpoint((x,))] == [1, 1, 1]  # split: a quirk
    for wrong in ((None,), (x, [y]), (x, None), ([x, 3],), ()):
        with pytest.raises(ValueError, match="All inputs must be tensors"):
            poptorch.recomputationCheckpoint(*wrong)
    assert infer(lambda m, x: poptorch.recomputationCheckpoint(x + 1), x).tolist() == [2, 2, 2]
