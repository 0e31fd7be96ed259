"""PyTorch Lightning 1.9 as it is installed: its IPU strategy trains a CNN with batch norm as plain torch does."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.programs


def digits(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(samples, 1, 28, 28), (samples,): ten patterns with noise, which take the place of MNIST."""
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randn(10, 1, 28, 28, generator=generator)
    labels = torch.randint(0, 10, (samples,), generator=generator)
    return patterns[labels] + 0.5 * torch.randn(samples, 1, 28, 28, generator=generator), labels


def convolutions() -> torch.nn.Module:
    """(N, 1, 28, 28) -> logits (N, 10), with batch norm."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, stride=2),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, stride=2),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(576, 10),
    )


def test_lightning_trains_three_epochs_on_the_ipu_accelerator(tmp_path, monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_IPU_VERSION", "2")
    import pytorch_lightning as lightning

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = convolutions()

        def training_step(self, batch, _):
            return F.cross_entropy(self.layers(batch[0]), batch[1])

        def validation_step(self, batch, _):
            return (self.layers(batch[0]).argmax(-1) == batch[1]).float().mean()

        def validation_epoch_end(self, outputs):
            accuracies.append(torch.stack(outputs).mean().item())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    class Losses(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].mean().item())

    accuracies, losses = [], []
    training = torch.utils.data.TensorDataset(*digits(256))
    held_out = torch.utils.data.TensorDataset(*digits(64))
    model = Classifier()
    reference = copy.deepcopy(model.layers)
    trainer = lightning.Trainer(
        accelerator="ipu",
        devices=1,
        max_epochs=3,
        default_root_dir=tmp_path,
        callbacks=[Losses()],
        enable_progress_bar=False,
        logger=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        model,
        torch.utils.data.DataLoader(training, batch_size=32),
        torch.utils.data.DataLoader(held_out, batch_size=32),
    )

    assert type(trainer.strategy).__name__ == "IPUStrategy"
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05)
    expected = []
    for _ in range(3):
        for images, labels in torch.utils.data.DataLoader(training, batch_size=32):
            optimizer.zero_grad()
            loss = F.cross_entropy(reference(images), labels)
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-4)
    assert len(accuracies) == 3 and accuracies[-1] > 0.9
    saved = torch.load(next((tmp_path / "checkpoints").glob("*.ckpt")), weights_only=False)["state_dict"]
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(saved[f"layers.{name}"], value, rtol=1e-4, atol=1e-4)
