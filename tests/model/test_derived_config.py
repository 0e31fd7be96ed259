"""A named model with other dimensions or another vocabulary."""

import pytest

from model import derived_config
from model.config import MODELS, GPT2Config, parameter_count
from tokenizer import train_bpe


def derive(tmp_path, *words):
    output = tmp_path / "made" / "config.json"
    try:
        status = derived_config.main([*words, "--output", str(output)])
    except SystemExit as error:
        return error.code
    return status or GPT2Config.from_json(output)


@pytest.mark.parametrize(
    ("model", "expected"), [("algpt2", 32), ("algpt2-256", 64), ("algpt2-512", 128), ("gpt2", None)]
)
def test_a_factorised_embedding_keeps_its_share_of_the_width(tmp_path, model, expected):
    small = derive(tmp_path, "--model", model, "--layers", "6", "--width", "192", "--heads", "6")
    assert (small.n_layer, small.n_embd, small.n_head, small.embedding_size) == (6, 192, 6, expected)
    assert small.share_layers == (model != "gpt2") and small.real_vocab_size == 50257


@pytest.mark.parametrize("model", MODELS)
def test_without_further_flags_it_is_the_named_model(tmp_path, model):
    named, same = GPT2Config.from_json(MODELS[model]), derive(tmp_path, "--model", model)
    assert same == named and parameter_count(same) == parameter_count(named)


def test_a_vocabulary_of_ones_own(tmp_path):
    tokenizer = train_bpe(["a river, and two rivers"] * 3, 270)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    config = derive(tmp_path, "--model", "tfchat-preln", "--tokenizer", str(tmp_path))
    assert (config.real_vocab_size, config.vocab_size % 16) == (tokenizer.vocab_size, 0)
    assert config.eos_token_id == config.bos_token_id == tokenizer.eot_id
    assert GPT2Config.from_json(MODELS["tfchat-preln"]).padding_id == 0 and config.padding_id is None
    assert (config.scale_embedding, config.position_embedding) == (True, "sinusoidal")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "gpt2", "--width", "190"], "n_embd 190 is not divisible by n_head 12"),
        (["--model", "gpt2", "--layers", "0"], "n_layer must be a positive integer, not 0"),
        (["--model", "gpt3"], "--model: 'gpt3' must be one of"),
        (["--model", "gpt2", "--tokenizer", "gone"], "gone"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, capsys, words, told):
    assert derive(tmp_path, *words) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "made").exists()
