"""A checkpoint that is evaluated in a second: a tokenizer learnt from a text of its own, random weights, a WikiText of
two pages and a LAMBADA of a few rows. Used by the tests of evaluation."""

import dataclasses
import json

import torch
import transformers

from model.checkpoint import save_pretrained
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from tokenizer import Tokenizer, train_bpe

TEXT = """
 = The river =

 The river 's source is a spring , 1 @,@ 000 metres high ( in the north ) ; it flows " to the sea " .
 = = Course = =

 It passes five towns and two well @-@ known bridges , of which the first is 3 @.@ 5 miles long .

 = The town =

 A town ' s market is where the people meet . It rains on the town for most of the year : it is wet .
"""
ROWS = [
    "the people of the town meet where the river flows to the sea",
    "it rains on the bridge and it rains on the market and it rains on the town",
    "a spring is the source of the river",
]


def tokenizer() -> Tokenizer:
    return train_bpe([TEXT, *ROWS], 300)


def model(vocabulary: int, positions: int = 32, layers: int = 2, seed: int = 0) -> GPT2LMHeadModel:
    """Random weights, large enough that predictions differ from position to position."""
    torch.manual_seed(seed)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            -(-vocabulary // 16) * 16,
            positions,
            16,
            layers,
            2,
            real_vocab_size=vocabulary,
            eos_token_id=0,
            bos_token_id=0,
        )
    )
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        gpt2.transformer.wte.weight[vocabulary:] = 0.0
    return gpt2.eval()


def reference(gpt2: GPT2LMHeadModel) -> transformers.GPT2LMHeadModel:
    """transformers' model with the same weights, in float64."""
    config = dataclasses.replace(gpt2.config, vocab_size=gpt2.config.real_vocab_size)
    other = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config.to_dict(), attn_implementation="eager"))
    state = dict(gpt2.state_dict())
    for name in ("transformer.wte.weight", "lm_head.weight"):
        state[name] = state[name][: config.vocab_size]
    other.load_state_dict(state)
    return other.double().eval()


def write(folder, positions: int = 32, layers: int = 2, seed: int = 0):
    """The checkpoint and its data in `folder`; returns the model."""
    bpe = tokenizer()
    gpt2 = model(bpe.vocab_size, positions, layers, seed)
    save_pretrained(gpt2, folder / "checkpoint")
    (folder / "checkpoint" / "tokenizer.json").write_text(bpe.to_json(), encoding="utf-8")
    (folder / "data" / "wikitext-103").mkdir(parents=True)
    for name in ("wiki.test.tokens", "wiki.test.raw"):
        (folder / "data" / "wikitext-103" / name).write_text(TEXT, encoding="utf-8")
    lines = "".join(json.dumps({"text": row}) + "\n" for row in ROWS)
    (folder / "data" / "lambada_test.jsonl").write_text(lines, encoding="utf-8")
    return gpt2
