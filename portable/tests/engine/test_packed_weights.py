"""Forward-only programs on a CPU: weights packed once for their products, and no copies that nobody needs."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from programs import Body

import poptorch
from poptorch.device import packed_linear
from poptorch.device.policy import products_of

CLONE = torch.ops.aten.clone.default
K, N, ROWS = 512, 600, 16


def targets(executor) -> list[object]:
    return [node.target for stage in executor.program.stages for s in stage.segments for node in s.module.graph.nodes]


def packed(executor) -> int:
    return targets(executor).count(packed_linear.packed_linear)


def sample(rows: int = ROWS) -> torch.Tensor:
    return torch.randn(2, rows // 2, K, generator=torch.Generator().manual_seed(0))


def body(forward) -> torch.nn.Module:
    torch.manual_seed(1)
    w, b = torch.nn.Parameter(torch.randn(N, K) / 20), torch.nn.Parameter(torch.randn(N))
    return Body(forward, w=w, transposed=torch.nn.Parameter(torch.randn(K, 3 * N) / 20), b=b)


PACKED = {
    "plain": lambda m, x: F.linear(x, m.w, m.b),
    "no bias": lambda m, x: F.linear(x, m.w),
    "stored (in, out)": lambda m, x: F.linear(x, m.transposed.t()),
    "a part of a weight": lambda m, x: F.linear(x, m.transposed[:, N : 2 * N].t(), m.b),
    "two parts of one": lambda m, x: F.linear(x, m.transposed[:, :N].t()) - F.linear(x, m.transposed[:, N : 2 * N].t()),
    "gelu": lambda m, x: F.gelu(F.linear(x, m.w, m.b)),
    "gelu by tanh": lambda m, x: F.gelu(F.linear(x, m.w, m.b), approximate="tanh"),
    "read twice": lambda m, x: F.gelu(y := F.linear(x, m.w, m.b)) + y,
}
LEFT = {
    "few rows": lambda m, x: F.linear(x[:1, :4], m.w),
    "few weights": lambda m, x: F.linear(x, m.w[:100]),
    "a weight that is computed": lambda m, x: F.linear(x, m.w * 2.0),
    "an input as weight": lambda m, x: F.linear(x, x[0]),
}


@pytest.mark.parametrize("case", PACKED)
def test_products_with_weights_are_packed(case):
    model = body(PACKED[case])
    executor = poptorch.inferenceModel(model)
    found = executor(sample())
    assert packed(executor) == (2 if case == "two parts of one" else 1)
    assert torch.ops.aten.gelu.default not in targets(executor) or case == "read twice"
    exact = PACKED[case](body(PACKED[case]).double(), sample().double())
    torch.testing.assert_close(found.double(), exact.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", LEFT)
def test_others_are_left(case):
    executor = poptorch.inferenceModel(body(LEFT[case]))
    expected = LEFT[case](body(LEFT[case]), sample()).detach()
    torch.testing.assert_close(executor(sample()), expected, rtol=1e-5, atol=1e-5)
    assert packed(executor) == 0


def test_training_keeps_its_gradients():
    model = body(lambda m, x: poptorch.identity_loss(F.linear(x, m.w, m.b), "sum"))
    executor = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.1))
    executor(sample())
    assert packed(executor) == 0


def test_new_weights_are_packed_anew_and_dropped_with_the_program():
    model = torch.nn.Sequential(torch.nn.Linear(K, N))
    executor = poptorch.inferenceModel(model)
    before = executor(sample())
    held = len(packed_linear._PACKED)
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    torch.testing.assert_close(executor(sample()), before)  # the device has not been told
    executor.copyWeightsToDevice()
    torch.testing.assert_close(executor(sample()), model(sample()).detach(), rtol=1e-5, atol=1e-5)
    executor.destroy()
    gc.collect()
    assert len(packed_linear._PACKED) == held - 1


def test_without_onednn_the_product_is_torchs(monkeypatch):
    found = poptorch.inferenceModel(body(PACKED["gelu"]))(sample())
    monkeypatch.setattr(packed_linear, "available", lambda: False)
    plain = poptorch.inferenceModel(body(PACKED["gelu"]))
    torch.testing.assert_close(plain(sample()), found, rtol=1e-5, atol=1e-5)
    assert packed(plain) == 0


def test_dropout_that_is_off_leaves_no_copy():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 8)).eval()
    executor = poptorch.inferenceModel(model)
    x = torch.randn(4, 8)
    torch.testing.assert_close(executor(x), model(x).detach())
    assert CLONE not in targets(executor)


def test_a_block_of_nothing_but_dropout():
    parts = [torch.nn.Linear(3, 3), torch.nn.Dropout(0.5), torch.nn.Linear(3, 3)]
    model = torch.nn.Sequential(*(poptorch.BeginBlock(part, ipu_id=ipu) for ipu, part in enumerate(parts))).eval()
    options = poptorch.Options().deviceIterations(4).autoRoundNumIPUs(True)
    x = torch.randn(4, 3)
    torch.testing.assert_close(poptorch.inferenceModel(model, options)(x), model(x).detach())


def test_copies_that_are_needed_stay():
    def forward(m, x):
        y = x * 2.0
        kept = y.clone()
        y.add_(1.0)
        other = (x * 3.0).clone()
        other.mul_(m.w)
        return kept, y, other, x.clone()

    model = Body(forward, w=torch.nn.Parameter(torch.full((1,), 5.0)))
    x = torch.ones(2, 3)
    found = poptorch.inferenceModel(model)(x)
    assert [float(value[0, 0]) for value in found] == [2.0, 3.0, 15.0, 1.0]
    assert found[3].data_ptr() != x.data_ptr()


@pytest.mark.parametrize("case", PACKED)
def test_products_of_bfloat16_are_packed_where_the_cpu_has_them(case, monkeypatch):
    """But for those whose results leave the program, which are float32."""
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "bfloat16")
    model = body(lambda m, x: F.relu(PACKED[case](m, x))).half()
    executor = poptorch.inferenceModel(model)
    x = sample().half()
    found = executor(x)
    dtypes = [
        node.args[4]
        for stage in executor.program.stages
        for s in stage.segments
        for node in s.module.graph.nodes
        if node.target is packed_linear.packed_linear
    ]
    native = products_of("bfloat16").native
    assert dtypes == [torch.bfloat16] * native * (2 if case == "two parts of one" else 1)
    expected = F.relu(PACKED[case](model.double(), x.double()))
    assert found.dtype == torch.float16
    assert (found.double() - expected).norm() <= 2.0**-7 * expected.norm()


def test_packed_products_of_half_follow_the_weights(monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "bfloat16")
    model = body(PACKED["gelu"]).half()
    executor = poptorch.inferenceModel(model)
    before = executor(sample().half())
    with torch.no_grad():
        model.w.mul_(2.0)
    executor.copyWeightsToDevice()
    after = executor(sample().half())
    expected = PACKED["gelu"](model.double(), sample().half().double())
    assert not torch.equal(before, after)
    assert (after.double() - expected).norm() <= 2.0**-7 * expected.norm()
