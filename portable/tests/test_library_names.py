"""Names that are not published but that libraries import or read: each leads to what is published."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from programs import Body, Regression, make_options, regression_data

import poptorch
from poptorch import poptorch_core
from poptorch._impl import rewrapModelIfNecessary, unwrapIfWrapped, unwrapModelIfNecessary
from poptorch._poplar_executor import PoplarExecutor
from poptorch._utils import combine_batch_tensors_gen

X, Y = regression_data(4)


def trainer(model):
    return poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.1))


# -- poptorch._impl


def test_a_wrapped_model_is_itself_for_a_while():
    model, reference = Regression(), Regression()
    executor = trainer(model)
    executor(X, Y)
    unwrapModelIfNecessary(model)
    assert type(model) is Regression and {type(p) for p in model.parameters()} == {torch.nn.Parameter}
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    reference(X, Y)[1].backward()
    optimizer.step()
    torch.testing.assert_close(model.first.weight, reference.first.weight)  # the newest ones
    assert torch.equal(poptorch.inferenceModel(model)(X, Y)[0], model(X, Y)[0].detach())
    with pytest.raises(RuntimeError, match="already been wrapped"):
        poptorch.trainingModel(model)

    rewrapModelIfNecessary(model)
    assert isinstance(model, Regression) and type(model).__name__ == "PoptorchModel"
    before = model.first.weight.detach().clone()
    executor(X, Y)
    assert not torch.equal(model.first.weight, before)  # reading brings them back from the device again


def test_parts_that_are_new_are_wrapped_with_the_rest():
    model = Regression()
    executor = trainer(model)
    executor(X, Y)
    unwrapModelIfNecessary(model)
    model.second = copy.deepcopy(model.second)
    rewrapModelIfNecessary(model)
    assert len({type(p) for p in model.parameters()}) == 1


def test_only_what_is_necessary_is_done():
    model = Regression()
    for function in (unwrapModelIfNecessary, rewrapModelIfNecessary):
        function(model)
        assert type(model) is Regression
    executor = trainer(model)
    rewrapModelIfNecessary(model)
    executor(X, Y)
    assert unwrapIfWrapped(model) is model and type(model) is Regression
    unwrapModelIfNecessary(model)
    executor.destroy()
    assert unwrapIfWrapped(model) is model
    assert type(model) is Regression
    rewrapModelIfNecessary(model)
    assert type(model) is Regression
    trainer(model)(X, Y)


# -- of the executor


def test_what_libraries_read_of_an_executor():
    executor = trainer(Regression())
    assert isinstance(executor, PoplarExecutor) and PoplarExecutor is poptorch.PoplarExecutor
    assert poptorch._poplar_executor.PoplarExecutor is poptorch._impl.PoplarExecutor is PoplarExecutor
    assert executor._executable is None and executor._executable_inputs is None and not executor._is_attached
    executor(y=Y, x=X)
    assert executor._executable and executor._is_attached
    assert [value.shape for value in executor._executable_inputs.args] == [X.shape, Y.shape]
    executor.detachFromDevice()
    assert executor._executable is not None and not executor._is_attached
    executor.destroy()
    assert executor._executable is None and executor._executable_inputs is None


def test_parameters_that_differ_between_replicas():
    w = torch.nn.Parameter(torch.ones(2, 3))
    model = Body(lambda m, x: poptorch.identity_loss((m.w * x * m.v).sum(), "sum"), w=w, v=torch.nn.Parameter(w[0]))
    executor = poptorch.trainingModel(model, make_options(replicas=2))
    assert executor.per_replica_params == {}
    grouping = (poptorch.CommGroupType.Consecutive, 1, poptorch.VariableRetrievalMode.OnePerGroup)
    model.w.replicaGrouping(*grouping)
    assert executor.per_replica_params == {"w": grouping}


@pytest.mark.parametrize("make", [poptorch.trainingModel, poptorch.inferenceModel])
def test_a_parameter_is_made_to_differ_by_an_entry(make):
    def forward(m, x):
        loss = poptorch.identity_loss((m.w * x).sum(), "sum")
        return loss if make is poptorch.trainingModel else m.w * x

    grouping = (poptorch.CommGroupType.Consecutive, 1, poptorch.VariableRetrievalMode.OnePerGroup)
    options = make_options(replicas=2, mode=poptorch.OutputMode.All)
    model = Body(forward, w=torch.nn.Parameter(torch.tensor([[1.0], [10.0]])), v=torch.nn.Parameter(torch.ones(2)))
    executor = make(model, options)
    for name, _ in executor.named_parameters():
        executor.per_replica_params[name] = grouping
    del executor.per_replica_params["v"]
    assert executor.per_replica_params == {"w": grouping} and len(executor.per_replica_params) == 1
    with pytest.raises(KeyError, match="other"):
        executor.per_replica_params["other"] = grouping
    with pytest.raises(poptorch.Error, match=r"takes \(poptorch.CommGroupType, shards, "):
        executor.per_replica_params["w"] = grouping[:2]
    assert executor(torch.ones(2)).flatten().tolist() == [1, 10]
    with pytest.raises(poptorch.Error, match="before the model is compiled"):
        executor.per_replica_params["w"] = grouping


# -- poptorch._utils


def test_batches_are_combined_tensor_by_tensor():
    batches = [{"x": torch.full((2, 3), i), "rest": (torch.tensor([i]), "name", torch.tensor(i))} for i in range(3)]
    x, y, z = combine_batch_tensors_gen(batches)
    assert x.shape == (6, 3) and x[:, 0].tolist() == [0, 0, 1, 1, 2, 2] and y.tolist() == z.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "batches, text",
    [
        ([[X], [X, X]], r"equal numbers of tensors, got \[1, 2\]"),
        ([[X, X], [X, Y]], r"Tensor 1 of the batches cannot be joined: \[\(4, 3\), \(4, 2\)\]"),
    ],
)
def test_batches_that_cannot_be_combined(batches, text):
    with pytest.raises(poptorch.Error, match=text):
        list(combine_batch_tensors_gen(batches))


# -- logger, classes of options


def test_the_logger_and_the_classes_of_options():
    assert isinstance(poptorch.logger, logging.Logger) and poptorch.logger.name == "poptorch"
    options = poptorch.Options()
    for name in ("Distributed", "Jit", "Precision", "Training", "_Popart"):
        assert type(getattr(options, name)) is getattr(poptorch.options, f"_{name.lstrip('_')}Options")
    assert type(options.TensorLocations) is poptorch.options._TensorLocationOptions


# -- poptorch_core


@pytest.mark.parametrize("kind", poptorch_core.TestErrorType)
def test_errors_of_a_device_can_be_tried(kind):
    with pytest.raises(poptorch.Error) as caught:
        poptorch_core._throwTestError(kind)
    error = caught.value
    assert (type(error) is poptorch.UnrecoverableError) == (kind.name == "PoplarUnrecoverable")
    assert (type(error) is poptorch.RecoverableError) == (kind.name == "PoplarRecoverableFullReset")
    assert getattr(error, "recovery_action", "FULL_RESET") == "FULL_RESET"
    assert str(error) == f"'{error.type}': {error.message}" and error.location
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_program_can_ask_whether_it_is_being_compiled():
    asked = []

    def forward(m, x):
        asked.append(poptorch_core.isCompilingWithDispatcher())
        if len(asked) > 1:
            raise ValueError("no")
        return x + 1

    executor = poptorch.inferenceModel(Body(forward))
    executor(X)
    executor(X)
    with pytest.raises(ValueError, match="no"):
        poptorch.inferenceModel(Body(forward))(X)
    assert asked == [True, True] and not poptorch_core.isCompilingWithDispatcher()


# -- torch.ops.poptorch


def test_name_scopes_of_hooks_change_nothing():
    model = Regression()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: torch.ops.poptorch.push_name_scope(name))
        module.register_forward_hook(lambda *_: torch.ops.poptorch.pop_name_scope())
    executor = poptorch.inferenceModel(model)
    assert torch.equal(executor(X, Y)[0], Regression()(X, Y)[0].detach())
    assert "name_scope" not in executor._debugGetPopartIR()


def test_attributes_in_a_graph_of_torch_fx_change_nothing():
    traced = torch.fx.symbolic_trace(Regression())
    first = next(node for node in traced.graph.nodes if node.op == "call_module")
    with traced.graph.inserting_before(first):
        traced.graph.call_function(torch.ops.poptorch.set_attribute, ("__outline", "layer", "a"))
    with traced.graph.inserting_after(first):
        traced.graph.call_function(torch.ops.poptorch.clear_attribute, ("__outline", "layer"))
    traced.recompile()
    executor = poptorch.trainingModel(traced)
    assert torch.equal(executor(X, Y)[0], Regression()(X, Y)[0].detach())
    assert "_attribute" not in executor._debugGetPopartIR()


def test_internal_cast():
    def forward(m, x):
        return tuple(torch.ops.poptorch.internal_cast(x, name) for name in ("FLOAT16", "FLOAT", "INT32", "BOOL"))

    x = torch.tensor([0.0, 1.75, -2.5])
    types = (torch.float16, torch.float32, torch.int32, torch.bool)
    for found, expected in zip(poptorch.inferenceModel(Body(forward))(x), map(x.to, types), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert torch.ops.poptorch.internal_cast(x, "INT64").dtype == torch.int32
    with pytest.raises(poptorch.Error, match="'HALF' is not one of .*FLOAT16"):
        torch.ops.poptorch.internal_cast(x, "HALF")


def test_a_cast_passes_its_gradient_on():
    x = torch.tensor([1.5], requires_grad=True)
    torch.ops.poptorch.internal_cast(x, "FLOAT16").sum().backward()
    assert x.grad.item() == 1
