"""Checkpoints: both ways with transformers, every fault named, and whole after a kill at any moment."""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
import warnings

import huggingface_hub
import pytest
import safetensors.torch
import torch
import transformers

from model import checkpoint
from model.checkpoint import load_pretrained, recover_interrupted, save_pretrained, write_atomically
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel

CONFIG = GPT2Config(64, 12, 12, 2, 3, activation_function="gelu", bos_token_id=49, eos_token_id=49, real_vocab_size=50)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [49, 0, 2, 7, 1, 8]])


@pytest.fixture
def model():
    torch.manual_seed(1)
    return GPT2LMHeadModel(CONFIG).eval()


@pytest.fixture
def saved(model, tmp_path):
    save_pretrained(model, tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(directory, edit):
    """Passes the stored tensors through `edit`, in place."""
    path = directory / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in safetensors.torch.load_file(path).items()}
    edit(tensors)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def as_bin(directory):
    """The same checkpoint as pytorch_model.bin."""
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    torch.save({key: tensor.clone() for key, tensor in tensors.items()}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory / "pytorch_model.bin"


def same_weights(one, other):
    pairs = list(zip(one.state_dict().items(), other.state_dict().items()))
    return len(pairs) > 28 and all(a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in pairs)


# Both ways with transformers


def test_transformers_loads_what_we_save(model, saved):
    theirs, info = transformers.GPT2LMHeadModel.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert theirs.config.vocab_size == theirs.transformer.wte.num_embeddings == 50
    torch.testing.assert_close(theirs.eval()(IDS).logits, model(IDS)[..., :50], rtol=0, atol=1e-5)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("vocab_size", [50, 64])
def test_we_load_what_transformers_saves(tmp_path, sharded, vocab_size):
    torch.manual_seed(2)
    config = transformers.GPT2Config(
        vocab_size=vocab_size, n_positions=12, n_embd=12, n_layer=2, n_head=3, bos_token_id=49, eos_token_id=49
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="3KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").is_file() == sharded
    ours = load_pretrained(tmp_path)
    assert (ours.config.vocab_size, ours.config.real_vocab_size) == (64, vocab_size)
    assert not ours.transformer.wte.weight[vocab_size:].any()
    torch.testing.assert_close(ours(IDS)[..., :vocab_size], theirs(IDS).logits, rtol=0, atol=1e-5)


def test_round_trip_is_exact(model, saved):
    loaded = load_pretrained(saved)
    assert loaded.config == model.config and not loaded.training
    assert same_weights(loaded, model)
    assert torch.equal(loaded(IDS), model(IDS))


def test_files_hold_real_rows_and_no_second_copy_of_them(saved):
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    assert tensors["transformer.wte.weight"].shape == (50, 12)
    assert "lm_head.weight" not in tensors
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_stays_half(model, tmp_path, dtype):
    model.to(dtype)
    save_pretrained(model, tmp_path)
    assert same_weights(load_pretrained(tmp_path), model)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert theirs.transformer.wte.weight.dtype == dtype
    assert torch.equal(theirs.transformer.wte.weight, model.transformer.wte.weight[:50])


def test_mixed_dtypes_load_as_the_widest(saved):
    rewrite(saved, lambda t: t.update({k: v.half() for k, v in t.items() if k.endswith("bias")}))
    assert {parameter.dtype for parameter in load_pretrained(saved).parameters()} == {torch.float32}


# The forms of the files


def test_a_bin_file(model, saved):
    as_bin(saved)
    assert same_weights(load_pretrained(saved), model)


def test_keys_without_prefix_with_mask_buffers_and_head(model, saved):
    def as_old(tensors):
        for key in list(tensors):
            tensors[key.replace("transformer.", "")] = tensors.pop(key)
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 12, 12).tril().bool()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    rewrite(saved, as_old)
    assert same_weights(load_pretrained(saved), model)


def test_the_head_alone_stands_for_both(model, saved):
    rewrite(saved, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("transformer.wte.weight")}))
    assert same_weights(load_pretrained(saved), model)


def test_positions_are_cut_to_the_first(model, saved):
    cut = load_pretrained(saved, n_positions=7)
    assert cut.config.n_positions == 7 and cut.transformer.wpe.weight.shape == (7, 12)
    assert torch.equal(cut(IDS), model(IDS))
    assert load_pretrained(saved, n_positions=12).config == model.config


WRAPPED = ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."]


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("bare", [False, True])
def test_prefixes_of_wrapped_models_are_taken_off(model, saved, prefix, bare):
    def wrap(tensors):
        for key in list(tensors):
            tensors[prefix + (key.replace("transformer.", "") if bare else key)] = tensors.pop(key)

    rewrite(saved, wrap)
    assert same_weights(load_pretrained(saved), model)


def test_compiled_blocks_inside_a_model(model, saved):
    rewrite(saved, lambda t: t.update({k.replace("h.1.", "h.1._orig_mod."): t.pop(k) for k in list(t)}))
    assert same_weights(load_pretrained(saved), model)


def test_what_changes_nothing_is_named_once_and_passed_over(model, saved):
    heads = {"score.weight": torch.ones(2, 12), "v_head.summary.bias": torch.ones(1), "lm_head.bias": torch.zeros(50)}
    rewrite(saved, lambda tensors: tensors.update(heads, counter=torch.tensor(3)))
    with pytest.warns(UserWarning) as said:
        assert same_weights(load_pretrained(saved), model)
    (warning,) = said
    names = "counter, lm_head.bias, score.weight, v_head.summary.bias"
    assert f"{saved / 'model.safetensors'}: passed over {names}: not of the language model" in str(warning.message)


# How many rows of a vocabulary are tokens


def checkpoint_of(folder, rows, stated=None):
    """With as many rows, and real_vocab_size as stated."""
    config = transformers.GPT2Config(vocab_size=rows, n_positions=4, n_embd=2, n_layer=1, n_head=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **({"real_vocab_size": stated} if stated else {})}))


def write_tokenizer(folder, entries, slow):
    """A vocabulary of `entries` ids, the last three of them added: one file, or the older form in several."""
    tokens = {"<|endoftext|>": 0, **{f"t{i}": i for i in range(1, entries - 3)}}
    added = {f"<|{i}|>": i for i in range(entries - 3, entries)}
    if slow:
        (folder / "vocab.json").write_text(json.dumps(tokens))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        (folder / "added_tokens.json").write_text(json.dumps(added))
    else:
        listed = [{"id": number, "content": token, "special": True} for token, number in added.items()]
        content = {"model": {"type": "BPE", "vocab": tokens, "merges": []}, "added_tokens": listed}
        (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(
    "rows, stated, entries, real",
    [
        (100, None, 100, 100),  # as many as the tokenizer has
        (104, None, 100, 100),  # the rest is padding
        (104, 98, 100, 100),  # tokens were added after real_vocab_size was written
        (104, 102, 100, 102),  # the file says otherwise
        (98, None, 100, 98),  # a tokenizer that does not fit: who reads texts with it refuses it
    ],
)
def test_the_rows_that_the_tokenizer_has_are_tokens(tmp_path, rows, stated, entries, real, slow):
    checkpoint_of(tmp_path, rows, stated)
    write_tokenizer(tmp_path, entries, slow)
    if real < rows:
        with pytest.warns(UserWarning, match=f"{real} of {rows} rows of the vocabulary are tokens"):
            loaded = load_pretrained(tmp_path)
    else:
        loaded = load_pretrained(tmp_path)
    assert (loaded.config.real_vocab_size, loaded.config.vocab_size) == (real, 112)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")[WTE]
    assert torch.equal(loaded.transformer.wte.weight[:real], stored[:real])


def test_without_a_tokenizer_the_rows_that_the_file_states_are_tokens(tmp_path):
    checkpoint_of(tmp_path, 50300)
    with pytest.warns(UserWarning, match=r'all 50300 rows .* tokens; if those from 50257 .* "real_vocab_size": 50257'):
        assert load_pretrained(tmp_path).config.real_vocab_size == 50300
    checkpoint_of(tmp_path, 50300, 50260)
    with pytest.warns(UserWarning, match='50260 of 50300 .* "real_vocab_size": 50300'):
        assert load_pretrained(tmp_path).config.real_vocab_size == 50260


# The hub


def test_a_hub_name_is_downloaded_unless_it_is_a_directory(model, saved, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(saved))
    monkeypatch.chdir(tmp_path)
    assert same_weights(load_pretrained("some/model"), model) and asked == ["some/model"]
    load_pretrained("saved")
    with pytest.raises(ValueError, match="no such checkpoint directory"):
        load_pretrained(tmp_path / "absent")
    assert asked == ["some/model"]


def test_the_folder_that_checkpoints_are_saved_to_is_none(model, tmp_path):
    for step in (9, 10):
        save_pretrained(model, tmp_path / f"step_{step}")
        os.utime(str(tmp_path / f"step_{step}" / "config.json"), (step, step))
    (tmp_path / "tokenizer").mkdir()  # of tokenizer.train, with a config.json for a model to come
    shutil.copy(str(tmp_path / "step_9" / "config.json"), str(tmp_path / "tokenizer"))
    with pytest.raises(ValueError, match=f"{tmp_path}: holds checkpoints .* the latest is {tmp_path / 'step_10'}"):
        load_pretrained(tmp_path)


def test_a_bin_on_the_hub_is_fetched_when_there_is_no_safetensors(model, saved, monkeypatch):
    as_bin(saved)
    hidden = saved.with_name("pytorch_model.bin")
    (saved / "pytorch_model.bin").rename(hidden)

    def snapshot_download(name, allow_patterns):
        if "pytorch_model*.bin" in allow_patterns:
            hidden.rename(saved / "pytorch_model.bin")
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert same_weights(load_pretrained("gpt2"), model)


def test_without_network_the_error_says_what_to_do(monkeypatch):
    def snapshot_download(name, **_):
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"gpt2: .*ConnectionError: no route\).*give its path"):
        load_pretrained("gpt2")


# Faults


def break_config(text):
    return lambda directory: (directory / "config.json").write_text(text)


def truncate(name):
    def cut(directory):
        if name == "pytorch_model.bin":
            as_bin(directory)
        data = (directory / name).read_bytes()
        (directory / name).write_bytes(data[: len(data) // 2])

    return cut


def bin_of(content):
    def write(directory):
        torch.save(content, as_bin(directory))

    return write


def index_of(content):
    def write(directory):
        (directory / "model.safetensors").rename(directory / "part.safetensors")
        (directory / "model.safetensors.index.json").write_text(json.dumps(content))

    return write


def drop_two(tensors):
    del tensors["transformer.h.0.ln_1.bias"], tensors["transformer.wpe.weight"]


def reshape(tensors):
    tensors["transformer.h.1.mlp.c_fc.weight"] = tensors["transformer.h.1.mlp.c_fc.weight"].t().contiguous()


WTE = "transformer.wte.weight"


@pytest.mark.parametrize(
    "damage, file, complaint",
    [
        (lambda d: (d / "config.json").unlink(), "config.json", "cannot be read"),
        (break_config("{"), "config.json", "is not JSON"),
        (break_config('{"n_embd": 12, "n_head": 5}'), "config.json", "not divisible"),
        (break_config('{"add_cross_attention": true}'), "config.json", "add_cross_attention True is not implemented"),
        (lambda d: (d / "model.safetensors").unlink(), "", "holds no weights; looked for model.safetensors"),
        (truncate("model.safetensors"), "model.safetensors", "complete"),
        (truncate("pytorch_model.bin"), "pytorch_model.bin", "complete|damaged"),
        (lambda d: as_bin(d).write_bytes(b""), "pytorch_model.bin", "complete|damaged"),
        (bin_of({"model": print}), "pytorch_model.bin", "may run code"),
        (bin_of([torch.zeros(1)]), "pytorch_model.bin", "not a mapping"),
        (bin_of({"step": 3}), "pytorch_model.bin", "not a mapping"),
        (index_of({"metadata": {}}), "model.safetensors.index.json", "no weight_map"),
        (index_of({"weight_map": {WTE: "../part.safetensors"}}), "model.safetensors.index.json", "outside"),
        (index_of({"weight_map": {WTE: "absent.safetensors"}}), "absent.safetensors", "cannot be read"),
        (index_of({"weight_map": {"x": "part.safetensors"}}), "model.safetensors.index.json", "lack .* x;"),
        (lambda d: rewrite(d, drop_two), "model.safetensors", "missing: transformer.wpe.weight, .*h.0.ln_1.bias"),
        (
            lambda d: rewrite(d, lambda t: t.update({"transformer.h.0.lora_A": torch.ones(1)})),
            "model.safetensors",
            "unexpected: .*h.0.lora_A",
        ),
        (
            lambda d: rewrite(d, lambda t: t.update({"lm_head.bias": torch.ones(50)})),
            "model.safetensors",
            "unexpected: lm_head.bias",
        ),
        (
            lambda d: rewrite(d, lambda t: t.update({"module." + WTE: t[WTE].clone()})),
            "model.safetensors",
            "holds transformer.wte.weight twice, as .*module.transformer.wte.weight",
        ),
        (lambda d: rewrite(d, reshape), "model.safetensors", r"h.1.mlp.c_fc.weight \(48, 12\) instead of \(12, 48\)"),
        (lambda d: rewrite(d, lambda t: t.update({WTE: t[WTE].int()})), "model.safetensors", "not floating point"),
        (lambda d: rewrite(d, lambda t: t.update({"lm_head.weight": t[WTE] + 1})), "model.safetensors", "tie_word"),
        (lambda d: rewrite(d, dict.clear), "model.safetensors", "and 20 more"),
    ],
)
def test_faults_are_named(saved, damage, file, complaint):
    damage(saved)
    with pytest.raises(ValueError, match=complaint) as caught:
        load_pretrained(saved)
    assert str(caught.value).startswith(f"{saved / file}: ")


def test_more_positions_than_there_are(saved):
    with pytest.raises(ValueError, match="n_positions 12, not the 13 asked for; use --max-len 12"):
        load_pretrained(saved, n_positions=13)


def test_a_path_that_is_no_directory(saved):
    with pytest.raises(ValueError, match="is a file, not a checkpoint directory"):
        load_pretrained(saved / "config.json")


def test_saving_where_it_cannot_be(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match="HINT: "):
        save_pretrained(model, tmp_path / "file" / "step_1")


# Whole or not at all


def test_write_atomically_replaces_the_whole(tmp_path):
    final = tmp_path / "runs" / "step_1"
    for content in ("first", "second"):
        with write_atomically(str(final)) as new:
            assert new.parent == final.parent and not list(new.iterdir())
            (new / content).mkdir()
            (new / content / "x").write_text(content)
            assert final.exists() == (content == "second")
        assert [path.name for path in final.iterdir()] == [content]
    assert [path.name for path in final.parent.iterdir()] == ["step_1"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_content(tmp_path, error):
    final = tmp_path / "step_1"
    for content in ("first", None):
        try:
            with write_atomically(final) as new:
                (new / "x").write_text(str(content))
                if content is None:
                    raise error
        except error:
            assert content is None
    assert (final / "x").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


def test_a_name_taken_by_a_file_is_refused(tmp_path):
    (tmp_path / "step_1").write_text("mine")
    for path in (tmp_path / "step_1", tmp_path / "step_1" / "below"):
        with pytest.raises(ValueError, match="choose another"):
            with write_atomically(path):
                raise AssertionError("the body must not run")
    assert (tmp_path / "step_1").read_text() == "mine"


def test_through_a_symbolic_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with write_atomically(tmp_path / "link") as new:
        (new / "x").write_text("1")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "x").read_text() == "1"


def save_numbers(final, first, count):
    """Saves models whose weights are all one number, first, first + 1, ..., with a state file beside them."""
    torch.set_num_threads(1)
    model = GPT2LMHeadModel(dataclasses.replace(CONFIG, n_layer=1))
    for number in range(first, first + count):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float(number))
        with write_atomically(final) as new:
            save_pretrained(model, new)
            torch.save({"step": number}, new / "training_state.pt")


def number_saved(final):
    """The number that a whole checkpoint holds."""
    values = {value for parameter in load_pretrained(final).parameters() for value in parameter.unique().tolist()}
    values.discard(0.0)  # padding rows
    (number,) = values
    assert torch.load(final / "training_state.pt", weights_only=True) == {"step": number}
    return number


def run_and_wait(target, *args, kill_after=None):
    """Runs `target` in a forked process; True if it ended by SIGKILL."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_sigkill_at_random_moments(tmp_path):
    final = tmp_path / "step_1"
    save_numbers(final, 1, 1)
    number, moments = 1, random.Random(0)
    for _ in range(15):
        assert run_and_wait(save_numbers, final, number + 1, 10_000, kill_after=moments.uniform(0.01, 0.2))
        recover_interrupted(final)
        found = number_saved(final)
        assert found >= number
        number = int(found)
    assert number > 1  # saves did happen in between
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


def save_until_call(final, last_call):
    """Saves 2 over 1 and dies by SIGKILL just before the given call that changes the disk."""
    calls = 0

    def dying(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == last_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("rename", "fsync", "mkdir", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    save_numbers(final, 2, 1)


def test_sigkill_at_every_step(tmp_path):
    outcomes, put_back, call = [], 0, 0
    killed = True
    while killed:
        call += 1
        final = tmp_path / str(call) / "step_1"
        save_numbers(final, 1, 1)
        killed = run_and_wait(save_until_call, final, call)
        if not final.exists():
            with pytest.raises(ValueError, match="interrupted while replacing it"):
                load_pretrained(final)
        put_back += recover_interrupted(final)
        outcomes.append(number_saved(final))
        assert [path.name for path in final.parent.iterdir()] == ["step_1"]
    assert outcomes == sorted(outcomes) and outcomes[0] == 1 and outcomes[-2:] == [2, 2]
    assert put_back == 1  # the one moment between the renames


def test_a_write_after_an_interrupted_one_keeps_what_was_aside(tmp_path):
    final = tmp_path / "step_1"
    save_numbers(final, 1, 1)
    os.rename(final, checkpoint._names(final)[2])
    with pytest.raises(OSError), write_atomically(final):
        raise OSError("no space left")
    assert number_saved(final) == 1


VARIANTS = [
    {"norm_position": "post", "final_norm": False},
    {"share_layers": True, "embedding_size": 4, "tie_word_embeddings": False},
    {"parallel_residual": True, "position_embedding": "alibi", "embedding_norm": True, "activation_function": "gelu"},
    {"position_embedding": "sinusoidal", "attention_bias": False, "head_dim": 5, "padding_id": 0},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_variant_is_saved_whole_and_transformers_refuses_it(tmp_path, changes):
    torch.manual_seed(4)
    config = dataclasses.replace(CONFIG, **changes)
    model = GPT2LMHeadModel(config).eval()
    save_pretrained(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the token that pads
        again = load_pretrained(tmp_path)
    ids = torch.randint(50, (2, 9))
    assert torch.equal(again(ids), model(ids)) and again.config == config
    for reader in (transformers.AutoModelForCausalLM, transformers.GPT2LMHeadModel):
        with pytest.raises((ValueError, KeyError), match="gpt2_variant"):
            reader.from_pretrained(tmp_path)


def test_a_separate_head_goes_to_transformers_and_back(tmp_path):
    torch.manual_seed(4)
    model = GPT2LMHeadModel(dataclasses.replace(CONFIG, tie_word_embeddings=False)).eval()
    save_pretrained(model, tmp_path / "ours")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    ids = torch.randint(50, (2, 9))
    torch.testing.assert_close(theirs(ids).logits, model(ids)[..., :50], rtol=1e-5, atol=1e-6)
    assert not torch.equal(theirs.lm_head.weight, theirs.transformer.wte.weight)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_pretrained(tmp_path / "theirs")
    assert not again.config.tie_word_embeddings and torch.equal(again(ids)[..., :50], model(ids)[..., :50])


@pytest.mark.parametrize(
    "stored, told, setting",
    [
        ({"position_embedding": "alibi"}, {"position_embedding": "learned"}, "position_embedding, .*'learned' there"),
        ({}, {"final_norm": False}, "final_norm, .*False there"),
        ({}, {"share_layers": True}, "share_layers, .*True there"),
        ({"embedding_size": 4}, {"embedding_size": None}, "embedding_size, .*None there"),
        ({}, {"parallel_residual": True}, "parallel_residual, .*True there"),
        ({"share_layers": True}, {"share_layers": False}, "layers: 1, and n_layer is 2, share_layers False"),
    ],
)
def test_weights_of_another_variant_are_named_with_the_setting(tmp_path, stored, told, setting):
    save_pretrained(GPT2LMHeadModel(dataclasses.replace(CONFIG, **stored)), tmp_path)
    values = dataclasses.replace(CONFIG, vocab_size=50, **{**stored, **told}).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=setting) as caught:
        load_pretrained(tmp_path)
    assert "is not the GPT-2 that config.json beside it describes" in str(caught.value)
    assert str(caught.value).count("which decides") <= 1, "settings that have nothing to do with it"


def test_positions_that_are_not_learned_are_as_many_as_asked_for(tmp_path):
    for kind in ("alibi", "sinusoidal"):
        model = GPT2LMHeadModel(dataclasses.replace(CONFIG, position_embedding=kind)).eval()
        save_pretrained(model, tmp_path / kind)
        longer = load_pretrained(tmp_path / kind, n_positions=40)
        ids = torch.randint(50, (2, 40))
        length = CONFIG.n_positions
        torch.testing.assert_close(longer(ids)[:, :length], model(ids[:, :length]), rtol=1e-5, atol=1e-6)
        assert longer.config.n_positions == 40
        assert load_pretrained(tmp_path / kind, at_least=40).config.n_positions == 40
        assert load_pretrained(tmp_path / kind, at_least=3).config.n_positions == length
    save_pretrained(GPT2LMHeadModel(CONFIG), tmp_path / "learned")
    assert load_pretrained(tmp_path / "learned", at_least=40).config.n_positions == length
