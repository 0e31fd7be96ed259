"""Blocks and the stages that are cut from them (spec section 8)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import Body, infer, make_options

import poptorch
from poptorch.engine.tracing import export as tracing
from poptorch.engine.tracing import recording

Auto = poptorch.AutoStage


class Chain(torch.nn.Module):
    """An embedding, layers, and a head tied to the embedding: GPT-2 in small."""

    def __init__(self, layers: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(11, 6)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(layers))
        self.head = torch.nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids, labels):
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        logits = self.head(hidden)
        return logits.argmax(-1), F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def placed(ipus: list[int], head: int | None = 0, strategy=None, accumulation: int = 16, **blocks):
    """A training executor of Chain with the embedding on IPU 0, layer i on ipus[i], the head on `head`."""
    model = Chain(len(ipus))
    poptorch.BeginBlock(model.embedding, "embedding", ipu_id=0)
    for index, (layer, ipu) in enumerate(zip(model.layers, ipus, strict=True)):
        poptorch.BeginBlock(layer, f"layer{index}", ipu_id=ipu)
    if head is not None:
        poptorch.BeginBlock(model.head, "head", ipu_id=head)
    options = make_options(1, accumulation, mode=poptorch.OutputMode.All).autoRoundNumIPUs(True)
    options.setExecutionStrategy(strategy or poptorch.PipelinedExecution(Auto.AutoIncrement))
    return model, poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=1.0))


IDS = torch.arange(16 * 3).view(16, 3) % 11
LABELS = (IDS + 1) % 11


def summary(executor):
    return [(stage.ipu, stage.blocks) for stage in executor.program.stages]


@pytest.mark.parametrize("auto", [Auto.AutoIncrement, Auto.SameAsIpu])
@pytest.mark.parametrize(
    "ipus, stages",
    [
        ([0, 0, 0, 0], [(0, ("embedding", "layer0", "layer1", "layer2", "layer3", "head"))]),
        (
            [1, 1, 2, 3],
            [(0, ("embedding",)), (1, ("layer0", "layer1")), (2, ("layer2",)), (3, ("layer3",)), (0, ("head",))],
        ),
        ([0, 0, 1, 1], [(0, ("embedding", "layer0", "layer1")), (1, ("layer2", "layer3")), (0, ("head",))]),
    ],
)
def test_consecutive_blocks_on_one_ipu_are_one_stage(auto, ipus, stages):
    _, executor = placed(ipus, strategy=poptorch.PipelinedExecution(auto))
    executor.compile(IDS, LABELS)
    assert summary(executor) == stages


def test_parameters_inputs_and_outputs_of_each_stage():
    _, executor = placed([1, 1, 2, 3])
    executor.compile(IDS, LABELS)
    program = executor.program
    names = [set(stage.parameters) for stage in program.stages]
    assert names[1] == {f"layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert names[2] == {"layers.2.weight", "layers.2.bias"}
    assert len(names[0]) == len(names[4]) == 1  # the tied weight, under one of its names
    ids, labels = program.inputs
    assert program.stages[0].inputs == (ids,)
    assert labels in program.stages[4].inputs and labels not in program.stages[3].inputs
    for before, after in zip(program.stages[:4], program.stages[1:], strict=True):
        assert set(before.outputs) <= set(after.inputs)
    assert set(program.outputs) | {program.loss} <= set(program.stages[4].outputs)


@pytest.mark.parametrize("ipus", [[0, 0, 0, 0], [1, 1, 2, 3], [0, 1, 2, 3]])
def test_running_the_stages_by_hand_gives_the_loss_and_the_gradients(ipus):
    model, executor = placed(ipus)
    executor.compile(IDS, LABELS)
    program = executor.program
    reference = Chain(4).double()
    _, expected = reference(IDS[:1], LABELS[:1])
    expected.backward()
    leaves = {
        name: p.detach().clone().requires_grad_() for name, p in Chain(4).named_parameters(remove_duplicate=False)
    }
    leaves["head.weight"] = leaves["embedding.weight"]
    state = {value: leaves[name] for value, name in program.parameters.items()} | program.constants
    handed = dict(zip(program.inputs, (IDS[:1], LABELS[:1]), strict=True))
    for stage in program.stages:  # each gets nothing but what it says it needs
        needed = {value: state[value] for value in state if program.parameters.get(value) in (None, *stage.parameters)}
        values = {**needed, **{name: handed[name] for name in stage.inputs}}
        stage.run(values)
        handed.update({name: values[name] for name in stage.outputs})
    loss = handed[program.loss]
    torch.testing.assert_close(loss.double(), expected.detach().double(), rtol=1e-5, atol=1e-6)
    loss.backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(leaves[name].grad.double(), parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_placement_does_not_change_the_numbers():
    results = []
    for ipus in ([0, 0, 0, 0], [1, 1, 2, 3], [0, 1, 2, 3]):
        model, executor = placed(ipus)
        results.append((executor(IDS, LABELS), model.state_dict()))
    for outputs, state in results[1:]:
        assert torch.equal(outputs[1], results[0][0][1])
        assert all(torch.equal(state[name], results[0][1][name]) for name in state)


def two_blocks(ipus=(0, 1), ids=("a", "b")):
    def forward(m, x):
        with poptorch.Block(ids[0], ipu_id=ipus[0]):
            x = x + 1
        poptorch.Block.start(ids[1], ipu_id=ipus[1])
        return x * 2

    return forward


@pytest.mark.parametrize(
    "strategy, stages",
    [
        (
            poptorch.PipelinedExecution(poptorch.Stage("a").ipu(1), poptorch.Stage("b").ipu(0)),
            [(1, ("a",)), (0, ("b",))],
        ),
        (poptorch.PipelinedExecution("a", "b"), [(0, ("a",)), (1, ("b",))]),
        (poptorch.ShardedExecution(poptorch.Stage("a", "b").ipu(0)), [(0, ("a", "b"))]),
        (poptorch.SerialPhasedExecution(poptorch.Phase("a"), poptorch.Phase("b")), [(0, ("a", "b"))]),
        (poptorch.ParallelPhasedExecution(poptorch.Phase("a"), poptorch.Phase("b")), [(0, ("a",)), (1, ("b",))]),
    ],
)
def test_explicit_stages(strategy, stages):
    options = make_options(4).autoRoundNumIPUs(True).setExecutionStrategy(strategy)
    executor = poptorch.inferenceModel(Body(two_blocks(ipus=(None, None))), options)
    assert executor(torch.ones(4)).tolist() == [4] * 4
    assert summary(executor) == stages


def test_a_block_that_the_stages_do_not_have():
    options = make_options().setExecutionStrategy(poptorch.PipelinedExecution("a"))
    with pytest.raises(AssertionError, match="Unknown Block 'b' list of expected Blocks: \\['a'\\]"):
        infer(two_blocks(), torch.ones(1), options=options)


def test_same_as_ipu_needs_the_ipu():
    text = "poptorch.AutoStage.SameAsIpu was selected but no IPU was specified for block b"
    with pytest.raises(AssertionError, match=text):
        infer(two_blocks(ipus=(0, None)), torch.ones(1))


def test_auto_increment_numbers_the_ipus():
    options = make_options(2).setExecutionStrategy(poptorch.PipelinedExecution(Auto.AutoIncrement))
    executor = poptorch.inferenceModel(Body(two_blocks(ipus=(None, None))), options)
    executor(torch.ones(2))
    assert summary(executor) == [(0, ("a",)), (1, ("b",))]


def test_automatic_ids_start_again():
    def forward(m, x):
        poptorch.Block.useAutoId()
        with poptorch.Block(ipu_id=0):
            x = x + 1
        poptorch.Block.start(ipu_id=0)
        return x * 2

    executor = poptorch.inferenceModel(Body(forward))
    executor(torch.ones(1))
    assert summary(executor) == [(0, ("0", "1"))]


def test_a_block_that_a_function_begins():
    double = poptorch.BeginBlock(lambda x: x * 2, "double", ipu_id=1)

    def forward(m, x):
        poptorch.Block.start("start", ipu_id=0)
        return double(x + 1) + 1

    executor = poptorch.inferenceModel(Body(forward), make_options(2))
    assert executor(torch.ones(2)).tolist() == [5, 5]
    assert summary(executor) == [(0, ("start",)), (1, ("double",))] and double(torch.ones(1)).item() == 2


def test_automatic_ids_are_the_same_if_the_trace_begins_again(monkeypatch):
    """For a program that cannot be recorded forward() runs a second time, for torch.export."""

    def refuse(entry, model, leaves):
        recording.record(entry, model, leaves)
        raise recording.NotRecorded("refused")

    def forward(m, x):
        with poptorch.Block():
            x = x + 1
        with poptorch.Block():
            return x * 2

    monkeypatch.setattr(tracing, "record", refuse)
    poptorch.Block.useAutoId()
    options = make_options(2).setExecutionStrategy(poptorch.PipelinedExecution("0", "1"))
    executor = poptorch.inferenceModel(Body(forward), options)
    assert executor(torch.ones(2)).tolist() == [4, 4]
    assert summary(executor) == [(0, ("0",)), (1, ("1",))]


def test_operations_outside_every_block_are_refused_but_not_before_the_first():
    def forward(m, x):
        x = x * 3
        with poptorch.Block("outer", ipu_id=0), poptorch.Block("inner", ipu_id=0):
            x = x + 1
        size = x.size(0), x.shape, x.dtype  # nothing is computed here
        return x + len(size)

    with pytest.raises(poptorch.Error, match="No active Block, all the ops must belong to a Block"):
        infer(forward, torch.ones(1))


def test_a_function_as_a_block():
    @poptorch.BlockFunction("f", ipu_id=1)
    def double(x):
        return x * 2

    def forward(m, x):
        poptorch.Block.start("start", ipu_id=0)
        x = double(x + 1)
        poptorch.Block.start("end", ipu_id=0)
        return x + 1

    options = make_options(3).setExecutionStrategy(poptorch.PipelinedExecution(Auto.AutoIncrement))
    executor = poptorch.inferenceModel(Body(forward), options)
    assert executor(torch.ones(3)).tolist() == [5, 5, 5]
    assert summary(executor) == [(0, ("start",)), (1, ("f",)), (0, ("end",))]
    assert double(torch.ones(1)).item() == 2  # outside a trace


def test_a_pipeline_in_training_needs_enough_accumulation():
    text = (
        "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of pipeline "
        "stages (9) when using poptorch.PipelinedExecution. Please note that a model with 5 pipeline stages in "
        "PopTorch will have an additional 4 stages when training."
    )
    _, executor = placed([1, 1, 2, 3], accumulation=8)
    with pytest.raises(poptorch.Error) as error:
        executor.compile(IDS, LABELS)
    assert error.value.message == text
    placed([1, 1, 2, 3], accumulation=8, strategy=poptorch.ShardedExecution(Auto.AutoIncrement))[1].compile(IDS, LABELS)
    _, enough = placed([1, 1, 2, 3], accumulation=9)
    enough.compile(IDS[:9], LABELS[:9])


def test_a_pipeline_in_inference_needs_enough_iterations():
    text = (
        "poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages (2) when "
        "using PopTorch.PipelinedExecution."
    )
    with pytest.raises(poptorch.Error) as error:
        infer(two_blocks(), torch.ones(1))
    assert error.value.message == text
    assert infer(two_blocks(), torch.ones(2), options=make_options(2)).tolist() == [4, 4]


def test_the_number_of_ipus_is_a_power_of_two():
    def options():
        strategy = poptorch.ShardedExecution(Auto.SameAsIpu)
        return make_options().setExecutionStrategy(strategy)

    text = "The model specifies the use of 3 IPUs, however PopTorch must reserve a minimum of 4"
    with pytest.raises(poptorch.Error, match=text):
        infer(two_blocks(ipus=(0, 2)), torch.ones(1), options=options())
    assert infer(two_blocks(ipus=(0, 2)), torch.ones(1), options=options().autoRoundNumIPUs(True)).item() == 4
    text = "Too many IPUs requested \\(128\\). Experiments that need more than 64 IPUs require distributed execution."
    with pytest.raises(poptorch.Error, match=text):
        infer(two_blocks(), torch.ones(64), options=options().replicationFactor(64))


def test_blocks_are_shown_before_the_names_of_classes():
    class Gain(torch.nn.Sequential):
        def extra_repr(self):
            return "gain=2"

    inner = Gain(torch.nn.Linear(2, 3), torch.nn.ReLU())
    outer = torch.nn.Sequential(inner, torch.nn.ModuleList([torch.nn.Dropout(0.5), torch.nn.Dropout(0.5)]))
    plain = repr(outer)
    poptorch.BeginBlock(inner[0], ipu_id=1)
    poptorch.BeginBlock(outer[1], "end")
    blocks = ("BeginBlock(user_id=None, ipu_id=1) Linear(", "BeginBlock(user_id=end, ipu_id=None) ModuleList(")
    expected = plain.replace("Linear(", blocks[0]).replace("ModuleList(", blocks[1])
    assert poptorch.module_repr(outer) == expected != plain
    assert repr(poptorch.inferenceModel(outer)) == expected
    poptorch.BeginBlock(outer, "all", 0)
    assert poptorch.module_repr(outer) == f"BeginBlock(user_id=all, ipu_id=0) {expected}"


def test_a_module_begins_one_block():
    layer = torch.nn.Linear(2, 2)
    assert poptorch.BeginBlock(layer, "a", ipu_id=0) is layer and type(layer) is torch.nn.Linear
    with pytest.raises(poptorch.Error, match="module has already been assigned to a block."):
        poptorch.BeginBlock(layer, "b", ipu_id=0)
    model = torch.nn.Sequential(layer, torch.nn.ReLU())
    assert "user_id=a" in poptorch.module_repr(model) and "user_id=a" in repr(poptorch.inferenceModel(model))
    poptorch.removeBlocks(model)
    assert poptorch.module_repr(model) == repr(model)
    poptorch.BeginBlock(layer, "b", ipu_id=0)
    assert isinstance(poptorch.BeginBlock(torch.tanh, "f"), poptorch.LegacyBeginBlockFn)
    with pytest.raises(poptorch.Error):
        poptorch.BeginBlock(3)


def test_blocks_do_nothing_outside_a_trace():
    with poptorch.Block("a", ipu_id=3):
        assert torch.ones(1).add(1).item() == 2
    assert torch.ones(1).add(1).item() == 2
    assert not poptorch.isRunningOnIpu()
