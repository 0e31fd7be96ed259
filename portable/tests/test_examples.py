"""The programs of portable/examples: as programs, and step by step beside a plain torch loop without poptorch."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
from launch import run_program

from poptorch import DataLoaderMode

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


def load(name: str):
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def assert_same(model, losses: list[float], expected, expected_losses: list[float], noise: str = "") -> None:
    """Losses, and weights but for those that `noise` names."""
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected_losses), rtol=1e-5, atol=1e-5)
    found = model.state_dict()
    for name, value in expected.state_dict().items():
        if not noise or noise not in name:
            close = torch.isclose(found[name].float(), value.float(), rtol=1e-4, atol=1e-5)
            assert close.all(), f"{name}: {found[name][~close]} instead of {value[~close]}"


def step(optimizer: torch.optim.Optimizer, losses: list[torch.Tensor]) -> list[float]:
    """One update from the mean of the gradients of these micro-batches, and the losses."""
    for loss in losses:
        (loss / len(losses)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return [loss.item() for loss in losses]


def test_there_are_six():
    assert NAMES == [
        "custom_op",
        "for_loop_decoder",
        "lstm_language_model",
        "mnist_cnn",
        "replicated_training",
        "small_bert",
    ]


def test_mnist_cnn():
    example = load("mnist_cnn")
    model, expected, expected_losses = example.make_model(), example.make_model(), []
    loader = example.make_loader(DataLoaderMode.Sync)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.02, momentum=0.9)
    for images, labels in loader:
        for batch in zip(images.split(8), labels.split(8), strict=True):
            expected_losses += step(optimizer, [expected(*batch)[1]])
    losses = example.train(model, loader)
    assert len(losses) == 80
    assert_same(model, losses, expected, expected_losses)
    assert example.accuracy(model) > 0.9


def test_small_bert():
    example = load("small_bert")
    model, expected, expected_losses = example.make_model(), example.make_model(), []
    groups = [
        {"params": [p for p in expected.parameters() if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in expected.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    for number in range(20):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min((number + 1) / 5, 1)
        inputs = {name: value.split(4) for name, value in example.sentences(number).items()}
        batches = [dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)]
        expected_losses.append(step(optimizer, [expected(**batch)["loss"] for batch in batches])[-1])
    with pytest.warns(UserWarning, match="lr_scheduler.step"):  # torch's, of a program that leaves step() to the device
        losses = example.train(model)
    # The bias of the keys shifts all scores of a query, which softmax ignores: Adam makes steps of rounding errors.
    assert_same(model, losses, expected, expected_losses, noise="qkv.bias")
    assert losses[-1] < losses[0]


def test_lstm_language_model():
    example = load("lstm_language_model")
    model, expected, expected_losses = example.make_model(), example.make_model(), []
    optimizer = torch.optim.RMSprop(expected.parameters(), lr=5e-3)
    for letters, following in example.parts():
        for batch in zip(letters.split(8), following.split(8), strict=True):
            expected_losses += step(optimizer, [expected(*batch)[1]])
    assert_same(model, example.train(model), expected, expected_losses)
    assert expected_losses[-1] < expected_losses[0] / 2


@NEEDS_COMPILER
def test_custom_op(monkeypatch):
    example = load("custom_op")
    example.load_operator()
    monkeypatch.setattr(example.subprocess, "run", None)
    example.load_operator()  # is not compiled again

    class Plain(example.Network):
        def activation(self, x):
            return x * torch.sigmoid(1.5 * x)

    model, expected, expected_losses = example.make_model(), Plain(), []
    expected.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.02)
    for number in range(20):
        expected_losses += step(optimizer, [expected(*example.points(number))[1]])
    assert_same(model, example.train(model), expected, expected_losses)


def test_replicated_training():
    example = load("replicated_training")
    model, expected, expected_losses = example.make_model(), example.make_model(), []
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    means = [expected.mean, torch.zeros(6)]  # of the two replicas
    for x, y in example.make_loader():
        batches, found = list(zip(x.split(5), y.split(5), strict=True)), []
        for iteration in (batches[:4], batches[4:]):  # [accumulation][replica]
            losses = []
            for number, batch in enumerate(iteration):
                expected.mean = means[number % 2]
                losses.append(expected(*batch))
            found += step(optimizer, losses)
        expected_losses.append(sum(found) / 8)
    expected.mean = means[0]
    assert not torch.allclose(*means)
    assert_same(model, example.train(model), expected, expected_losses)


def test_for_loop_decoder():
    example = load("for_loop_decoder")
    model = example.make_model()
    token, state = example.make_inputs()
    tokens, scores = [], []
    with torch.no_grad():
        for _ in range(20):
            token, score, state = model.step(token, state)
            tokens.append(token)
            scores.append(score)
    found_tokens, found_scores = example.decode(model)
    assert torch.equal(found_tokens, torch.stack(tokens, dim=1)) and found_tokens.dtype == torch.int32
    torch.testing.assert_close(found_scores, torch.stack(scores, dim=1), rtol=1e-5, atol=1e-5)


def test_one_as_a_program():
    """The one whose DataLoader has a process of its own."""
    done = run_program(EXAMPLES / "mnist_cnn.py")
    assert done.returncode == 0 and "accuracy on new images" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "mnist_cnn"])
def test_each_says_what_came_of_it(name, capsys):
    if name == "custom_op" and shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    load(name).main()
    assert "log probability" in (printed := capsys.readouterr().out) or " -> " in printed
