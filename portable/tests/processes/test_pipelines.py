"""One replica over several processes: the numbers of one process that runs all stages in turn."""

from __future__ import annotations

import functools
import itertools
import json
import os

import pytest
import torch
import torch.nn.functional as F
from launch import together
from test_replicas import nothing, running_mean, sharded

import popdist.poptorch
import poptorch
from poptorch.engine.as_one import number

A, S, N, WIDTH = 9, 2, 3, 16  # accumulation, iterations, samples of a micro-batch
CALLS = 3
OPTIM = poptorch.optim


class Model(torch.nn.Module):
    """(N, WIDTH), (N, 4) -> prediction (N, 4), loss, over four IPUs. The last stage is on the first IPU again.

    The weight `first` is used by the first and the last stage; `mask` is made by the first one and used by others.
    """

    def __init__(self, dropout=0.0, norm=False, count=False, recompute=False, shared=False):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(WIDTH, WIDTH)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))
        if shared:
            self.blocks[3] = self.blocks[1]
        self.norm = torch.nn.BatchNorm1d(WIDTH) if norm else torch.nn.Identity()
        self.last = torch.nn.Linear(WIDTH, 4)
        self.dropout = torch.nn.Dropout(dropout)
        self.recompute = recompute
        if count:
            self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x, y=None):
        with poptorch.Block("in", ipu_id=0):
            mask = (x > 0).float() + 0.5
            h = torch.tanh(self.first(x))
        for i, block in enumerate(self.blocks):
            with poptorch.Block(f"b{i}", ipu_id=i):
                h = self.dropout(torch.tanh(block(h)) * mask)
                if self.recompute:
                    h = poptorch.recomputationCheckpoint(h)
                if i == 2:
                    h = self.norm(h)
                    if hasattr(self, "mean"):
                        self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
                        h = h + self.mean
        with poptorch.Block("out", ipu_id=0):
            prediction = self.last(h @ self.first.weight)
            if y is None:
                return prediction
            return prediction, poptorch.identity_loss(F.mse_loss(prediction, y), "mean")


def sequential(options):
    options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))


def own_buffers(options):
    options.broadcastBuffers(False)


class WholeRule:
    """w -= lr g / (|g| + steps of this parameter): norms and parameters are whole ones."""

    block = None

    def states(self, shape, group):
        return {"steps": (torch.Size([]), torch.float32)}

    def update(self, weight, gradient, states, group, step, norm):
        states["steps"].add_(1)
        assert norm == torch.linalg.vector_norm(gradient)
        weight.sub_(group["lr"] * gradient / (norm + states["steps"]))


class Registered(torch.optim.Optimizer):
    portable_update_rule = WholeRule()

    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})


ADAMW = functools.partial(OPTIM.AdamW, lr=0.01, weight_decay=0.1)
CASES = {
    "adamw": (ADAMW, nothing, {}),
    "sharded execution": (ADAMW, sequential, {}),
    "optimizer sharded": (ADAMW, sharded, {}),
    "clipped": (functools.partial(OPTIM.AdamW, lr=0.01, max_grad_norm=0.05), nothing, {}),
    "lamb": (functools.partial(OPTIM.LAMB, lr=0.01), nothing, {}),
    "registered rule": (Registered, sharded, {"shared": True}),
    "running": (functools.partial(OPTIM.SGD, lr=0.05), running_mean, {}),
    "momentum": (functools.partial(OPTIM.SGD, lr=0.05, momentum=0.9, use_combined_accum=False), nothing, {}),
    "dropout": (ADAMW, nothing, {"dropout": 0.3}),
    "recomputed": (ADAMW, nothing, {"dropout": 0.3, "recompute": True}),
    "batch norm": (ADAMW, nothing, {"norm": True}),
    "written buffer": (ADAMW, own_buffers, {"count": True}),
    "weight of two processes": (functools.partial(OPTIM.AdamW, lr=0.01, max_grad_norm=0.05), nothing, {"shared": True}),
}


def data(call: int, replicas: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(S, A, R, N, WIDTH), (S, A, R, N, 4)."""
    generator = torch.Generator().manual_seed(call)
    x = torch.randn(S, A, replicas, N, WIDTH, generator=generator)
    return x, torch.randn(S, A, replicas, N, 4, generator=generator)


# What two replicas add to one.
OF_TWO_REPLICAS = ["optimizer sharded", "running", "batch norm", "weight of two processes"]


def trained(replicas: int, names: list[str]) -> dict[str, tuple]:
    """By case: losses (calls, S, A, replicas here), predictions, weights, and elements of the host's and of states."""
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = str(replicas)
    return {name: _trained(replicas, *CASES[name]) for name in names}


def _trained(replicas, make_optimizer, configure, arguments) -> tuple:
    options = popdist.poptorch.Options(ipus_per_replica=4).deviceIterations(S).outputMode(poptorch.OutputMode.All)
    options.randomSeed(3)
    options.Training.gradientAccumulation(A)
    configure(options)
    model = Model(**arguments)
    optimizer = make_optimizer(model.parameters())
    executor = poptorch.trainingModel(model, options, optimizer)
    local = options.replication_factor
    first = options.Distributed.processId * local
    found = []
    for call in range(CALLS):
        parts = [part[:, :, first : first + local].flatten(0, 3) for part in data(call, replicas)]
        found.append(executor(*parts))
    held = sum(parameter.numel() for parameter in model.parameters() if parameter.device.type != "meta")
    states = sum(t.numel() for each in executor._session.optimizer._states.values() for t in each.values())
    weights = {name: p for name, p in model.state_dict().items() if p.device.type != "meta"}
    executor.destroy()
    losses = torch.stack([loss for _, loss in found]).view(CALLS, S, A, local)
    return losses, torch.stack([prediction for prediction, _ in found]), weights, held, states


@pytest.fixture(scope="module")
def one():
    return {r: together(1, trained, r, list(CASES) if r == 1 else OF_TWO_REPLICAS)[0] for r in (1, 2)}


@pytest.fixture(
    scope="module", params=[(2, 1), pytest.param((4, 1), marks=pytest.mark.long), (4, 2)], ids=["2", "4", "2 x 2"]
)
def several(request):
    processes, replicas = request.param
    names = list(CASES) if replicas == 1 else OF_TWO_REPLICAS
    return processes, replicas, together(processes, trained, replicas, names)


@pytest.mark.parametrize("name", list(CASES))
def test_the_numbers_of_one_process(name, one, several):
    processes, replicas, found = several
    if replicas > 1 and name not in OF_TWO_REPLICAS:
        pytest.skip("the same as in one replica")
    losses, predictions, weights, held, states = one[replicas][name]
    each = processes // replicas
    got = torch.cat([found[rank][name][0] for rank in range(0, processes, each)], dim=-1)
    torch.testing.assert_close(got, losses, rtol=1e-5, atol=1e-6)
    for rank in range(processes):
        assert torch.equal(found[rank][name][0], found[rank - rank % each][name][0])  # outputs reach every process
        assert found[rank][name][3] < held, "the weights of other processes have no memory"
        assert found[rank][name][4] < states or states == 0, "nor have the optimizer's states"
    whole = found[0][name][2]
    assert whole.keys() == weights.keys()
    for key, weight in weights.items():
        if replicas == 1 or "running" not in key:  # batch norm's statistics are the first replica's
            torch.testing.assert_close(whole[key], weight, rtol=1e-5, atol=1e-6, msg=f"{name}: {key}")


ANCHORS = {
    "weight": ("blocks.1.weight", poptorch.OutputMode.Final, 1),
    "gradient": ("Gradient___blocks.2.bias", poptorch.OutputMode.All, 1),
    "updated": ("UpdatedVar___last.bias", poptorch.OutputMode.Final, 1),
    "loss": ("loss", poptorch.OutputMode.Sum, 1),
    "prediction": ("output_0", poptorch.OutputMode.All, 1),
    "twice": ("Gradient___first.weight", poptorch.OutputMode.Sum, 1),
}


def looked_at() -> dict:
    """What inference returns in each output mode, what is anchored in training, and what optimizers are given back."""
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "1"
    x, y = (part.flatten(0, 3) for part in data(0, 1))
    found = {}
    model = Model(dropout=0.3)
    for mode, period in (("All", 1), ("Final", 1), ("Sum", 1), ("EveryN", 3)):
        options = popdist.poptorch.Options(ipus_per_replica=4).deviceIterations(S * A).randomSeed(3)
        options.outputMode(getattr(poptorch.OutputMode, mode), period)
        if mode == "EveryN":
            sequential(options)
        executor = poptorch.inferenceModel(model, options)
        found[mode] = executor(x)
        executor.destroy()
    options = popdist.poptorch.Options(ipus_per_replica=4).deviceIterations(S).randomSeed(3)
    options.Training.gradientAccumulation(A)
    for short, (long_name, mode, period) in ANCHORS.items():
        options.anchorTensor(short, long_name, mode, period)
    model = Model()
    optimizer = OPTIM.AdamW(model.parameters(), lr=0.01)
    executor = poptorch.trainingModel(model, options, optimizer)
    executor(x, y)
    found.update({short: executor.getAnchoredTensor(short) for short in ANCHORS})
    found["names"] = executor.getTensorNames()
    follower = poptorch.inferenceModel(model, popdist.poptorch.Options(ipus_per_replica=4).deviceIterations(9))
    found["after training"] = follower(x[: 9 * N])
    torch.manual_seed(1)
    crossing = Crossing("handed on")
    found["handed on"] = poptorch.inferenceModel(crossing, popdist.poptorch.Options(2).deviceIterations(S * A))(x)
    state = optimizer.state_dict()
    found["state"] = {name: value for name, value in state["ipu_state"].items() if not value.is_meta}
    executor.copyWeightsToHost()
    found["host"] = {name: p.detach().clone() for name, p in model.named_parameters() if not p.is_meta}
    executor.destroy()
    return found


def wrapped_again() -> list[torch.Tensor]:
    """Weights after two calls of one executor and two of another, for samples twice as wide a batch."""
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "1"
    model = Model(shared=True, norm=True)
    optimizer = OPTIM.AdamW(model.parameters(), lr=0.01)
    for samples in (N, 2 * N):
        options = popdist.poptorch.Options(ipus_per_replica=4).outputMode(poptorch.OutputMode.All).randomSeed(3)
        options.Training.gradientAccumulation(A)
        executor = poptorch.trainingModel(model, options, optimizer)
        generator = torch.Generator().manual_seed(samples)
        for _ in range(2):
            executor(*(torch.randn(samples * A, width, generator=generator) for width in (WIDTH, 4)))
        model.destroy()
    return [tensor.clone() for tensor in model.state_dict().values()]


def test_a_model_is_wrapped_again_after_its_executor_is_destroyed():
    (expected,) = together(1, wrapped_again)
    for found in together(2, wrapped_again):
        for tensor, other in zip(found, expected, strict=True):
            torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-6)


def test_inference_anchors_and_states_are_those_of_one_process():
    one, (first, second) = together(1, looked_at)[0], together(2, looked_at)
    states = one.pop("state"), first.pop("state"), second.pop("state")
    hosts = one.pop("host"), first.pop("host"), second.pop("host")
    assert one.pop("names") == first.pop("names") == second.pop("names")
    assert one.keys() == first.keys() == second.keys()
    for name, expected in one.items():
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(first[name], second[name]), name
    for expected, found, other in (states, hosts):
        assert found.keys() == expected.keys()
        assert all(value.dim() == 0 for value in other.values()) or other.keys() < expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


class Crossing(torch.nn.Module):
    """Writes on one IPU to what is used on the other, which another process has, or on the same after that."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.layer = kind, torch.nn.Linear(WIDTH, WIDTH)
        self.register_buffer("seen", torch.zeros(WIDTH))

    def forward(self, x):
        with poptorch.Block("a", ipu_id=0):
            h = self.layer(x) + self.seen
            kept = h * 2
            if self.kind == "handed on":
                self.seen.add_(h.mean(0))
        with poptorch.Block("b", ipu_id=1):
            if self.kind == "buffer":
                self.seen.add_(h.mean(0))
            elif self.kind == "input":
                x.add_(1)
            elif self.kind == "value":
                kept.add_(1)
            h = torch.tanh(h)
        with poptorch.Block("c", ipu_id=1 if self.kind in ("buffer", "input") else 0):
            if self.kind == "apart":
                self.seen.add_(h.mean(0))
            return kept + h + (self.seen if self.kind == "handed on" else 0)


def refusals() -> dict[str, str]:
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "1"
    told = {}
    for kind in ("buffer", "apart", "input", "value", "three IPUs"):
        options = popdist.poptorch.Options(3 if kind == "three IPUs" else 1).deviceIterations(3)
        options.autoRoundNumIPUs(True)
        try:
            poptorch.inferenceModel(Crossing(kind), options)(torch.ones(3, WIDTH))
        except poptorch.Error as error:
            told[kind] = str(error)
    return told


def test_what_cannot_be_shared_out_is_refused_with_what_does():
    for told in together(2, refusals):
        assert "writes to seen on IPU 1 and reads it on IPU 0, which are in different processes" in told["buffer"]
        assert "writes to buffer seen and uses it on IPUs 0 and 0, between which the program is in" in told["apart"]
        assert "writes to an input on IPU 1, which is not in a replica's first process" in told["input"]
        assert "on IPU 1 and reads it on IPU 0, which are in different processes" in told["value"], told["value"]
        assert "2 processes cannot hold a replica of 3 IPUs together: start 1 or 3 processes" in told["three IPUs"]


def reported(folder: str) -> None:
    os.environ["POPLAR_ENGINE_OPTIONS"] = json.dumps({"autoReport.all": "true", "autoReport.directory": folder})
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "1"
    options = popdist.poptorch.Options(ipus_per_replica=4)
    options.Training.gradientAccumulation(A)
    executor = poptorch.trainingModel(Model(), options)
    for call in range(3):
        executor(*(part[:1].flatten(0, 3) for part in data(call, 1)))


def test_one_report_says_what_all_processes_did_on_one_clock(tmp_path):
    together(2, reported, str(tmp_path))
    (folder,) = tmp_path.glob("*/training")
    files = {"report.html", "report.json", "timeline.json", "trace.json"}
    assert {path.name for path in folder.iterdir()} == {"rank_0", "rank_1", *files}
    for rank in ("rank_0", "rank_1"):
        assert {path.name for path in (folder / rank).iterdir()} == {"summary.txt", "trace.json"}
    events = json.loads((folder / "timeline.json").read_text())["events"]
    found = {}
    for event in events:
        assert event["start"] <= event["end"]
        if "micro_batch" in event:
            for stage in event["stages"]:
                found[event["rank"], event["kind"], stage, event["micro_batch"]] = event
    stages = {0: (0, 1, 4), 1: (2, 3)}
    assert found.keys() == {
        (rank, kind, stage, m)
        for rank, mine in stages.items()
        for kind in ("forward", "backward")
        for stage in mine
        for m in range(A)
    }
    for m in range(A):  # a message is used after it was made
        assert found[0, "forward", 1, m]["start"] <= found[1, "forward", 2, m]["end"]
        assert found[1, "forward", 3, m]["start"] <= found[0, "forward", 4, m]["end"]
        assert found[1, "backward", 2, m]["start"] <= found[0, "backward", 0, m]["end"]
    kinds = {rank: {event["kind"] for event in events if event["rank"] == rank} for rank in (0, 1)}
    assert kinds[0] == kinds[1] == {"forward", "backward", "waiting", "communication", "update"}
    shown = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in shown} == {0, 1} and len(shown) == len(events) + 2

    record = json.loads((folder / "report.json").read_text())  # the page of both
    assert [row["name"] for row in record["timeline"]["rows"]] == ["rank 0", "rank 1"]
    assert [row["stages"] for row in record["timeline"]["rows"]] == [[0, 1, 4], [2, 3]]
    drawn = {(e["row"], e["kind"], e["start"], e["end"]) for e in record["timeline"]["events"]}
    assert drawn == {(e["rank"], e["kind"], e["start"], e["end"]) for e in events}
    for rank in record["ranks"]:
        assert sum(row["seconds"] for row in rank["phases"]) == pytest.approx(rank["wall_seconds"], rel=0.02, abs=0.01)
        assert rank["micro_batches"] == A and rank["calls"] == 1
        assert rank["operators"]["micro_batches"] == A  # once, though rank 0 has two spans of stages
        assert [row["stage"] for row in rank["memory"]["stages"]] == list(stages[rank["rank"]])
        for row in rank["memory"]["stages"]:  # as many as had gone through and not come back
            passes = [e for e in events if row["stage"] in e.get("stages", ()) and e["rank"] == rank["rank"]]
            under_way = itertools.accumulate(1 if e["kind"] == "forward" else -1 for e in passes)
            assert row["in_flight"] == max(under_way)
    assert max(row["in_flight"] for rank in record["ranks"] for row in rank["memory"]["stages"]) > 1
    bubble = record["comparison"][0]
    assert bubble["estimated"] == pytest.approx(2 / (A + 2)) and 0 < bubble["measured"] < 1
    page = (folder / "report.html").read_text()
    assert "rank 0: stages 0, 1, 4" in page and "rank 1: stages 2, 3" in page


def reported_apart(folder: str) -> None:
    os.environ["POPLAR_ENGINE_OPTIONS"] = json.dumps({"autoReport.all": "true", "autoReport.directory": folder})
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "2"
    executor = poptorch.inferenceModel(Model(), popdist.poptorch.Options(ipus_per_replica=4).deviceIterations(5))
    for _ in range(2):
        executor(torch.zeros(5 * N, WIDTH))


def test_processes_that_share_nothing_have_a_report_each(tmp_path):
    together(2, reported_apart, str(tmp_path))
    (folder,) = tmp_path.glob("*/inference")
    assert {path.name for path in folder.iterdir()} == {"rank_0", "rank_1"}
    for path in folder.iterdir():
        record = json.loads((path / "report.json").read_text())
        assert len(record["ranks"]) == 1 and record["ranks"][0]["micro_batches"] == 5
        assert (path / "report.html").is_file()


def test_fewer_passes_fill_a_pipeline_worse():
    """By hand: 17 (1024 + 32) < 9 (2048 + 32), but 17 (16 + 32) > 9 (32 + 32) > 5 (64 + 32)."""
    assert number.fastest(16, 1024, 2, most=4) == 1
    assert number.fastest(16, 16, 2, most=4) == 4 and number.fastest(16, 16, 2, most=3) == 2
    assert number.fastest(7, 16, 2, most=4) == 1, "a divisor"


def of_many_rows() -> int:
    """How many micro-batches of 1,024 samples run as one."""
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "1"
    options = popdist.poptorch.Options(ipus_per_replica=4)
    options.Training.gradientAccumulation(48)
    executor = poptorch.trainingModel(Model(), options)
    executor.compile(torch.zeros(48 * 1024, WIDTH), torch.zeros(48 * 1024, 4))
    return executor._session.runner.as_one.number


def test_micro_batches_of_many_rows_do_not():
    assert together(1, of_many_rows) == [48] and together(2, of_many_rows) == [1, 1]


def several_as_one(training: bool) -> tuple:
    """What three calls of 48 micro-batches return, the first process's weights, and how many ran as one."""
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"] = "1"
    options = popdist.poptorch.Options(ipus_per_replica=4).outputMode(poptorch.OutputMode.All).randomSeed(3)
    model = Model(dropout=0.3 if training else 0.0, recompute=training)
    if training:
        options.Training.gradientAccumulation(48)
        executor = poptorch.trainingModel(model, options, ADAMW(model.parameters()))
    else:
        executor = poptorch.inferenceModel(model, options.deviceIterations(48))
    generator = torch.Generator().manual_seed(0)
    found = [
        executor(torch.randn(48 * N, WIDTH, generator=generator), torch.randn(48 * N, 4, generator=generator))
        for _ in range(CALLS)
    ]
    as_one = executor._session.runner.as_one.number
    executor.destroy()
    return found, {name: p for name, p in model.state_dict().items() if p.device.type != "meta"}, as_one


@pytest.mark.parametrize("training", [True, False])
def test_micro_batches_of_a_pipeline_run_as_one(training):
    outputs, weights, as_one = together(1, several_as_one, training)[0]
    pipeline = together(2, several_as_one, training)
    assert as_one == 48
    assert pipeline[0][2] == pipeline[1][2] > 1
    assert 48 // pipeline[0][2] >= 4 * 2  # IPUs in two processes, and back on the first one: three spans
    for rank in (0, 1):
        torch.testing.assert_close(pipeline[rank][0], outputs, rtol=1e-5, atol=1e-6)
    for name, weight in pipeline[0][1].items():  # after inference those of its own stages
        torch.testing.assert_close(weight, weights[name], rtol=1e-5, atol=1e-6)
