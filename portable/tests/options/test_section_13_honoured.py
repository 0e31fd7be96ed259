"""Every option that is honoured shows in what a program sees (section 13); the others: test_options.py."""

from __future__ import annotations

import pytest
import torch
from programs import Body, make_options

import poptorch
from poptorch import notices, option_effects

X8 = torch.arange(8.0)


def outcome(function):
    """What `function` returns, as something to compare, or the class of what it raises."""
    try:
        found = function()
    except (poptorch.Error, AssertionError) as error:
        return type(error)
    return found.tolist() if isinstance(found, torch.Tensor) else found


def infer(options, function=lambda m, x: x + 1, x=X8, **members):
    executor = poptorch.inferenceModel(Body(function, **members), options)
    return executor, executor(x)


def micro_batch(options):
    """Samples of a micro-batch."""
    seen = []
    infer(options, lambda m, x: seen.append(len(x)) or x + 1)
    return seen


def trained(options, x=X8, dtype=torch.float32, lr=2.0**-14, **arguments):
    """A weight (4,) after a step along the gradients `x`, its executor and optimizer."""
    model = Body(
        lambda m, x: poptorch.identity_loss((m.w * x.view(-1, 4)).float().sum(), "sum"),
        w=torch.nn.Parameter(torch.ones(4, dtype=dtype)),
    )
    optimizer = poptorch.optim.SGD(model.parameters(), lr=lr, **arguments)
    executor = poptorch.trainingModel(model, options, optimizer)
    executor(x.to(dtype))
    return model.w.detach(), executor, optimizer


def count(m, x):
    m.count.add_(1)
    return x + m.count


def on_ipus(*ipus):
    def forward(m, x):
        for number, ipu in enumerate(ipus):
            poptorch.Block.start(f"block{number}", ipu_id=ipu)
            x = x + 1
        return x

    return forward


def drawn(options):
    """Random numbers of a program whose user has drawn some before."""
    if not options.exists("random_seed"):
        torch.manual_seed(99)
    return infer(options, lambda m, x: torch.rand_like(x))[1]


def reported(options, tmp_path):
    infer(options)
    return any(tmp_path.rglob("summary.txt"))


def warned(options, capsys):
    notices._said.clear()
    model = Body(lambda m, x: poptorch.identity_loss((m.w * x).sum(), "sum"), w=torch.nn.Parameter(torch.ones(8)))
    group = {"params": [model.w], "colour": 1}
    poptorch.trainingModel(model, options, torch.optim.SGD([group], lr=0.1))
    return "colour" in capsys.readouterr().err


# name: (arguments, what a program sees with options[, options before])
SHOWN = {
    "deviceIterations": ((2,), micro_batch),
    "replicationFactor": ((2,), micro_batch),
    "inputReplicaGrouping": (
        (2, poptorch.CommGroupType.Consecutive),
        micro_batch,
        lambda: poptorch.Options().replicationFactor(2),
    ),
    "outputMode": ((poptorch.OutputMode.Final,), lambda o: infer(o)[1], lambda: make_options(4)),
    "broadcastBuffers": (
        (False,),
        lambda o: infer(o, count, count=torch.zeros(1))[1],
        lambda: poptorch.Options().replicationFactor(2),
    ),
    "anchorTensor": (("name", "x"), lambda o: infer(o, lambda m, x: x + 1)[0].getAnchoredTensor("name")),
    "autoRoundNumIPUs": ((), lambda o: infer(o, on_ipus(0, 1, 2))[1], lambda: make_options(4)),
    "connectionType": ((poptorch.ConnectionType.Never,), lambda o: infer(o)[1]),
    "useOfflineIpuTarget": ((), lambda o: infer(o)[1]),
    "enableSyntheticData": ((True,), lambda o: infer(o)[1]),
    "logCycleCount": ((True,), lambda o: infer(o)[0].cycleCount() > 0),
    "randomSeed": ((5,), drawn),
    "setExecutionStrategy": (
        (poptorch.AutoStage.AutoIncrement,),
        lambda o: infer(o, on_ipus(None, None))[1],
        lambda: make_options(2),
    ),
    "showCompilationProgressBar": ((False,), lambda o: infer(o)[0].compilationTime().total_seconds() > 0),
    "updatableNamedBuffers": (
        (["count"],),
        lambda o: infer(o, count, count=torch.zeros(1))[0].copyNamedBuffersToDevice(),
    ),
    "Training.gradientAccumulation": ((2,), lambda o: trained(o)[0]),
    "Training.accumulationAndReplicationReductionType": (
        (poptorch.ReductionType.Sum,),
        lambda o: trained(o)[0],
        lambda: make_options(1, 2),
    ),
    "Training.setMeanAccumulationAndReplicationReductionStrategy": (  # equal but for the last bits
        (poptorch.MeanReductionStrategy.Running,),
        lambda o: trained(o, torch.randn(12, generator=torch.Generator().manual_seed(0)), lr=1.0)[0],
        lambda: make_options(1, 3),
    ),
    "Training.setAutomaticLossScaling": (
        (True,),
        lambda o: list(trained(o, dtype=torch.float16)[2].state_dict()["ipu_state"]),
    ),
    "Precision.enableFloatingPointExceptions": ((True,), lambda o: infer(o, lambda m, x: 1 / x)[1]),
    "Precision.enableStochasticRounding": ((True,), lambda o: trained(o, dtype=torch.float16)[0]),
}
# These need something of pytest, or nothing to be shown.
BY_NAME = {"enableProfiling", "relaxOptimizerAttributesChecks", "Distributed.disable", "Jit.traceModel"}
# Shown by several processes: processes/test_replicas.py.
TOGETHER = {"Distributed.configureProcessId", "Distributed.setEnvVarNames", "TensorLocations.setOptimizerLocation"}


def test_all_of_them_are_here():
    honoured = {name for name, effect in option_effects.EFFECTS.items() if effect.kind == option_effects.HONOURED}
    assert honoured == set(SHOWN) | BY_NAME | TOGETHER


@pytest.mark.parametrize("name", SHOWN)
def test_it_shows(name, monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_HALF", "native")
    arguments, look, *before = SHOWN[name]
    make = before[0] if before else poptorch.Options
    without, options = make(), make()
    owner = options
    *groups, setter = name.split(".")
    for group in groups:
        owner = getattr(owner, group)
    getattr(owner, setter)(*arguments)
    found, plain = outcome(lambda: look(options)), outcome(lambda: look(without))
    assert found != plain


def test_profiling_leaves_a_report(tmp_path):
    assert not reported(poptorch.Options(), tmp_path)
    assert reported(poptorch.Options().enableProfiling(str(tmp_path)), tmp_path)


def test_relaxed_checks_of_optimizer_attributes(capsys):
    assert warned(poptorch.Options(), capsys)
    assert not warned(poptorch.Options().relaxOptimizerAttributesChecks(), capsys)


def test_a_launchers_environment_can_be_disabled(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with pytest.raises(poptorch.Error, match="process 1 of 2, but MASTER_ADDR"):
        trained(poptorch.Options())
    options = poptorch.Options()
    options.Distributed.disable()
    assert trained(options, lr=1.0)[0].tolist() == [-3.0, -5.0, -7.0, -9.0]  # 1 - (x[i] + x[i + 4])


def test_tracing_as_of_old_is_refused():
    options = poptorch.Options()
    options.Jit.traceModel(False)
    with pytest.raises(ValueError, match="traceModel"):
        options.Jit.traceModel(True)
    assert infer(options)[1].tolist() == (X8 + 1).tolist()
