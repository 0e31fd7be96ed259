"""forward() runs once, while the model is traced; what it may do then (spec section 1)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import Body, infer, make_options, train

import poptorch


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


def test_higher_order_operators_are_refused_clearly():
    def forward(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x

    with pytest.raises(poptorch.Error, match="cannot be compiled"):
        infer(forward, torch.ones(2, 2))


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
