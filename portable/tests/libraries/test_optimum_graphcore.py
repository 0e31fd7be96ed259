"""optimum-graphcore 0.7 as it is installed: its trainer trains, evaluates and saves as plain torch would."""

from __future__ import annotations

import copy

import pytest
import torch

pytestmark = pytest.mark.programs

VOCABULARY = 96
LENGTH = 16
BATCH = 4
RATE = 0.005
NO_DROPOUT = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


@pytest.fixture(autouse=True)
def an_ipu(monkeypatch):
    monkeypatch.setenv("POPTORCH_PORTABLE_IPU_VERSION", "2")  # optimum-graphcore asks for one when it starts


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **NO_DROPOUT["gpt2"], bos_token_id=0, eos_token_id=0))


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=64, **NO_DROPOUT["bert"]))


def samples(number: int, labels: str, seed: int) -> list[dict[str, torch.Tensor]]:
    """`input_ids` (L,), for "class" `attention_mask` (L,) too, and `labels`: the ids (L,), or a class ()."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in range(number):
        ids = torch.randint(1, VOCABULARY, (LENGTH,), generator=generator)
        if labels == "ids":
            rows.append({"input_ids": ids, "labels": ids.clone()})
        else:
            mask = (torch.arange(LENGTH) < LENGTH - row % 5).long()
            rows.append({"input_ids": ids, "attention_mask": mask, "labels": ids[0] % 2})
    return rows


def batches(rows: list[dict[str, torch.Tensor]], size: int = BATCH) -> list[dict[str, torch.Tensor]]:
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [{name: torch.stack([row[name] for row in part]) for name in part[0]} for part in parts]


def train_reference(model: torch.nn.Module, rows: list, held_out: list) -> tuple[list[float], float]:
    """Losses of each step of plain AdamW over `rows` in order, and the mean loss of `held_out` afterwards."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for batch in batches(rows):
        optimizer.zero_grad()
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return losses, sum(model.eval()(**batch).loss.item() for batch in batches(held_out)) / len(batches(held_out))


@pytest.mark.parametrize("make, labels", [(gpt2, "ids"), (bert, "class")], ids=["gpt2", "bert"])
def test_the_trainer_trains_evaluates_and_saves(make, labels, tmp_path):
    from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments

    torch.manual_seed(0)
    model = make()
    reference = copy.deepcopy(model)
    rows, held_out = samples(6 * BATCH, labels, seed=1), samples(2 * BATCH, labels, seed=2)
    expected, expected_held_out = train_reference(reference, rows, held_out)

    class InOrder(IPUTrainer):
        def _get_train_sampler(self):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = IPUTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        fp32=True,
        disable_tqdm=True,
    )
    trainer = InOrder(model, IPUConfig(), arguments, train_dataset=rows, eval_dataset=held_out)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01  # the weights did change
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected_held_out, abs=1e-4)

    trainer.save_model()
    saved = type(model).from_pretrained(tmp_path)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=lambda m: f"{name}: {m}")  # noqa: B023
