"""Weights that differ between groups of replicas: parameter.replicaGrouping (section 5)."""

from __future__ import annotations

import copy

import pytest
import torch
from programs import Body, make_options

import poptorch
from poptorch import CommGroupType, VariableRetrievalMode

ONE, ALL = VariableRetrievalMode.OnePerGroup, VariableRetrievalMode.AllReplicas


def forward(m, x):
    """(N, 2) -> (N,), and its mean as the loss."""
    found = x @ m.w
    return found, poptorch.identity_loss(found * m.v, "mean")


def grouped(w: torch.Tensor, replicas: int, kind: CommGroupType, size: int, retrieval=ONE, **options):
    model = Body(forward, w=torch.nn.Parameter(w.clone()), v=torch.nn.Parameter(torch.ones(1)))
    executor = poptorch.trainingModel(
        model, make_options(replicas=replicas, **options), torch.optim.SGD(model.parameters(), lr=1.0)
    )
    executor.w.replicaGrouping(kind, size, retrieval)
    return model, executor


@pytest.mark.parametrize(
    ("kind", "size", "group_of"),
    [
        (CommGroupType.Consecutive, 2, [0, 0, 1, 1]),
        (CommGroupType.Orthogonal, 2, [0, 1, 0, 1]),
        (CommGroupType.NoGrouping, 1, [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("retrieval", [ONE, ALL])
def test_section5_a_weight_for_each_group(kind, size, group_of, retrieval):
    groups = max(group_of) + 1
    entries = torch.arange(2.0 * groups).reshape(groups, 2)
    initial = entries[group_of] if retrieval is ALL else entries
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))  # two iterations of 4 replicas of 2 samples
    model, executor = grouped(initial, 4, kind, size, retrieval, iterations=2, mode=poptorch.OutputMode.All)
    outputs, _ = executor(x)

    # By hand: each replica uses its group's weight; a group's gradients are summed and divided by all the replicas.
    w, v, expected = entries.clone(), torch.ones(()), []
    for iteration in x.reshape(2, 4, 2, 2):
        w_gradient, v_gradient = torch.zeros_like(w), torch.zeros(())
        for replica, batch in enumerate(iteration):
            expected.append(batch @ w[group_of[replica]])
            w_gradient[group_of[replica]] += v * batch.mean(0) / 4
            v_gradient += expected[-1].mean() / 4
        w, v = w - w_gradient, v - v_gradient
    torch.testing.assert_close(outputs, torch.cat(expected))
    torch.testing.assert_close(model.w.detach(), w[group_of] if retrieval is ALL else w)
    torch.testing.assert_close(model.v.detach(), v.reshape(1))


def test_section5_tensor_parallel_product_in_inference():
    """The documented use: the weight cut into shards, the data into parts, and an executor that shares the model."""
    weight, x = torch.randn(3, 8), torch.randn(4, 3)
    shards = torch.stack(weight.split(2, dim=1))  # 4 shards
    model = Body(lambda m, x: poptorch.identity_loss(x @ m.w, "none"), w=torch.nn.Parameter(shards))
    options = make_options(replicas=8, mode=poptorch.OutputMode.All)
    options.inputReplicaGrouping(4, CommGroupType.Consecutive)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.0))
    model.w.replicaGrouping(CommGroupType.Orthogonal, 2, ONE)
    inference = poptorch.inferenceModel(model, options)
    for run in (executor, inference):
        rows = run(x).reshape(2, 4, 2, 2)  # [part of the data][shard][sample][column]
        torch.testing.assert_close(torch.cat([torch.cat(list(part), dim=1) for part in rows]), x @ weight)


def test_section5_one_group_is_what_all_replicas_have_anyway():
    w = torch.tensor([1.0, 2.0])
    for kind, size in ((CommGroupType.All, 1), (CommGroupType.Consecutive, 2)):
        model, executor = grouped(w, 2, kind, size)
        executor(torch.ones(2, 2))
        torch.testing.assert_close(model.w.detach(), w - 1)


def test_section5_shards_may_be_the_number_of_groups_where_only_that_fits():
    entries = torch.tensor([[0.0, 0], [1, 1], [2, 2], [3, 3]])
    for shards in (2, 4):  # 8 replicas: groups of 2, or 4 groups
        _, executor = grouped(entries, 8, CommGroupType.Consecutive, shards, mode=poptorch.OutputMode.All)
        assert executor(torch.ones(8, 2))[0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6]


def test_weights_of_groups_come_and_go():
    model, executor = grouped(torch.zeros(2, 2), 2, CommGroupType.Consecutive, 1, mode=poptorch.OutputMode.All)
    x = torch.ones(2, 2)
    executor(x)
    assert model.w.tolist() == [[-0.5, -0.5], [-0.5, -0.5]]
    executor.detachFromDevice()
    with torch.no_grad():
        model.w.copy_(torch.tensor([[1.0, 0], [2, 0]]))
        model.v.fill_(1)
    executor.attachToDevice()
    assert executor(x)[0].tolist() == [1, 2]
    assert type(copy.deepcopy(model).w) is torch.nn.Parameter
    model.destroy()
    assert type(model.w) is torch.nn.Parameter and not hasattr(model.w, "replicaGrouping")


@pytest.mark.parametrize("retrieval", [ONE, ALL])
def test_states_of_the_optimizer_have_the_entries_that_the_weight_has(retrieval):
    """And they are loaded into another executor, which goes on alike."""

    def trainer(w):
        model = Body(forward, w=torch.nn.Parameter(w.clone()), v=torch.nn.Parameter(torch.ones(1)))
        optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
        executor = poptorch.trainingModel(model, make_options(replicas=4), optimizer)
        return model, executor, optimizer

    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    for kind, shards in ((CommGroupType.NoGrouping, 0), (CommGroupType.Consecutive, 2)):
        entries = 4 if kind is CommGroupType.NoGrouping or retrieval is ALL else 2
        model, executor, optimizer = trainer(torch.zeros(entries, 2))
        model.w.replicaGrouping(kind, shards, retrieval)
        executor(x)
        states = optimizer.state_dict()["ipu_state"]
        assert {key: tuple(states[key].shape) for key in states if key.endswith("___w")} == {
            "Accl1___w": (entries, 2),
            "Accl2___w": (entries, 2),
            "Step___w": (entries,),
        }
        assert states["Step___v"].shape == () and states["Accl1___v"].shape == (1,)
        other, resumed, resumed_optimizer = trainer(model.w.detach())
        other.load_state_dict(model.state_dict())
        resumed_optimizer.load_state_dict(optimizer.state_dict())
        other.w.replicaGrouping(kind, shards, retrieval)
        for run in (executor, resumed):
            run(x)
        assert torch.equal(other.w.detach(), model.w.detach())
        for key, state in resumed_optimizer.state_dict()["ipu_state"].items():
            assert torch.equal(state, optimizer.state_dict()["ipu_state"][key])


def test_section5_weights_of_groups_in_inference_alone():
    entries = torch.tensor([[0.0, 0], [1, 1]])
    model = Body(lambda m, x: x @ m.w, w=torch.nn.Parameter(entries))
    executor = poptorch.inferenceModel(model, make_options(replicas=4))
    executor.w.replicaGrouping(CommGroupType.Orthogonal, 2, ONE)
    assert executor(torch.ones(4, 2)).tolist() == [0, 2, 0, 2]
    with pytest.raises(poptorch.Error, match="before the model is compiled"):
        model.w.replicaGrouping(CommGroupType.Consecutive, 2, ONE)
    assert type(copy.deepcopy(model).w) is torch.nn.Parameter and isinstance(model.w, torch.nn.Parameter)
    assert repr(model.w).startswith("Parameter containing:")
    with torch.no_grad():
        model.w += 1
    executor.copyWeightsToDevice()
    assert executor(torch.ones(4, 2)).tolist() == [2, 4, 2, 4]
    executor.destroy()
    assert type(model.w) is torch.nn.Parameter and not vars(model.w)
    model.w = torch.nn.Parameter(torch.arange(8.0).view(4, 2))
    again = poptorch.inferenceModel(model, make_options(replicas=4))
    model.w.replicaGrouping(CommGroupType.NoGrouping, 0, ONE)
    assert again(torch.ones(4, 2)).tolist() == [1, 5, 9, 13]


def test_a_model_of_an_inference_executor_is_saved_as_it_was(tmp_path):
    model = torch.nn.Linear(2, 2)
    poptorch.inferenceModel(model)
    torch.save(model, tmp_path / "model")
    loaded = torch.load(tmp_path / "model", weights_only=False)
    assert type(loaded.weight) is torch.nn.Parameter and torch.equal(loaded.weight, model.weight)
    trainer = poptorch.trainingModel(model)
    trainer.destroy()  # never compiled: without effect
    model.weight.replicaGrouping(CommGroupType.All, 0, ONE)


def test_section5_what_is_refused():
    model, executor = grouped(torch.zeros(3, 2), 4, CommGroupType.Consecutive, 2)
    with pytest.raises(poptorch.Error, match=r"parameter w of shape \[3, 2\] needs a first dimension of size 2"):
        executor(torch.ones(4, 2))
    model, executor = grouped(torch.zeros(2, 2), 4, CommGroupType.Consecutive, 3)
    with pytest.raises(poptorch.Error, match="groups of 3 replicas do not divide the replication factor 4"):
        executor(torch.ones(4, 2))
    with pytest.raises(AssertionError, match="comm_group_type"):
        model.w.replicaGrouping("Consecutive", 2, ONE)
    with pytest.raises(AssertionError, match="shards"):
        model.w.replicaGrouping(CommGroupType.Consecutive, 0, ONE)
    with pytest.raises(AssertionError, match="shards"):
        model.w.replicaGrouping(CommGroupType.NoGrouping, -1, ONE)
    with pytest.raises(AssertionError, match="variable_retrieval_mode"):
        model.w.replicaGrouping(CommGroupType.Consecutive, 2, 0)
    scalar = Body(lambda m, x: poptorch.identity_loss(x * m.s, "mean"), s=torch.nn.Parameter(torch.ones(())))
    poptorch.trainingModel(scalar)
    with pytest.raises(poptorch.Error, match="scalar"):
        scalar.s.replicaGrouping(CommGroupType.Consecutive, 2, ONE)
    model, executor = grouped(torch.zeros(2, 2), 2, CommGroupType.Consecutive, 1)
    executor(torch.ones(2, 2))
    with pytest.raises(poptorch.Error, match="before the model is compiled"):
        model.w.replicaGrouping(CommGroupType.Consecutive, 2, ONE)

    model = Body(forward, w=torch.nn.Parameter(torch.zeros(2, 2)), v=torch.nn.Parameter(torch.ones(1)))
    executor = poptorch.trainingModel(model, make_options(replicas=2), poptorch.optim.LAMB(model.parameters()))
    model.w.replicaGrouping(CommGroupType.NoGrouping, 1, ONE)
    with pytest.raises(poptorch.Error, match="w differs between groups of replicas, which LAMB"):
        executor(torch.ones(2, 2))
