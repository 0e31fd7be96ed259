"""Executors in files (spec section 10)."""

from __future__ import annotations

import importlib
import pathlib

import pytest
import torch
import torch.nn.functional as F
from programs import Regression, make_options, regression_data

import poptorch
from poptorch.execution import saving

X, Y = regression_data(8)


class Dropped(Regression):
    """With dropout, so that random numbers matter."""

    def forward(self, x, y):
        return super().forward(F.dropout(x, 0.3), y)


OPTIMIZERS = [
    lambda parameters: poptorch.optim.AdamW(parameters, lr=0.05, loss_scaling=8.0),
    lambda parameters: poptorch.optim.LAMB(parameters, lr=0.05),
    lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
]


def trained(make_optimizer, calls=2):
    model = Dropped()
    options = make_options(2, 2).randomSeed(3)
    executor = poptorch.trainingModel(model, options, make_optimizer(model.parameters()))
    for _ in range(calls):
        executor(X, Y)
    return executor


def assert_same(left, right):
    assert all(torch.equal(a, b) for a, b in zip(left.model.parameters(), right.model.parameters(), strict=True))


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS)
def test_training_continues_to_the_bit(tmp_path, make_optimizer):
    executor = trained(make_optimizer)
    executor.save(tmp_path / "executor")
    loaded = poptorch.load(tmp_path / "executor")
    assert_same(executor, loaded)
    for _ in range(2):
        left, right = executor(X, Y), loaded(X, Y)
        assert torch.equal(left[1], right[1])
    assert_same(executor, loaded)
    assert type(torch.load(tmp_path / "executor", weights_only=False)["model"]) is Dropped
    assert [path.name for path in tmp_path.iterdir()] == ["executor"]


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS[:1])
def test_optimizer_and_model_saved_by_the_program_continue_to_the_bit(tmp_path, make_optimizer):
    executor = trained(make_optimizer)
    optimizer = executor._optimizer
    torch.save(
        {"model": executor.model.state_dict(), "optimizer": optimizer.state_dict(), "rng": executor.rng_state},
        tmp_path / "state",
    )
    state = torch.load(tmp_path / "state")
    model = Dropped(seed=8)
    model.load_state_dict(state["model"])
    resumed_optimizer = make_optimizer(model.parameters())
    resumed_optimizer.load_state_dict(state["optimizer"])
    resumed = poptorch.trainingModel(model, make_options(2, 2).randomSeed(4), resumed_optimizer)
    resumed.compile(X, Y)
    resumed.rng_state = state["rng"]
    for _ in range(2):
        assert torch.equal(executor(X, Y)[1], resumed(X, Y)[1])
    assert_same(executor, resumed)


def test_inference_in_a_directory_with_other_options(tmp_path):
    executor = poptorch.inferenceModel(Regression(), make_options(2))
    expected = executor(X, Y)
    executor.save(str(tmp_path))
    assert (tmp_path / "model.poptorch").is_file()
    loaded = poptorch.load(str(tmp_path), lambda options: options.deviceIterations(4))
    assert loaded.options.device_iterations == 4
    assert torch.equal(loaded(X, Y)[0], expected[0])


class ThreeParts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(3)])
        for ipu, part in enumerate(self.parts):
            self.parts[ipu] = poptorch.BeginBlock(part, ipu_id=ipu)

    def forward(self, x):
        return self.parts(x)


def test_what_was_compiled_offline_runs_when_it_is_loaded(tmp_path):
    model, seen = Regression(), []
    offline = make_options(2).useOfflineIpuTarget()
    executor = poptorch.inferenceModel(model, offline)
    executor.compileAndExport(tmp_path / "file", X, Y)
    with pytest.raises(AssertionError, match="offline device"):
        executor(X, Y)
    loaded = poptorch.load(
        tmp_path / "file", lambda options: seen.append((options.connection_type, options.exists("ipu_version")))
    )
    assert seen == [(poptorch.ConnectionType.Always, False)] and loaded.isAttachedToDevice()
    assert torch.equal(loaded(X, Y)[0], poptorch.inferenceModel(model, make_options(2))(X, Y)[0])
    kept = poptorch.load(tmp_path / "file", lambda options: options.connectionType(poptorch.ConnectionType.OnDemand))
    assert not kept.isAttachedToDevice() and torch.equal(kept(X, Y)[0], loaded(X, Y)[0])


def test_the_number_of_ipus_is_checked_where_a_device_is_acquired(tmp_path):
    options = make_options(3)
    executor = poptorch.inferenceModel(ThreeParts(), options.clone().useOfflineIpuTarget())
    executor.compileAndExport(tmp_path / "file", X[:6])
    with pytest.raises(poptorch.Error, match="use of 3 IPUs, however PopTorch must reserve a minimum of 4"):
        poptorch.load(tmp_path / "file")
    loaded = poptorch.load(tmp_path / "file", lambda options: options.autoRoundNumIPUs(True))
    torch.testing.assert_close(loaded(X[:6]), ThreeParts()(X[:6]).detach())
    deferred = poptorch.inferenceModel(ThreeParts(), options.clone().connectionType(poptorch.ConnectionType.OnDemand))
    deferred.compile(X[:6])
    with pytest.raises(poptorch.Error, match="must reserve a minimum of 4"):
        deferred.attachToDevice()


def test_without_the_random_state_the_stream_starts_again(tmp_path):
    executor = trained(OPTIMIZERS[0])
    executor.save(tmp_path / "file", save_rng_state=False)
    fresh = trained(OPTIMIZERS[0], calls=0)
    fresh.compile(X, Y)
    assert poptorch.load(tmp_path / "file").rng_state == fresh.rng_state != executor.rng_state


def test_what_is_refused(tmp_path):
    executor = trained(OPTIMIZERS[0], calls=1)
    executor.save(tmp_path / "bare", export_model=False)
    with pytest.raises(AssertionError, match="created with 'export_model=False'"):
        poptorch.load(tmp_path / "bare")
    (tmp_path / "text").write_text("no executor")
    torch.save({"a": 1}, tmp_path / "other")
    for name in ("text", "other", "missing"):
        with pytest.raises(AssertionError, match=f"Invalid file .*{name}: "):
            poptorch.load(tmp_path / name)
    contents = torch.load(tmp_path / "bare", weights_only=False)
    torch.save({**contents, "format_version": 99}, tmp_path / "newer")
    with pytest.raises(AssertionError, match="Invalid file .*newer: format version 99"):
        poptorch.load(tmp_path / "newer")


def test_a_byte_that_changed_is_not_loaded(tmp_path):
    executor = trained(OPTIMIZERS[0], calls=1)
    executor.save(tmp_path / "file")
    content = bytearray((tmp_path / "file").read_bytes())
    weight = executor.model.first.weight.detach().numpy()
    content[content.index(weight.tobytes()) + weight.nbytes // 2] ^= 1
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(AssertionError, match="Invalid file .*file: .* damaged since .*CRC"):
        poptorch.load(tmp_path / "file")
    with pytest.raises(poptorch.Error, match="Invalid file .*file: .* damaged since .*CRC"):
        trained(OPTIMIZERS[0], calls=0).loadExecutable(tmp_path / "file")


def test_files_without_crcs_are_loaded(tmp_path):
    executor = trained(OPTIMIZERS[0], calls=1)
    serialization = pytest.importorskip("torch.utils.serialization", reason="torch before 2.7 always writes CRCs")
    with serialization.config.patch("save.compute_crc32", False):
        executor.save(tmp_path / "file")
    torch.testing.assert_close(poptorch.load(tmp_path / "file").model.first.weight, executor.model.first.weight)


def test_a_model_that_cannot_be_pickled_says_what_to_do(tmp_path):
    model = Regression()
    model.first.register_forward_hook(lambda module, inputs, output: output)
    executor = poptorch.inferenceModel(model)
    executor(X, Y)
    with pytest.raises(poptorch.Error, match="cannot be written to .*lambda.*export_model=False"):
        executor.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())
    executor.save(tmp_path / "file", export_model=False)


def test_a_file_from_before_the_modules_moved_is_read():
    """executor_c624705.poptorch was written at commit c624705, where the options were modules of other names.

    Regression(), make_options(2, 2).randomSeed(3), a block "later" around .second, an anchored gradient, the optimizer
    state off chip, AdamW(lr=0.05, loss_scaling=8.0); saved after two calls on regression_data(8). The losses are those
    of the next two calls, there.
    """
    executor = poptorch.load(pathlib.Path(__file__).parents[1].joinpath("executor_c624705.poptorch"))
    assert executor._options.Training.gradient_accumulation == 2 and executor._options.random_seed == 3
    losses = [executor(X, Y)[1].item() for _ in range(2)]
    assert losses == pytest.approx([0.45205023884773254, 0.37543460726737976], rel=1e-6)
    assert executor.getAnchoredTensor("gradient").shape == (5, 3)


def test_old_names_of_modules_lead_to_modules_that_exist():
    for module in saving._OLD_MODULES.values():
        importlib.import_module(module)
