"""The training program's numerics on a CUDA device: `make test-gpu`."""

import copy

import poptorch
import pytest
import torch

from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from model.placement import recompute, serialize_head
from model.pretraining import PretrainingModel
from training.optimization import make_optimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch sees no CUDA device: it takes an NVIDIA GPU and torch's CUDA build"
    ),
]
CONFIG = GPT2Config(
    vocab_size=2048,
    real_vocab_size=2040,
    n_positions=32,
    n_embd=64,
    n_layer=3,
    n_head=4,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
)


def losses(model, device, monkeypatch, steps, loss_scaling=1.0):
    """Loss of each weight update on one batch of 4 x 8 samples, trained on `device`."""
    monkeypatch.setenv("POPTORCH_PORTABLE_DEVICE", device)
    options = poptorch.Options()
    options.Training.gradientAccumulation(4)
    options.outputMode(poptorch.OutputMode.Sum)
    options.Precision.enableStochasticRounding(True)
    options.randomSeed(1)
    optimizer = make_optimizer("AdamW", model, 0.002, 0.01, loss_scaling)
    executor = poptorch.trainingModel(model, options, optimizer)
    ids = torch.randint(1, 2040, (32, 33), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    found = [float(executor(input_ids=inputs, labels=labels)[0]) / 4 for _ in range(steps)]
    executor.destroy()
    return found


class Objective(torch.nn.Module):
    """(N, 64) -> loss."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))

    def forward(self, x):
        return poptorch.identity_loss((self.layers(x) - x[:, :1]).square(), "mean")


def build(half):
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(CONFIG)
    recompute(gpt2, range(CONFIG.n_layer))
    serialize_head(gpt2, 4)
    model = PretrainingModel(gpt2, serialized_seq_len=16).train()
    return model.half() if half else model


def test_states_in_the_hosts_memory_have_the_numbers_of_states_on_the_device(monkeypatch):
    """--optimizer-state-offchip."""
    monkeypatch.setenv("POPTORCH_PORTABLE_DEVICE", "cuda")
    found, places = [], []
    for on_chip in (True, False):
        torch.manual_seed(0)
        options = poptorch.Options()
        options.TensorLocations.setOptimizerLocation(poptorch.TensorLocationSettings().useOnChipStorage(on_chip))
        objective = Objective()
        optimizer = poptorch.optim.AdamW(objective.parameters(), lr=0.01)
        executor = poptorch.trainingModel(objective, options, optimizer)
        x = torch.randn(8, 64)
        found.append([float(executor(x)) for _ in range(5)])
        states = executor._session.optimizer._states.values()
        places.append({state.device.type for each in states for state in each.values()})
        executor.destroy()
    assert places == [{"cuda"}, {"cpu"}]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_float32_losses_equal_the_cpu_ones(monkeypatch):
    model = build(half=False)
    twin = copy.deepcopy(model)
    on_cuda = losses(model, "cuda", monkeypatch, steps=5)
    on_cpu = losses(twin, "cpu", monkeypatch, steps=5)
    assert on_cuda == pytest.approx(on_cpu, rel=1e-3)


def test_half_training_falls_as_on_the_cpu(monkeypatch):
    model = build(half=True)
    twin = copy.deepcopy(model)
    on_cuda = losses(model, "cuda", monkeypatch, steps=40, loss_scaling=1024.0)
    on_cpu = losses(twin, "cpu", monkeypatch, steps=40, loss_scaling=1024.0)
    assert on_cuda[-1] < on_cuda[0] - 2.0
    assert on_cuda[-1] == pytest.approx(on_cpu[-1], abs=0.3)


def test_generation_in_half_runs(monkeypatch):
    from generation.requests import NextTokenModel

    monkeypatch.setenv("POPTORCH_PORTABLE_DEVICE", "cuda")
    model = NextTokenModel(build(half=True).gpt2)
    executor = poptorch.inferenceModel(model, poptorch.Options())
    logits = executor(torch.ones(1, 32, dtype=torch.int32), torch.tensor([31], dtype=torch.int32))
    assert logits.shape == (1, 2048) and torch.isfinite(logits).all()
