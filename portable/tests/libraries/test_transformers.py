"""Models of transformers 5 as they are installed, in both executors: what plain torch computes."""

from __future__ import annotations

import copy

import pytest
import torch

import poptorch

pytestmark = pytest.mark.programs

VOCABULARY = 97
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}


def ids(length: int) -> torch.Tensor:
    """(2, length)."""
    return torch.randint(4, VOCABULARY, (2, length))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = ids(16)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2, **dropout)
    return GPT2LMHeadModel(config), {"input_ids": tokens, "labels": tokens}


def bert():
    from transformers import BertConfig, BertForMaskedLM

    tokens, mask = ids(16), torch.ones(2, 16, dtype=torch.long)
    mask[1, 10:] = 0
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **sizes, **dropout))
    return model, {"input_ids": tokens, "attention_mask": mask, "labels": tokens}


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    config = T5Config(vocab_size=VOCABULARY, dropout_rate=0.0, decoder_start_token_id=0, **sizes)
    return T5ForConditionalGeneration(config), {"input_ids": ids(16), "labels": ids(8)}


def whisper():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"d_model": 32, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16}
    for part in ("encoder", "decoder"):
        sizes.update({f"{part}_layers": 2, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 64})
    config = WhisperConfig(vocab_size=VOCABULARY, **sizes, **SPECIAL)
    return WhisperForConditionalGeneration(config), {"input_features": torch.randn(2, 8, 40), "labels": ids(8)}


def train_reference(model: torch.nn.Module, inputs: dict[str, torch.Tensor], steps: int) -> list[float]:
    """The losses of `steps` of plain SGD on the same batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("make", [gpt2, bert, t5, whisper])
def test_training_and_inference_are_those_of_plain_torch(make):
    torch.manual_seed(0)
    model, inputs = make()
    model.train()
    reference = copy.deepcopy(model)
    expected = train_reference(reference, inputs, steps=3)
    assert expected[2] < expected[0] - 0.1
    trainer = poptorch.trainingModel(model, None, poptorch.optim.SGD(model.parameters(), lr=0.1))
    assert [trainer(**inputs).loss.item() for _ in range(3)] == pytest.approx(expected, abs=1e-4)
    for found, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-4, atol=1e-5)

    with torch.no_grad():
        wanted = reference.eval()(**inputs)
    found = poptorch.inferenceModel(copy.deepcopy(reference))(**inputs)
    assert type(found) is type(wanted)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-4, atol=1e-4)
