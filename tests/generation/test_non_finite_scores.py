"""Nothing is drawn from scores that are not finite, by whatever route they come; the layer is named, status 1."""

import contextlib
import io
import math

import pytest
import tiny_checkpoint
import torch

import custom_ops
import text_generate_gpt2
from custom_ops import decode_blocks as native
from generation.requests import NonFiniteScores, Text
from model.checkpoint import save_pretrained
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel

FLAGS = {
    "greedy": ["--topk", "1"],
    "the whole distribution": ["--topk", "0", "--top-p", "0.9"],
    "half": ["--topk", "1", "--fp16", "True"],
    "int8": ["--topk", "4", "--int8", "True"],
    "modules": ["--topk", "1", "--custom-ops", "False"],
    "a loop": ["--topk", "4", "--poptorch-loop", "True", "--single-ipu", "True"],
}


def native_operators():
    return custom_ops.load() == "native" and native.available()


def generate(tmp_path, name, value, *flags):
    """(status, stdout, stderr) for a checkpoint with this value in one of its weights."""
    torch.manual_seed(0)
    bpe = tiny_checkpoint.tokenizer()
    gpt2 = GPT2LMHeadModel(GPT2Config(304, 16, 32, 2, 2, real_vocab_size=bpe.vocab_size))
    with torch.no_grad():
        gpt2.get_parameter(name).view(-1)[0] = value
    save_pretrained(gpt2, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer.json").write_text(bpe.to_json(), encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("Hi\n", encoding="utf-8")
    words = ["--model-name-or-path", str(tmp_path / "checkpoint"), "--prompt-file", str(tmp_path / "prompts.txt")]
    words += ["--input-len", "4", "--output-len", "4", "--log-probabilities", "True", *flags]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = text_generate_gpt2.main(words)
    return status, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("flags", FLAGS.values(), ids=list(FLAGS))
@pytest.mark.parametrize("name", ["h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight", "h.1.ln_2.weight"])
def test_it_is_refused(tmp_path, name, flags, value):
    if "--int8" in flags and not native_operators():
        pytest.skip("int8 needs custom_ops.so")
    status, out, err = generate(tmp_path, f"transformer.{name}", value, *flags)
    assert (status, out) == (1, ""), err
    assert "token (number 1 of a text) are not finite; the first layer" in err and "HINT: " in err
    assert f"the weights: transformer.{name}, 1 of whose" in err and "Traceback" not in err


def test_a_weight_that_half_cannot_hold(tmp_path):
    status, out, err = generate(tmp_path, "transformer.h.0.mlp.c_fc.weight", 1e6, "--topk", "1", "--fp16", "True")
    assert (status, out) == (1, ""), err
    assert "transformer.h.0.mlp.c_fc" in err and "HINT: compute in float32 (without --fp16)" in err
    assert generate(tmp_path, "transformer.h.0.mlp.c_fc.weight", 1e6, "--topk", "1")[0] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_no_text_takes_such_a_token(value):
    text = Text([1], torch.zeros(3))
    assert text.take(5, -1.0, ())
    with pytest.raises(NonFiniteScores, match="token 2 of a text"):
        text.take(7, value, (7,))  # a stop token neither
    assert text.tokens == [5] and not text.ended
