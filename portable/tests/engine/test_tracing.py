"""forward() runs once, while the model is traced; what it may do then (spec section 1)."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from programs import Body, gradient_of, infer, make_options, train
from torch.fx import config

import poptorch
from poptorch import notices
from poptorch.engine.tracing import export as tracing
from poptorch.engine.tracing import recording


def test_forward_runs_once_on_one_micro_batch(capsys):
    calls = []

    def forward(m, x):
        print("in forward")
        calls.append((tuple(x.shape), poptorch.isRunningOnIpu()))
        return x + 1

    executor = poptorch.inferenceModel(Body(forward), make_options(4))
    for _ in range(3):
        assert torch.equal(executor(torch.ones(8, 2)), 2 * torch.ones(8, 2))
    assert calls == [((2, 2), True)] and not poptorch.isRunningOnIpu()
    assert capsys.readouterr().out == "in forward\n"


def test_where_nodes_come_from_is_recorded_as_ever_by_others(monkeypatch):
    """Tracing does without that, which takes a fifth of its time."""
    sources = []

    def forward(m, x):
        sources.append(config.do_not_emit_stack_traces)
        return x + 1

    for recorded in (False, True):
        monkeypatch.setattr(config, "do_not_emit_stack_traces", recorded)
        infer(forward, torch.ones(1))
        assert sources == [True] and config.do_not_emit_stack_traces is recorded
        sources.clear()
    monkeypatch.setattr(config, "do_not_emit_stack_traces", False)
    with pytest.raises(ZeroDivisionError):
        infer(lambda m, x: x + 1 // 0, torch.ones(1))
    assert config.do_not_emit_stack_traces is False


def test_python_branches_are_taken_once():
    flags = {"double": True}
    executor = poptorch.inferenceModel(Body(lambda m, x: x * 2 if flags["double"] else x))
    assert executor(torch.ones(1)).item() == 2
    flags["double"] = False
    assert executor(torch.ones(1)).item() == 2


def test_factories_and_ipu_devices():
    def forward(m, x):
        rows = torch.arange(x.shape[0]) + torch.zeros(x.shape[0], device="ipu") + torch.full((2,), 1.0, device="ipu:0")
        rows = rows + torch.ones(2, device=torch.device("ipu")) + torch.tensor([1, 2]) + torch.linspace(0, 1, 2)
        return rows.to("ipu") + x.to(device="ipu:0") + torch.ones(2, device=x.device)

    assert infer(forward, torch.zeros(2)).tolist() == [4.0, 7.0]


def packed(x):
    """Two sequences whose lengths depend on a value."""
    lengths = torch.stack([x.sum().long(), x.sum().long()])
    return torch.nn.utils.rnn.PackedSequence(x.view(2, 1), lengths)


@pytest.mark.parametrize(
    "name, ask",
    [
        ("item", lambda x: x.sum().item()),
        ("tolist", lambda x: x.tolist()),
        ("numpy", lambda x: x.numpy()),
        ("bool", lambda x: 1 if x.sum() > 0 else 0),
        ("int", lambda x: int(x.sum())),
        ("float", lambda x: float(x.sum())),
        ("index", lambda x: [1, 2, 3][x.sum().long()]),
        ("tensor", lambda x: torch.tensor([x.sum(), 1.0])),
        ("like", lambda x: x.new_tensor([x.sum()])),
        ("size", lambda x: torch.nn.utils.rnn.pad_packed_sequence(packed(x))[0].sum()),
        ("format", lambda x: float(f"{x.sum():.2f}")),
    ],
)
def test_values_of_the_device_are_not_to_be_had_in_forward(name, ask, capfd):
    def forward(m, x):
        return x * 0 + torch.tensor(ask(x))

    with pytest.raises(poptorch.Error, match="of a tensor was asked for in forward"):
        infer(forward, torch.ones(2))
    assert not poptorch.isRunningOnIpu()
    assert capfd.readouterr().err == ""  # nothing but the error
    assert infer(lambda m, x: x + 1, torch.ones(1)).item() == 2  # and the next model compiles


def test_a_host_tensor_is_no_operand():
    outside = torch.ones(2)
    with pytest.raises(poptorch.Error, match="Expected an IPU tensor but got tensor\\(device=cpu\\)"):
        infer(lambda m, x: x + outside, torch.ones(2))
    assert infer(lambda m, x: x + outside.to("ipu"), torch.ones(2)).tolist() == [2, 2]


def test_the_error_of_the_program_comes_through():
    class OwnError(Exception):
        pass

    def own(m, x):
        raise OwnError("mine")

    with pytest.raises(OwnError, match="mine"):
        infer(own, torch.ones(1))
    with pytest.raises(RuntimeError, match="reduction dim"):
        infer(lambda m, x: x @ torch.ones(3, 3), torch.ones(2, 2))
    assert not poptorch.isRunningOnIpu()


def test_int32_indices_and_labels():
    def forward(m, x, ids):
        picked = F.embedding(ids, m.table), torch.gather(x, 1, ids.view(2, 1)), F.one_hot(ids, 4)
        return (*picked, torch.take_along_dim(x, ids.view(2, 1), 1), x[torch.arange(2), ids], x.index_select(1, ids))

    x, ids, table = torch.randn(2, 4), torch.tensor([3, 1]), torch.randn(4, 2)
    found = infer(forward, x, ids.int(), table=torch.nn.Parameter(table))
    expected = forward(Body(None, table=torch.nn.Parameter(table)), x, ids)
    for left, right in zip(found, expected, strict=True):
        assert left.dtype in (torch.int32, torch.float32)
        assert torch.equal(left, right.to(left.dtype))


def test_autocast_has_no_effect_and_says_so(capsys):
    notices._said.clear()

    def forward(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x

    assert infer(forward, torch.ones(2, 2)).dtype == torch.float32
    assert "torch.autocast has no effect" in capsys.readouterr().err


def test_data_of_a_parameter_passes_no_gradient_on():
    def forward(m, x):
        return poptorch.identity_loss(x * m.w + m.w.data * 5, "sum")

    assert gradient_of(forward, torch.ones(1), w=torch.nn.Parameter(torch.ones(1)))["w"].item() == 1


def test_distributions_are_not_validated():
    def forward(m, x):
        normal = torch.distributions.Normal(x, torch.ones(2))
        return normal.log_prob(x + 1), normal.sample()

    log_prob, sample = infer(forward, torch.zeros(2, 2))
    torch.testing.assert_close(log_prob, torch.full((2, 2), -1.4189385))
    assert sample.std() > 0 and torch.distributions.Distribution._validate_args


SEEN = []


class Counting(torch.nn.Module):
    """Leaves something behind in Python wherever it can."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 2)
        self.inner.calls = 0
        self.inner.log = []

    def forward(self, x):
        print("forward")
        self.inner.calls += 1
        self.inner.log.append(self.inner.calls)
        self.inner.last = self.inner(x)
        SEEN.append(1)
        return self.inner.last * self.inner.calls


def refuse_after_forward(entry, model, leaves):
    """What recording does to programs that it follows to their end and then cannot make a graph of."""
    RECORD(entry, model, leaves)
    raise recording.NotRecorded("an output has an origin that tracing cannot follow")


RECORD = recording.record


@pytest.mark.parametrize("refused", [False, True])
def test_side_effects_of_python_are_seen_once(refused, monkeypatch, capsys):
    SEEN.clear()
    if refused:
        monkeypatch.setattr(tracing, "record", refuse_after_forward)
    model = Counting()
    executor = poptorch.inferenceModel(model)
    x = torch.randn(3, 2)
    for _ in range(3):
        torch.testing.assert_close(executor(x), torch.nn.functional.linear(x, *model.inner.parameters()).detach())
    assert (model.inner.calls, model.inner.log, SEEN) == (1, [1], [1])
    assert not isinstance(getattr(model.inner, "last", None), torch._subclasses.FakeTensor)
    assert capsys.readouterr().out == "forward\n"


class Everything(torch.nn.Module):
    """Tied weights, BatchNorm, dropout, a constant, an autograd function's neighbourhood: what recording must carry."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(7, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids, labels):
        x = self.norm(self.embedding(ids)) * torch.tensor([1.0, 2.0, 3.0, 4.0])
        return torch.nn.functional.cross_entropy(self.head(x), labels)


@pytest.mark.parametrize("exported", [False, True])
def test_a_program_trains_like_torch_whichever_way_it_is_traced(exported, monkeypatch):
    if exported:
        monkeypatch.setattr(tracing, "record", refuse_after_forward)
    model = Everything()
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    options = make_options(accumulation=2)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        ids, labels = torch.randint(0, 7, (2, 8), generator=generator)
        executor(ids, labels)
        optimizer.zero_grad()
        for part in range(2):
            (reference(ids[4 * part : 4 * part + 4], labels[4 * part : 4 * part + 4]) / 2).backward()
        optimizer.step()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)


def test_a_recorded_program_has_the_operations_of_an_exported_one(monkeypatch):
    """Composite operations stay whole, so that the passes recognise them."""

    def forward(m, x, y):
        q, k, v = m.projection(m.norm(x)).view(2, 3, 3, 2, 2).permute(2, 0, 3, 1, 4)
        x = F.gelu(x + F.dropout(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 3, 4), 0.1))
        return F.cross_entropy(m.projection(m.lstm(x)[0]).flatten(0, 1), y.flatten())

    x, y = torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.int64)
    found = []
    for way in (RECORD, refuse_after_forward):
        monkeypatch.setattr(tracing, "record", way)
        members = {"projection": torch.nn.Linear(4, 12), "norm": torch.nn.LayerNorm(4), "lstm": torch.nn.LSTM(4, 4)}
        executor = poptorch.trainingModel(Body(forward, **members))
        executor.compile(x, y)
        found.append([node["type"] for node in json.loads(executor._debugGetPopartIR())["maingraph"]])
    assert found[0] == found[1] and "aten.scaled_dot_product_attention.default" in found[0]


def test_what_nobody_can_trace_says_why():
    """An operator without a shape function that changes its argument: calling it once would not tell what it does."""
    library = torch.library.Library("com_example_tracing", "FRAGMENT")
    library.define("AddOne(Tensor(a!) x) -> Tensor")
    library.impl("AddOne", lambda x: x.add_(1) * 2, "CPU")
    with pytest.raises(poptorch.Error, match="could not be traced.*AddOne"):
        infer(lambda m, x: torch.ops.com_example_tracing.AddOne(x), torch.ones(1))


def test_no_grad_hides_neither_blocks_nor_results():
    def forward(m, x):
        poptorch.Block.start("a", ipu_id=0)
        with torch.no_grad():
            poptorch.Block.start("b", ipu_id=1)
            with torch.no_grad():
                x = x + 1
            y = x * 2
        return x + y, torch.is_grad_enabled()

    executor = poptorch.inferenceModel(Body(forward), make_options(2))
    out, enabled = executor(torch.zeros(2))
    assert out.tolist() == [3, 3] and enabled
    assert [stage.blocks for stage in executor.program.stages] == [("a",), ("b",)]


def test_name_scopes_and_attributes_have_no_effect_and_can_be_entered_again():
    attribute = poptorch.Attribute(__outline={"layer": "a"})

    def forward(m, x):
        for _ in range(2):
            with poptorch.NameScope("scope"), attribute:
                x = poptorch.nop(poptorch.set_available_memory(x, 0.5)) + 1
        return x

    assert infer(forward, torch.zeros(1)).item() == 2
    with pytest.raises(AssertionError):
        poptorch.nop(3)
    with pytest.raises(ValueError):
        poptorch.set_available_memory(torch.ones(1), 2.0)


def test_models_in_models():
    inner = Body(lambda m, x: (m.linear(x), x), linear=torch.nn.Linear(2, 2))

    def forward(m, x):
        first, x = m.inner(x)
        return first + m.inner(x)[0]

    x = torch.randn(3, 2)
    torch.testing.assert_close(infer(forward, x, inner=inner), 2 * inner.linear(x).detach())


def test_a_loss_may_use_several_views_and_writes():
    def forward(m, x):
        table = torch.zeros(4, 2)
        left = table[:2]
        left += x * m.w
        table.narrow(0, 2, 2).copy_(left * 2)
        return table + 0, poptorch.identity_loss(table.sum(), "sum")

    x = torch.arange(4.0).view(2, 2)
    table, loss = train(forward, x)
    assert torch.equal(table, torch.cat([x, 2 * x])) and loss.item() == 18


def test_a_model_with_keyword_outputs_of_transformers_kind():
    class Output(dict):
        def __init__(self, **values):
            super().__init__(values)
            self.__dict__ = self

    def forward(m, x):
        return Output(first=x + 1, second=None)

    found = infer(forward, torch.ones(2))
    assert found["first"].tolist() == [2, 2] and found["second"] is None


@pytest.mark.parametrize("empty", [lambda x: x[:0], lambda x: x.split([2, 0])[1]])
def test_tensors_without_elements_are_refused(empty):
    with pytest.raises(poptorch.Error, match="Zero-sized tensors are unsupported \\(Got shape \\[0"):
        infer(lambda m, x: torch.cat([x, empty(x)]), torch.ones(2))


def test_a_tensor_made_empty_may_begin_a_list():
    def forward(m, x):
        empty = torch.tensor([], dtype=x.dtype, device=x.device)
        return torch.cat([empty, x]), torch.cat([empty.clone(), x])

    assert [out.tolist() for out in infer(forward, torch.ones(2))] == [[1, 1], [1, 1]]


def test_a_transformer_takes_its_mask_as_given():
    """torch.nn.Transformer looks at a mask's values to see whether it is the causal one."""
    torch.manual_seed(0)
    layers = torch.nn.Transformer(8, 2, 1, 1, 16, 0.0, batch_first=True).eval()

    def forward(m, source, target):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return m.layers(source, target, tgt_mask=mask)

    source, target = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    expected = forward(Body(forward, layers=layers), source, target)
    found = infer(forward, source, target, layers=layers)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
    later = target.clone()
    later[:, -1] += 1
    assert torch.equal(infer(forward, source, later, layers=layers)[:, :-1], found[:, :-1])


def test_backward_hooks_of_modules_have_no_effect_and_say_so(monkeypatch, capsys):
    monkeypatch.setattr(notices, "_said", set())
    layer, seen = torch.nn.Linear(2, 2), []
    layer.register_full_backward_hook(lambda *given: seen.append(given))
    train(lambda m, x: poptorch.identity_loss(m.layer(x) * m.w, "sum"), torch.ones(2, 2), layer=layer)
    assert not seen and "Backward hooks" in capsys.readouterr().err
    layer(torch.ones(1, 2)).sum().backward()  # on the host they do
    assert seen


@pytest.mark.parametrize("where", ["register_hook", "register_post_accumulate_grad_hook", "forward"])
def test_hooks_on_gradients_have_no_effect_and_say_so(where, monkeypatch, capsys):
    monkeypatch.setattr(notices, "_said", set())
    layer, seen = torch.nn.Linear(2, 2), []
    if where != "forward":
        getattr(layer.weight, where)(seen.append)

    def forward(m, x):
        h = m.layer(x)
        if where == "forward":
            h.register_hook(seen.append)
        return poptorch.identity_loss(h * m.w, "sum")

    train(forward, torch.ones(2, 2), layer=layer)
    assert not seen and "Hooks on the gradients of tensors have no effect" in capsys.readouterr().err


def test_shapes_that_depend_on_values_are_refused():
    for forward in (lambda m, x: x[x > 0], lambda m, x: torch.nonzero(x)):
        with pytest.raises(poptorch.Error, match="shape of output 0 of .* depends on the values"):
            infer(forward, torch.ones(2, 2))
    assert infer(lambda m, x: x[x > 0].sum(), torch.ones(2, 2)).item() == 4


def test_a_module_of_torchscript_is_refused():
    scripted = torch.jit.script(torch.nn.Linear(2, 2))
    with pytest.raises(poptorch.Error, match="TorchScript .layer."):
        infer(lambda m, x: m.layer(x), torch.ones(2, 2), layer=scripted)
