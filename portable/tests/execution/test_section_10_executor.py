"""Methods of the executor: anchors, counters, files, introspection, rng_state (spec sections 3 and 10)."""

from __future__ import annotations

import datetime
import json

import pytest
import torch
from launch import run_program
from programs import Body, Regression, make_options, regression_data

import poptorch

X, Y = regression_data(8)


def trainer(options=None, **arguments):
    model = Regression()
    return poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1, **arguments))


# -- anchored tensors


def anchored(options, *names):
    for name in names:
        options.anchorTensor(name, name)
    return options


def test_anchored_gradients_parameters_and_loss():
    names = ["Gradient___first.weight", "UpdatedVar___first.weight", "first.weight", "loss", "x", "output_0"]
    executor = trainer(anchored(make_options(), *names))
    before = executor.model.first.weight.detach().clone()
    reference = Regression()
    prediction, loss = reference(X, Y)
    loss.backward()
    executor(X, Y)
    found = {name: executor.getAnchoredTensor(name) for name in names}
    gradient = reference.first.weight.grad
    torch.testing.assert_close(found["Gradient___first.weight"], gradient)
    torch.testing.assert_close(found["UpdatedVar___first.weight"], before - 0.1 * gradient)
    torch.testing.assert_close(found["UpdatedVar___first.weight"], executor.model.first.weight.detach())
    assert torch.equal(found["first.weight"], before)
    torch.testing.assert_close(found["loss"], loss.detach())
    torch.testing.assert_close(found["output_0"], prediction.detach())
    assert torch.equal(found["x"], X)


def test_anchors_have_output_modes_of_their_own():
    options = make_options(2, 2)
    options.anchorTensor("all", "Gradient___second.bias", poptorch.OutputMode.All)
    options.anchorTensor("sum", "Gradient___second.bias", poptorch.OutputMode.Sum)
    options.anchorTensor("final", "loss")
    executor = trainer(options)
    _, loss = executor(X, Y)
    every = executor.getAnchoredTensor("all")
    assert every.shape == (4 * 2,)
    torch.testing.assert_close(executor.getAnchoredTensor("sum"), every.reshape(4, 2).sum(0))
    assert executor.getAnchoredTensor("final").item() == loss.item()
    reference = Regression()
    reference(X[:2], Y[:2])[1].backward()  # the gradient of one micro-batch, not divided by their number
    torch.testing.assert_close(every[:2], reference.second.bias.grad)


def test_anchors_of_an_inference_program():
    options = anchored(make_options(2), "count")
    executor = poptorch.inferenceModel(Body(lambda m, x: x + m.count.add_(1), count=torch.zeros(1)), options)
    executor(torch.zeros(2))
    assert executor.getAnchoredTensor("count").tolist() == [1, 2]


def test_names_of_anchors_are_checked():
    executor = trainer(anchored(make_options(), "loss"))
    executor(X, Y)
    with pytest.raises(AssertionError, match="No tensor with name other found."):
        executor.getAnchoredTensor("other")
    with pytest.raises(poptorch.Error, match="no tensor 'no.such'.*first.weight"):
        trainer(anchored(make_options(), "no.such"))(X, Y)


def test_tensor_names():
    executor = trainer()
    with pytest.raises(AssertionError, match="not been compiled"):
        executor.getTensorNames()
    executor(X, Y)
    assert {"x", "y", "first.weight", "Gradient___first.weight", "loss"} <= set(executor.getTensorNames())


# -- counters and latencies


@pytest.mark.parametrize(
    "mode, outputs",
    [(None, 1), (poptorch.OutputMode.All, 6), (poptorch.OutputMode.Sum, 1), (poptorch.OutputMode.Final, 1)],
)
def test_counters_have_an_entry_for_each_micro_batch(mode, outputs):
    executor = trainer(make_options(2, 3, mode=mode))
    assert executor.getPerfCounters() == dict.fromkeys(("input", "input_complete", "output", "output_complete"), [[]])
    assert executor.getLatency() == (0.0, 0.0, 0.0)
    executor(*regression_data(12))
    counters = executor.getPerfCounters()
    assert [len(counters[key]) for key in ("input", "input_complete", "output", "output_complete")] == [2] * 4
    assert all(len(times) == 6 for key in ("input", "input_complete") for times in counters[key])
    assert all(len(times) == outputs for key in ("output", "output_complete") for times in counters[key])
    for before, after in zip(("input", "output"), ("input_complete", "output_complete"), strict=True):
        assert all(a <= b for a, b in zip(counters[before][0], counters[after][0], strict=True))
    latencies = [executor.getHostIpuLatency(), executor.getComputeLatency(), executor.getIpuHostLatency()]
    for low, high, mean in [*latencies, executor.getLatency()]:
        assert 0 < low <= mean <= high
    assert executor.getLatency()[1] >= max(high for _, high, _ in latencies)


def test_counters_are_empty_with_synthetic_data_but_have_a_list_for_each_tensor():
    executor = poptorch.inferenceModel(
        Body(lambda m, x, i: (x * 1, i * 1)), poptorch.Options().enableSyntheticData(True)
    )
    x, i = executor(torch.full((4,), 7.0), torch.full((4,), 7))
    assert not x.eq(7).any() and i.eq(0).all()
    counters = executor.getPerfCounters()
    assert counters == dict.fromkeys(("input", "input_complete", "output", "output_complete"), [[], []])
    assert executor.getLatency() == (0.0, 0.0, 0.0)


def test_cycle_count_needs_the_option_and_a_run():
    executor = trainer()
    executor.compile(X, Y)
    with pytest.raises(poptorch.Error, match="logCycleCount"):
        executor.cycleCount()
    executor = trainer(poptorch.Options().logCycleCount(True))
    with pytest.raises(poptorch.Error, match="not been compiled"):
        executor.cycleCount()
    executor.compile(X, Y)
    with pytest.raises(poptorch.Error, match="at least once"):
        executor.cycleCount()
    executor(X, Y)
    assert isinstance(executor.cycleCount(), int) and executor.cycleCount() > 0


def test_compilation_time():
    executor = trainer()
    with pytest.raises(poptorch.Error, match="not been compiled"):
        executor.compilationTime()
    executor.compile(X, Y)
    assert isinstance(executor.compilationTime(), datetime.timedelta) and executor.compilationTime().total_seconds() > 0
    executor = trainer(poptorch.Options().showCompilationProgressBar(False))
    executor.compile(X, Y)
    with pytest.raises(poptorch.Error, match="progress bar"):
        executor.compilationTime()


def test_the_program_as_json():
    executor = trainer()
    executor.compile(X, Y)
    operations = json.loads(executor._debugGetPopartIR())["maingraph"]
    assert [operation["type"] for operation in operations][:2] == ["aten.linear.default", "aten.tanh.default"]


# -- buffers


def test_named_buffers_are_updated_on_request():
    options = poptorch.Options().updatableNamedBuffers(["a"])
    model = Body(lambda m, x: x + m.a + 10 * m.b, a=torch.zeros(1), b=torch.zeros(1))
    executor = poptorch.inferenceModel(model, options)
    x = torch.zeros(1)
    assert executor(x).item() == 0
    model.a.fill_(1)
    model.b.fill_(1)
    assert executor(x).item() == 0
    executor.copyNamedBuffersToDevice()
    assert executor(x).item() == 1
    executor = poptorch.inferenceModel(Body(lambda m, x: x + 1))
    executor(x)
    with pytest.raises(poptorch.Error, match="updatableNamedBuffers"):
        executor.copyNamedBuffersToDevice()


# -- files


def test_exported_files_run_in_a_new_process(tmp_path):
    options = poptorch.Options().useOfflineIpuTarget()
    trainer(options).compileAndExport(str(tmp_path), X, Y)  # no device is needed
    trainer(poptorch.Options()).compileAndExport(str(tmp_path / "compiled"), X, Y, export_model=False)
    executor = trainer()
    expected = [executor(X, Y)[1].item() for _ in range(2)]
    program = tmp_path / "program.py"
    program.write_text(f"""
import torch, poptorch
from programs import Regression, regression_data
x, y = regression_data(8)
online = lambda options: options.connectionType(poptorch.ConnectionType.Always)
whole = poptorch.load({str(tmp_path / "model.poptorch")!r}, online)
model = Regression()
program = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.1))
program.loadExecutable({str(tmp_path / "compiled")!r})
print([whole(x, y)[1].item() for _ in range(2)], program.isCompiled(), [program(x, y)[1].item() for _ in range(2)])
""")
    done = run_program(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{expected} True {expected}"


def test_files_that_are_none(tmp_path):
    (tmp_path / "other").write_text("no executor")
    with pytest.raises(poptorch.Error, match="Invalid file .*other"):
        trainer().loadExecutable(str(tmp_path / "other"))
    with pytest.raises(poptorch.Error, match="Invalid file .*missing"):
        trainer().loadExecutable(str(tmp_path / "missing"))
    with pytest.raises(AssertionError, match="Invalid file .*other"):
        poptorch.load(str(tmp_path / "other"))
    trainer().compileAndExport(str(tmp_path / "program"), X, Y, export_model=False)
    with pytest.raises(AssertionError, match="created with 'export_model=False'"):
        poptorch.load(str(tmp_path / "program"))
    with pytest.raises(poptorch.Error, match="Invalid file .* made for training"):
        poptorch.inferenceModel(Regression()).loadExecutable(str(tmp_path / "program"))
    assert poptorch.importPoptorchMetadataFromFile(str(tmp_path / "program"))["training"]


# -- random numbers, floating-point exceptions


def test_rng_state_repeats_a_call():
    executor = poptorch.inferenceModel(Body(lambda m, x: x + torch.rand(4)), poptorch.Options().randomSeed(3))
    with pytest.raises(poptorch.Error, match="not been compiled"):
        executor.rng_state  # noqa: B018
    x = torch.zeros(4)
    executor.compile(x)
    state = executor.rng_state
    assert isinstance(state, list) and state[0] == 3 and all(isinstance(number, int) for number in state)
    first = executor(x)
    assert not torch.equal(executor(x), first)
    executor.detachFromDevice()
    executor.rng_state = state  # takes effect when the device is attached
    executor.attachToDevice()
    assert torch.equal(executor(x), first)


def test_floating_point_exceptions():
    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(True)
    executor = poptorch.inferenceModel(Body(lambda m, x: 1 / x), options)
    assert executor(torch.tensor([2.0])).item() == 0.5
    with pytest.raises(poptorch.Error, match="Floating-point exception: output 0"):
        executor(torch.tensor([0.0]))
    model = Body(lambda m, x: poptorch.identity_loss((m.w * x).sqrt(), "sum"), w=torch.nn.Parameter(torch.zeros(1)))
    executor = poptorch.trainingModel(model, options.clone())
    with pytest.raises(poptorch.Error, match="gradient of w"):
        executor(torch.ones(1))


# -- automatic loss scaling


def scaled(period=1, **arguments):
    """A half model whose loss is sum(w * x): its gradient is x, times the scaling."""
    model = Body(
        lambda m, x: poptorch.identity_loss((m.w * x).sum(), "sum"), w=torch.nn.Parameter(torch.zeros(4).half())
    )
    options = poptorch.Options()
    options.Training.setAutomaticLossScaling(True)
    options._Popart.set("automaticLossScalingSettings.updatePeriod", period)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.5, **arguments)
    return poptorch.trainingModel(model, options, optimizer), optimizer


def factor(optimizer):
    return optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"].item()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_factor_doubles_and_halves_with_the_gradients(momentum):
    executor, optimizer = scaled(loss_scaling=16.0, momentum=momentum)
    x = torch.ones(4).half()
    for expected in (2.0, 4.0, 8.0):
        executor(x)
        assert factor(optimizer) == expected
    # 16 * 8 * 64 = 8192 is above 0.125 * 65504 = 8188
    executor(x * 64)
    assert factor(optimizer) == 4.0
    weight, velocity = 0.0, 0.0
    for gradient in (1, 1, 1, 64):  # the scaling is not seen in the weights
        velocity = momentum * velocity + gradient
        weight -= 0.5 * velocity
    assert executor.model.w.tolist() == [weight] * 4


def test_the_factor_is_saved_and_loaded():
    executor, optimizer = scaled(loss_scaling=2.0)
    x = torch.ones(4).half()
    executor(x)
    executor(x)
    state = optimizer.state_dict()
    assert state["ipu_param"]["lossScaling_FLOAT"].item() == 2.0
    other, restored = scaled(loss_scaling=2.0)
    other.compile(x)
    restored.load_state_dict(state)
    assert factor(restored) == 4.0
    other(x)
    assert factor(restored) == 8.0


def test_the_settings_of_automatic_loss_scaling():
    executor, optimizer = scaled(period=3)
    for expected in (1.0, 1.0, 2.0):
        executor(torch.ones(4).half())
        assert factor(optimizer) == expected


def test_a_float_model_has_nothing_to_scale():
    model = Regression()
    options = poptorch.Options()
    options.Training.setAutomaticLossScaling(True)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1)
    poptorch.trainingModel(model, options, optimizer)(X, Y)
    assert factor(optimizer) == 1.0


def test_anchored_gradients_do_not_have_the_scaling():
    model = Body(
        lambda m, x: poptorch.identity_loss((m.w * x).sum(), "sum"), w=torch.nn.Parameter(torch.zeros(4).half())
    )
    options = make_options(3).anchorTensor("g", "Gradient___w", poptorch.OutputMode.All)
    options.Training.setAutomaticLossScaling(True)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, loss_scaling=16.0)
    executor = poptorch.trainingModel(model, options, optimizer)
    executor(torch.ones(12).half())
    assert executor.getAnchoredTensor("g").tolist() == [1.0] * 12 and factor(optimizer) == 8.0
