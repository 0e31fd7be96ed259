"""The protocols of other systems' publications, each computed again window by window with transformers' GPT-2 in
float64, from the words that describe it; and files as they are downloaded."""

import dataclasses
import gzip
import io
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoint
import torch
from test_evaluate_program import run as evaluate
from test_evaluation_protocols import log_probabilities, scorer

from data.building import detokenizer
from model.checkpoint import save_pretrained
from model.gpt2 import GPT2LMHeadModel
from tasks import texts
from tasks.names import FURTHER
from tasks.protocols import Planner
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """(folder, our model, transformers' in float64, its tokenizer)."""
    folder = tmp_path_factory.mktemp("protocols")
    gpt2 = tiny_checkpoint.write(folder)
    return folder, gpt2, tiny_checkpoint.reference(gpt2), tiny_checkpoint.tokenizer()


def losses(reference, tokens):
    """(n - 1,) nats: of each token but the first, after those before it."""
    tokens = list(map(int, tokens))
    return -log_probabilities(reference, tokens[:-1])[range(len(tokens) - 1), tokens[1:]].numpy()


def computed(there, protocol, window, text=None, batch=None, padding=None, task="WIKITEXT103"):
    """The result of a protocol on a text, by our program's own way."""
    folder, gpt2, _, bpe = there
    path = folder / "text"
    path.write_text(text or tiny_checkpoint.TEXT, encoding="utf-8")
    (job,) = Planner(bpe, window, 4, batch=batch, padding=padding).jobs(task, path, [protocol])
    measure = scorer(gpt2)
    return job.result(measure.score(job.cut, job.cut.length, job.cut.width))


@pytest.mark.parametrize("window, batch", [(16, 2), (16, 3), (31, 1), (7, 4)])
def test_tfchat(there, window, batch):
    """Windows of T + 1 tokens with shift T of the lines' tokens one after the other; batches that are not full go."""
    _, _, reference, bpe = there
    stream = [token for line in tiny_checkpoint.TEXT.split("\n") if line.strip() for token in bpe.encode(line)]
    windows = [stream[start : start + window + 1] for start in range(0, len(stream), window)]
    windows = [tokens for tokens in windows if len(tokens) == window + 1]
    windows = windows[: len(windows) // batch * batch]
    mean = np.mean([losses(reference, tokens).mean() for tokens in windows])
    result = computed(there, "token-tfchat", window, batch=batch)
    scored = len(windows) * window
    assert result.counts == {"bpe": len(stream), "windows": len(windows), "batch": batch, "scored": scored}
    assert result.values["ppl"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert len(stream) != len(bpe.encode(tiny_checkpoint.TEXT)), "ends of lines are no tokens of it"


def test_tfchat_does_not_score_what_it_takes_for_padding(there):
    _, _, reference, bpe = there
    lines = [line for line in tiny_checkpoint.TEXT.split("\n") if line.strip()]
    stream = np.concatenate([bpe.encode(line) for line in lines])
    padding = int(np.bincount(stream).argmax())  # the most frequent token, for the sake of the test
    windows = (len(stream) - 1) // 16
    every = np.concatenate([losses(reference, stream[16 * n : 16 * n + 17]) for n in range(windows)])
    kept = every[stream[1 : len(every) + 1] != padding]
    result = computed(there, "token-tfchat", 16, batch=1, padding=padding)
    assert result.counts["scored"] == len(kept) < len(every)
    assert result.values["loss"] == pytest.approx(np.mean(kept), rel=1e-5)


@pytest.mark.parametrize("window, batch", [(16, 3), (16, 1), (12, 4), (12, 8), (32, 2)])
def test_lm_finetuning_as_published_and_as_it_should_be(there, window, batch):
    """Chunks of T - 1 tokens of the detokenized text; the last one is padded with id 0 to the longest of its batch."""
    _, _, reference, bpe = there
    text = tiny_checkpoint.TEXT
    ids = list(bpe.encode(detokenizer.wikitext(text)))
    chunks = [ids[start : start + window - 1] for start in range(0, len(ids), window - 1)]
    assert len(chunks[-1]) < window - 1
    batches = [chunks[start : start + batch] for start in range(0, len(chunks), batch)]
    means = []
    for rows in batches:
        longest = max(map(len, rows))
        rows = [row + [0] * (longest - len(row)) for row in rows]
        means.append(np.concatenate([losses(reference, row) for row in rows]).mean())
    n_words = len(text.strip().split(" "))
    ratio = (len(ids) - 1) / (n_words - 1)
    values = computed(there, "token-lm-finetuning", window, batch=batch).values
    assert values["loss"] == pytest.approx(np.mean(means), rel=1e-5)
    assert values["ppl"] == pytest.approx(math.exp(np.mean(means)), rel=1e-4)
    assert values["adjusted ppl"] == pytest.approx(math.exp(np.mean(means) * ratio), rel=1e-4)
    plain = computed(there, "token-chunks", window)
    every = np.concatenate([losses(reference, chunk) for chunk in chunks])
    assert plain.values["ppl"] == pytest.approx(math.exp(every.mean()), rel=1e-5)
    assert plain.counts["scored"] == len(every) == len(ids) - len(chunks)
    after = computed(there, "token-chunks-eot", window)
    every = np.concatenate([losses(reference, [bpe.eot_id, *chunk]) for chunk in chunks])
    assert after.values["loss"] == pytest.approx(every.mean(), rel=1e-5) and after.counts["scored"] == len(ids)


def test_the_default_batch_of_each_is_what_was_published(there):
    assert computed(there, "token-lm-finetuning", 16).counts["batch"] == 8
    assert computed(there, "token-tfchat", 16).counts["batch"] == 2


@pytest.mark.parametrize("window", [7, 16, 31])
def test_gpt_star_as_published_and_as_it_should_be(there, window):
    """The slot of the short last window repeats the loss of the one before; the sum is divided by all tokens."""
    _, _, reference, bpe = there
    joined = "\n\n".join(line + "\n" if line.strip() else "" for line in tiny_checkpoint.TEXT.split("\n")[:-1])
    ids = bpe.encode(joined)
    published, total, scored = [], 0.0, 0
    for start in range(0, len(ids), window):
        tokens = ids[start : start + window]
        if len(tokens) == window:
            published.append(losses(reference, tokens).mean() * window)
        else:
            published.append(published[-1])
        total, scored = total + losses(reference, tokens).sum(), scored + len(tokens) - 1
    assert len(ids) % window, "the last window is short"
    result = computed(there, "token-gpt-star", window)
    assert result.values["ppl"] == pytest.approx(math.exp(sum(published) / len(ids)), rel=1e-5)
    should_be = computed(there, "token-joined", window)
    assert should_be.values["ppl"] == pytest.approx(math.exp(total / scored), rel=1e-5)
    assert should_be.values["ppl"] != pytest.approx(result.values["ppl"], rel=1e-4)
    assert (result.counts["scored"], should_be.counts["scored"]) == (len(ids) // window * (window - 1), scored)


def test_gpt_star_repeats_nothing_where_the_last_window_is_whole(there):
    _, _, reference, bpe = there
    text = "the river flows to the sea"
    ids = bpe.encode(text + "\n")
    window = len(ids) // 2 if len(ids) % 2 == 0 else len(ids)
    parts = [losses(reference, ids[start : start + window]).mean() for start in range(0, len(ids), window)]
    result = computed(there, "token-gpt-star", window, text=text + "\n")
    assert result.values["loss"] == pytest.approx(np.mean(parts), rel=1e-5)


@pytest.mark.parametrize(
    "task, protocol, unit", [("ENWIK8", "bits-per-byte-disjoint", 1), ("TEXT8", "bits-per-character-disjoint", 0)]
)
def test_bits_over_windows_that_share_nothing(there, task, protocol, unit):
    _, _, reference, bpe = there
    text = "é — the river flows to the sea, and the town is one of the five on it"
    ids = bpe.encode(text)
    parts = [losses(reference, ids[start : start + 8]) for start in range(0, len(ids), 8)]
    units = len(text.encode()) if unit else len(text)
    bits = np.concatenate(parts).mean() / math.log(2) * len(ids) / units
    result = computed(there, protocol, 8, text=text, task=task)
    measure = "bits per byte" if unit else "bits per character"
    assert result.values[measure] == pytest.approx(bits, rel=1e-5) and len(text.encode()) > len(text)


def test_a_result_that_was_cut_short_is_of_what_was_reached(there):
    folder, gpt2, reference, bpe = there
    (folder / "text").write_text(tiny_checkpoint.TEXT, encoding="utf-8")
    (job,) = Planner(bpe, 16, 4).jobs("WIKITEXT103", folder / "text", ["token-gpt-star"])
    found = scorer(gpt2, 2).score(job.cut, job.cut.length, job.cut.width, lambda done: True)
    result = job.result(found)
    ids = bpe.encode(texts.joined_lines(tiny_checkpoint.TEXT))
    mean = np.mean([losses(reference, ids[:16]).mean(), losses(reference, ids[16:32]).mean()])
    assert not result.complete and result.values["loss"] == pytest.approx(mean, rel=1e-5)


def test_further_protocols_are_computed_only_if_they_are_named(there, tmp_path):
    folder, _, _, bpe = there
    path = folder / "data" / "wikitext-103" / "wiki.test.tokens"
    usual = [job.protocol for job in Planner(bpe, 16, 4).jobs("WIKITEXT103", path)]
    assert usual == ["token", "token-joined", "word", "adjusted"]
    kept = tmp_path / "kept.json"
    words = ("--protocols", *FURTHER["WIKITEXT103"], "--seq-length", 16, "--protocol-batch", 3, "--json", kept)
    status, out, err = evaluate(folder, *words)
    assert status == 0, err
    results = {one["protocol"]: one for one in json.loads(kept.read_text(encoding="utf-8"))["results"]}
    assert set(results) == set(FURTHER["WIKITEXT103"])
    assert Path(results["token-gpt-star"]["files"][0]).name == "wiki.test.raw"
    direct = computed(there, "token-lm-finetuning", 16, batch=3)
    assert results["token-lm-finetuning"]["values"]["ppl"] == pytest.approx(direct.values["ppl"], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--protocols", "token", "--protocol-batch", 2],
            "--protocol-batch 2: is of token-tfchat and token-lm-finetun",
        ),
        (["--protocols", "token-gpt"], "WIKITEXT103 has no token-gpt; it has token, token-joined, word, adjusted, tok"),
        (
            ["--protocols", "token-tfchat", "--protocol-batch", 900],
            "wiki.test.tokens: its 200 tokens fill no 900 windows of 32",
        ),
        (["--protocols", "token-chunks", "--seq-length", 2], "raise --seq-length to 3 or more"),
    ],
)
def test_what_a_protocol_cannot_do_names_flag_and_file(there, words, said):
    status, out, err = evaluate(there[0], *words)
    assert status == 2 and said in err and "Traceback" not in err, err


def test_a_text_shorter_than_a_window_of_gpt_star(there, tmp_path):
    (tmp_path / "short.txt").write_text("the river flows", encoding="utf-8")
    words = ("--text", tmp_path / "short.txt", "--protocols", "token-gpt-star")
    status, _, err = evaluate(there[0], *words)
    assert status == 2 and "short.txt: its " in err and "fill no window of 32; lower --seq-length" in err


def test_alibi_models_by_context_beyond_their_training_length(there, tmp_path):
    """The protocol at 24 and 48 tokens of a model made for 16: what the same weights give as a model made for 64."""
    folder, _, _, bpe = there
    base = tiny_checkpoint.model(bpe.vocab_size).config
    alibi = {"position_embedding": "alibi", "parallel_residual": True}
    for name, positions in (("short", 16), ("long", 64)):
        torch.manual_seed(3)
        gpt2 = GPT2LMHeadModel(dataclasses.replace(base, n_positions=positions, **alibi))
        save_pretrained(gpt2, tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(bpe.to_json(), encoding="utf-8")
    found = {}
    for name in ("short", "long"):
        for window in (24, 48):
            words = ("--seq-length", window, "--protocols", "token-gpt-star", "--json", tmp_path / "result.json")
            status, _, err = evaluate(folder, *words, checkpoint=tmp_path / name)
            assert status == 0, err
            (one,) = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["results"]
            found[name, window] = one["values"]["ppl"]
    for window in (24, 48):
        assert found["short", window] == pytest.approx(found["long", window], rel=1e-6)
    assert found["short", 24] != found["short", 48]


# ---- Files as they are downloaded --------------------------------------------------------------------------------


def zipped(**members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return packed.getvalue()


def test_a_packed_file_is_the_file_in_it(there, tmp_path):
    text = "the river flows to the sea and the town is one of the five on it"
    kept = {}
    for name, content in (
        ("enwik8", text.encode()),
        ("enwik8.gz", gzip.compress(text.encode())),
        ("enwik8.zip", zipped(enwik8=text, readme="of no use")),
        ("other.zip", zipped(inside=text)),
    ):
        folder = tmp_path / name.replace(".", "")
        folder.mkdir()
        (folder / name).write_bytes(content)
        typed = ("--valid-data", folder / name) if name == "other.zip" else ()
        words = ("--data-dir", folder, *typed, "--protocols", "bits-per-byte-disjoint", "--json", tmp_path / "r.json")
        status, _, err = evaluate(there[0], *words, task="ENWIK8")
        assert status == 0, err
        (one,) = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["results"]
        kept[name] = (one["values"], one["counts"])
    assert len(kept) == 4 and all(one == kept["enwik8"] for one in kept.values())


def test_of_a_packed_file_only_the_end_is_read(tmp_path):
    (tmp_path / "text8.gz").write_bytes(gzip.compress(b"left out " * 100 + b"the end"))
    assert texts.read_text(tmp_path / "text8.gz", last_bytes=7) == "the end"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("enwik8.zip", zipped(enwik8=b"text " * 99)[:-60], "enwik8.zip: cannot be unpacked"),
        ("enwik8.zip", zipped(a="text", b="text"), "enwik8.zip: has 2 files (a, b), not one named enwik8; unpack it"),
        ("enwik8.zip", zipped(), "enwik8.zip: "),
        ("enwik8.gz", gzip.compress(bytes(range(256)), mtime=0)[:-30], "enwik8.gz: cannot be unpacked"),
        ("enwik8.gz", gzip.compress(b"a\0b", mtime=0), "enwik8.gz: is not text (it has zero bytes)"),
    ],
)
def test_packed_files_that_cannot_be_used(there, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    status, _, err = evaluate(there[0], "--data-dir", tmp_path, task="ENWIK8")
    assert status == 2 and said in err and "Traceback" not in err, err


DATA = os.environ.get("GPT2_EVAL_DATA")
real_data = pytest.mark.skipif(not DATA, reason="GPT2_EVAL_DATA does not name the folder of the evaluation files")


@real_data
def test_published_counts_of_tokens_windows_and_sequences():
    """000: 244,828 ids, 119 batches of 2 and 59 of 4; 002: 287,644 tokens; 004: 1,118 sequences of 256 tokens."""
    for batch, batches in ((2, 119), (4, 59)):
        planner = Planner(Tokenizer.gpt2(), 1024, 32, batch=batch)
        (job,) = planner.jobs("WIKITEXT103", Path(DATA) / "wiki.valid.raw", ["token-tfchat"])
        assert job.counts == {"bpe": 244_828, "windows": batch * batches, "batch": batch}
    planner = Planner(Tokenizer.gpt2(), 1024, 32)
    (job,) = planner.jobs("WIKITEXT103", Path(DATA) / "wiki.test.raw", ["token-gpt-star"])
    assert job.counts == {"bpe": 287_644, "windows": 280}
    (job,) = Planner(Tokenizer.gpt2(), 256, 32).jobs("WIKITEXT103", Path(DATA) / "wiki.test.tokens", ["token"])
    assert job.counts["bpe"] // 255 == 1118
