"""Recording of forward(): every operation as it is, and nothing of the trace left in the model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import Body, assert_trains_like, gradient_of, infer
from zoo import ZOO

import poptorch
from poptorch.engine.tracing import export as tracing
from poptorch.engine.tracing import recording

X = torch.arange(6.0).view(2, 3)


class Unequal(torch.nn.Module):
    """Blocks of one class and one shape of weights that do not compute the same."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(5))
        self.layers[1].scale = 3.0
        self.layers[2].eval()
        self.layers[3].register_forward_hook(lambda module, inputs, output: output - 1)
        self.drop = torch.nn.Dropout(1.0)
        self.calls = 0

    def forward(self, x, y):
        for index, layer in enumerate(self.layers):
            self.calls += 1
            x = layer(x) * getattr(layer, "scale", 1.0)
            if index % 2:
                x = torch.tanh(x) + index
            if layer.training and self.calls == 5:
                x = x + self.drop(x)
        return F.mse_loss(x, y)


def test_blocks_that_look_equal_are_traced_one_by_one():
    x, y = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(3, 4)
    model, reference = Unequal(), Unequal()
    loss = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=1.0))(x, y)
    expected = reference(x, y)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for (name, left), right in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(left.detach(), right.detach() - right.grad, msg=name)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_graph_is_that_of_export(name, monkeypatch):
    """Operations, arguments, shapes and the modules they are in; a switch of cuDNN's apart, which export turns off."""
    graphs = []

    def listed(trace, *args):
        traced = trace(*args)
        graphs.append([_described(node) for node in traced.graph.nodes if node.op == "call_function"])
        return traced

    make, inputs = ZOO[name]
    data = [each(4, torch.Generator().manual_seed(0)) for each in inputs]
    recorded, lifted = tracing._recorded, tracing._lifted
    monkeypatch.setattr(tracing, "_lifted", lambda *args: listed(lifted, *args))
    monkeypatch.setattr(tracing, "_recorded", lambda *args: listed(recorded, *args))
    poptorch.trainingModel(make().float()).compile(*data)
    if len(graphs) == 2 or name == "written_slices":  # which only export follows
        return
    monkeypatch.setattr(tracing, "_recorded", lambda *args: _refuse())
    poptorch.trainingModel(make().float()).compile(*data)
    assert graphs[0] == graphs[1] and graphs[0]


def _refuse():
    raise recording.NotRecorded("refused")


def _described(node):
    args = torch.fx.node.map_arg(node.args, lambda source: source.op == "placeholder" or str(source.target))
    value = node.meta["val"]
    shape = (value.shape, value.dtype, value.stride()) if isinstance(value, torch.Tensor) else None
    args = [argument for argument in args if not isinstance(argument, bool)] if "norm" in str(node.target) else args
    return str(node.target), str(args), shape


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clone().t_() + 1,
        lambda x: x.clone().unsqueeze_(0).squeeze_(0).transpose_(0, 1) * 2,
        lambda x: torch.mul(x, 2, out=torch.empty(2, 3)) + x,
        lambda x: torch.aminmax(x, dim=1).max - x.split([1, 2], 1)[1].sum(1),
        lambda x: x.new_tensor([1.0, 2.0, 3.0]).mul_(2) + x,
        lambda x: torch.stack([x, x.clone().fill_(2)])[1] + torch.arange(3) + torch.eye(3)[1],
        lambda x: torch.einsum("ij,kj->ik", x, x).flip(0).cumsum(1),
    ],
)
def test_operations_in_place_and_in_unusual_forms(function):
    assert torch.equal(infer(lambda m, x: function(x), X), function(X))


def test_a_program_of_constants_alone():
    made = infer(lambda m: torch.tensor([1.0, 2.0]) * 3 + torch.arange(2) + torch.tensor([[1.0], [2.0]]))
    assert made.tolist() == [[4, 8], [5, 9]]


def test_gradients_pass_through_writes_into_views():
    def forward(m, x):
        h = torch.zeros(2, 3) + x * m.w
        h[:, 1:].mul_(m.w[1:] * 2)
        h.t()[0] += m.w[0]
        return poptorch.identity_loss(h, "sum")

    def reference(m, x):
        h = x.double() * m.w
        return (h[:, 1:] * m.w[1:] * 2).sum() + h[:, 0].sum() + 2 * m.w[0]

    assert_trains_like(forward, reference, X, w=torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])))


def test_what_depends_on_values_inside_goes_through_export():
    def forward(m, x):
        x = x * m.w
        x[x > 4] = 0.0
        return poptorch.identity_loss(x, "sum")

    assert gradient_of(forward, X, w=torch.nn.Parameter(torch.ones(3)))["w"].tolist() == [3, 5, 2]


def test_an_operator_of_higher_order_is_refused_by_name():
    def forward(m, x):
        return torch.ops.higher_order.cond(x.sum() > 0, lambda x: (x + 1,), lambda x: (x - 1,), (x,))[0]

    with pytest.raises(poptorch.Error, match="could not be traced.*cond"):
        infer(forward, X)


def test_a_library_knows_that_it_is_traced():
    def forward(m, x):
        return x if torch.compiler.is_compiling() and torch.compiler.is_exporting() else x / 0

    assert torch.equal(infer(forward, X), X) and not torch.compiler.is_compiling()


def test_attributes_that_hold_tensors_of_the_trace_become_what_they_were():
    log = []

    def forward(m, x):
        log.append("called")
        m.seen, m.notes, m.kept = m.notes, [], x + m.w
        return m.kept

    model = Body(forward, w=torch.nn.Parameter(torch.ones(3)))
    model.notes, model.kept = log, "before"
    executor = poptorch.inferenceModel(model)
    executor(X)
    assert executor.model.kept == "before" and executor.model.notes == []
    assert executor.model.seen is log and log == ["called"]


def _removes(m, x):
    del m.first
    return x


def _fails(m, x):
    m.kept = x + m.w
    raise KeyError("the program's")


@pytest.mark.parametrize(("forward", "error"), [(_removes, poptorch.Error), (_fails, KeyError)])
def test_a_program_that_fails_leaves_the_model_as_it_was(forward, error):
    model = Body(forward, first=torch.zeros(1), w=torch.nn.Parameter(torch.ones(3)), last=torch.zeros(1))
    executor = poptorch.inferenceModel(model)
    with pytest.raises(error):
        executor(X)
    for module in (model, executor.model):
        assert dict(module.named_buffers()).keys() == {"first", "last"} and not hasattr(module, "kept")
        assert not any(isinstance(t, torch._subclasses.FakeTensor) for t in module.state_dict().values())
    assert torch.nn.Module.__call__.__name__ == "_wrapped_call_impl"
