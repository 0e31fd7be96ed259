"""Data, tokenizer and model of a run: which rows are tokens, which id ends a text, and what contradicts what."""

from __future__ import annotations

import json
import pickle
import re

import pytest
import safetensors.torch
import torch
import transformers
from tiny_run import CONFIG, NO_DROPOUT, flags, run_here, write_config, write_corpus

from model.checkpoint import load_pretrained, save_pretrained
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from tokenizer import Tokenizer

WTE = "transformer.wte.weight"
ADDED = ["<|user|>", "<|bot|>", "<|pad|>"]
ONE_STEP = {"training_steps": 1, "stride": 16}


def write_tokenizer(folder, entries, added=(), end=None, slow=False):
    """<|endoftext|> is 0, the tokens `added` are the last of `entries`; as one file, or in the older form."""
    folder.mkdir(exist_ok=True)
    tokens = {"<|endoftext|>": 0, **{f"t{i}": i for i in range(1, entries - len(added))}}
    extra = {token: len(tokens) + i for i, token in enumerate(added)}
    if slow:
        (folder / "vocab.json").write_text(json.dumps(tokens))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        (folder / "added_tokens.json").write_text(json.dumps(extra))
    else:
        listed = [{"id": i, "content": token, "special": True} for token, i in {"<|endoftext|>": 0, **extra}.items()]
        flags_off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        model = {"type": "BPE", "vocab": tokens, "merges": []}
        content = {"model": model, "added_tokens": [{**flags_off, **token} for token in listed]}
        content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    if end is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))


def saved_by_transformers(folder, rows, **changes):
    """A checkpoint of the tiny run's dimensions with as many rows."""
    torch.manual_seed(0)
    values = {**CONFIG, "vocab_size": rows, "eos_token_id": 0, "bos_token_id": 0, **changes}
    del values["real_vocab_size"]
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**values)).save_pretrained(folder)
    return folder


def from_checkpoint(folder, checkpoint, **changes):
    """One step from it, into folder / "save"."""
    given = {"config": checkpoint / "config.json", "pretrained_checkpoint": checkpoint, "learning_rate": 0}
    return run_here(flags(folder, save_model_path=folder / "save", **given, **ONE_STEP, **changes))


def refused(done):
    assert done.status == 2 and done.err.startswith("train_gpt2.py: 1 problem"), done.err
    return done.err


@pytest.mark.filterwarnings("ignore:.*64 of 70 rows of the vocabulary are tokens")
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("rows", [64, 70])
def test_added_tokens_keep_their_rows_and_names(tmp_path, slow, rows):
    """Data with the tokenizer before tokens were added, a checkpoint with three more; its rows may be padded."""
    corpus = write_corpus(tmp_path / "corpus.pkl")
    write_tokenizer(tmp_path, 61)
    checkpoint = saved_by_transformers(tmp_path / "checkpoint", rows)
    write_tokenizer(checkpoint, 64, ADDED, slow=slow)
    stored = safetensors.torch.load_file(checkpoint / "model.safetensors")[WTE][:64].half().float()
    done = from_checkpoint(tmp_path, checkpoint, train_path=corpus)
    assert done.status == 0, done.err
    saved = tmp_path / "save" / "step_1"
    assert torch.equal(safetensors.torch.load_file(saved / "model.safetensors")[WTE].float(), stored)
    again = Tokenizer.from_folder(saved)
    assert [again.token_id(token) for token in ADDED] == [61, 62, 63] and again.eot_id == 0
    assert load_pretrained(saved).config.real_vocab_size == 64


def test_tokens_added_with_transformers_to_a_checkpoint_of_ours(tmp_path):
    """Its config.json keeps our real_vocab_size, which is then too small."""
    values = {name: value for name, value in CONFIG.items() if name not in ("model_type", "vocab_size")}
    save_pretrained(GPT2LMHeadModel(GPT2Config(vocab_size=64, **values)), tmp_path / "ours")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    theirs.resize_token_embeddings(64)
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["real_vocab_size"] == 61
    write_tokenizer(tmp_path / "theirs", 64, ADDED)
    assert load_pretrained(tmp_path / "theirs").config.real_vocab_size == 64


def test_a_vocabulary_of_ones_own_above_that_of_gpt2(tmp_path):
    (tmp_path / "corpus.pkl").write_bytes(pickle.dumps([list(range(51900, 52000)) for _ in range(8)]))
    config = write_config(tmp_path, vocab_size=52000)
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "real_vocab_size"}))
    save = tmp_path / "save"
    done = run_here(flags(tmp_path, train_path=tmp_path / "corpus.pkl", save_model_path=save, **ONE_STEP))
    assert done.status == 0, done.err
    assert json.loads((save / "step_1" / "config.json").read_text())["vocab_size"] == 52000


def test_what_the_config_does_not_say_the_tokenizer_of_the_data_does(tmp_path):
    """And the run goes on from its checkpoint with the same flags."""
    corpus = write_corpus(tmp_path / "corpus.pkl")
    write_tokenizer(tmp_path, 61, ["<|end|>"], end="<|end|>")
    config, unsaid = write_config(tmp_path), ("real_vocab_size", "bos_token_id", "eos_token_id")
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k not in unsaid}))
    run = {"train_path": corpus, "save_model_path": tmp_path / "save", "save_per_steps": 1, **ONE_STEP}
    done = run_here(flags(tmp_path, **run, lr_schedule="constant"))
    assert done.status == 0, done.err
    saved = json.loads((tmp_path / "save" / "step_1" / "config.json").read_text())
    assert (saved["vocab_size"], saved["eos_token_id"], saved["bos_token_id"]) == (61, 60, 60)
    assert Tokenizer.from_folder(tmp_path / "save" / "step_1").eot_id == 60
    more = {**run, "training_steps": 2, "pretrained_checkpoint": tmp_path / "save" / "step_1"}
    done = run_here(flags(tmp_path, **more, lr_schedule="constant", resume_training_from_checkpoint=True))
    assert done.status == 0 and (tmp_path / "save" / "step_2").is_dir(), done.err


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(tmp_path):
    data = tmp_path / "data"
    write_tokenizer(data, 70)
    corpus = write_corpus(data / "corpus.pkl")
    write_config(tmp_path)
    said = refused(run_here(flags(tmp_path, train_path=corpus, save_model_path=tmp_path / "save", **ONE_STEP)))
    assert f"{data}: the tokenizer there has 70 entries, the vocabulary of --config {tmp_path / 'tiny.json'} 64" in said
    assert "vocab_size 70 and eos_token_id 0" in said


def test_tokens_in_the_padding_of_the_vocabulary(tmp_path):
    """A tokenizer with a few more than the 61 of the json file, whose 64 rows have room for them."""
    data, save = tmp_path / "data", tmp_path / "save"
    write_tokenizer(data, 63)
    write_config(tmp_path)
    corpus = write_corpus(data / "corpus.pkl", largest_id=62)
    done = run_here(flags(tmp_path, train_path=corpus, save_model_path=save, **ONE_STEP))
    assert done.status == 0, done.err
    assert safetensors.torch.load_file(save / "step_1" / "model.safetensors")[WTE].shape[0] == 63


def test_a_tokenizer_with_fewer_entries_than_the_data_is_refused(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.pkl")
    write_tokenizer(tmp_path, 50)
    write_config(tmp_path)
    said = refused(run_here(flags(tmp_path, train_path=corpus, save_model_path=tmp_path / "save", **ONE_STEP)))
    assert f"--train-path {corpus}: has the id 60, and the tokenizer of {tmp_path}" in said


def test_two_tokenizers_that_contradict_each_other_are_refused(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.pkl")
    write_tokenizer(tmp_path, 61, ["<|other|>"])
    checkpoint = saved_by_transformers(tmp_path / "checkpoint", 64)
    write_tokenizer(checkpoint, 64, ADDED)
    said = refused(from_checkpoint(tmp_path, checkpoint, train_path=corpus))
    assert "1 tokens have other ids or are missing, such as '<|other|>'" in said and "data.prepare --tokenizer" in said


def test_ends_that_differ_are_told(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.pkl")
    write_tokenizer(tmp_path, 61)
    write_config(tmp_path, eos_token_id=7)
    done = run_here(flags(tmp_path, train_path=corpus, **ONE_STEP))
    assert done.status == 0, done.err
    assert f"texts end with the id 0 by the tokenizer of {tmp_path}, with 7 by the model's" in done.out


@pytest.mark.parametrize("end", [7, None], ids=["other end", "no end"])
def test_padding_that_ends_texts_by_the_tokenizer_is_refused(tmp_path, end):
    """The configuration alone is sound: it names another end, or leaves that to the tokenizer."""
    corpus = write_corpus(tmp_path / "corpus.pkl")
    write_tokenizer(tmp_path, 61)
    path = write_config(tmp_path, model_type="gpt2_variant", variant={"padding_id": 0}, eos_token_id=end)
    values = {key: value for key, value in json.loads(path.read_text()).items() if end or "token_id" not in key}
    path.write_text(json.dumps(values))
    said = refused(run_here(flags(tmp_path, train_path=corpus, save_model_path=tmp_path / "save", **ONE_STEP)))
    assert str(path) in said and str(tmp_path) in said and not (tmp_path / "save").exists()
    assert "padding_id" in said and "0" in said and "see where texts end" in said


def test_the_factor_of_serialization_divides_the_rows_in_memory(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.pkl")
    write_config(tmp_path, vocab_size=61)
    given = {"train_path": corpus, "embedding_serialization_factor": 4}
    assert run_here(flags(tmp_path, **given, **ONE_STEP)).status == 0


@pytest.mark.parametrize("change", [{"reorder_and_upcast_attn": True}, {"scale_attn_by_inverse_layer_idx": True}])
def test_variants_of_attention_are_trained_and_saved(tmp_path, change):
    """The loss of a step at a rate of 0 is that of transformers on the checkpoint it saves."""
    corpus = write_corpus(tmp_path / "corpus.pkl", articles=2, length=17)
    write_config(tmp_path, **NO_DROPOUT, **change, initializer_range=0.5)
    run = {"training_steps": 1, "learning_rate": 0, "save_model_path": tmp_path / "save"}
    done = run_here(flags(tmp_path, train_path=corpus, **run))
    assert done.status == 0, done.err
    reference = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "save" / "epoch_0", attn_implementation="eager", dtype=torch.float32
    )
    assert all(getattr(reference.config, name) for name in change)
    ids = torch.tensor(pickle.loads(corpus.read_bytes()))
    logits = reference.eval()(ids[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    said = float(re.search(r"loss: ([\d.]+)", done.out).group(1))
    assert said == pytest.approx(expected.item(), abs=5e-4)
    plain = {name: False for name in change}
    other = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**reference.config.to_dict(), **plain}))
    other.load_state_dict(reference.state_dict())
    if "scale_attn_by_inverse_layer_idx" in change:
        assert not torch.allclose(other.eval()(ids[:, :-1]).logits, logits, atol=1e-2)
