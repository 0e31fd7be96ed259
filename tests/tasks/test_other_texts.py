"""enwik8, text8 and PTB by hand: a model that finds every token equally likely needs ln V nats for each."""

import math

import pytest
import tiny_checkpoint
import torch
from test_evaluation_protocols import scorer

from data.building import detokenizer
from tasks import protocols, texts
from tasks.protocols import Corpus, Planner


@pytest.fixture(scope="module")
def uniform():
    """A tokenizer of V entries, and a model whose weights are 0."""
    bpe = tiny_checkpoint.tokenizer()
    gpt2 = tiny_checkpoint.model(bpe.vocab_size)
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.zero_()
    return bpe, scorer(gpt2, 2)


def measured(uniform, task, path, protocol):
    """(job, its values) of one protocol on the whole file."""
    bpe, measure = uniform
    (job,) = Planner(bpe, 16, 8).jobs(task, path, [protocol])
    loss, scored = measure.score(job.cut, job.cut.length, job.cut.width).total()
    assert scored == job.counts["bpe"] - 1, "every token but the first"
    return job, job.values(loss, scored)


def test_enwik8_counts_bytes_of_its_end_only(uniform, tmp_path, monkeypatch):
    monkeypatch.setitem(protocols.CORPORA, "ENWIK8", Corpus(last_bytes=41))
    path = tmp_path / "enwik8"
    end = "é — the river flows to the sea"  # 1 of 2 bytes and 1 of 3 bytes among 30 characters: 33 bytes
    path.write_bytes(b"left out, and of this only the last byte is in: " + "éééé".encode() + end.encode())
    assert len(end) == 30 and len(end.encode()) == 33
    job, values = measured(uniform, "ENWIK8", path, "bits-per-byte")
    bpe = uniform[0]
    tokens = len(bpe.encode("éééé" + end))
    assert job.counts["bytes"] == 8 + 33 and job.counts["bpe"] == tokens and job.detokenizer == "none"
    assert values["bits per byte"] == pytest.approx(math.log2(bpe.vocab_size) * tokens / 41, rel=1e-6)
    assert values["ppl"] == pytest.approx(bpe.vocab_size, rel=1e-5)
    monkeypatch.setitem(protocols.CORPORA, "ENWIK8", Corpus(last_bytes=40))  # cuts a character: what is left of it goes
    job, values = measured(uniform, "ENWIK8", path, "bits-per-byte")
    assert job.counts["bytes"] == 39


def test_the_published_end_is_5_mb():
    assert protocols.CORPORA["ENWIK8"].last_bytes == protocols.CORPORA["TEXT8"].last_bytes == 5_000_000


def test_text8_counts_characters(uniform, tmp_path):
    path = tmp_path / "text8"
    text = " the river flows to the sea and the town is one of the five on it"
    path.write_text(text, encoding="utf-8")
    job, values = measured(uniform, "TEXT8", path, "bits-per-character")
    tokens = len(uniform[0].encode(text))
    assert job.counts["characters"] == len(text) == 65
    assert values["bits per character"] == pytest.approx(math.log2(uniform[0].vocab_size) * tokens / 65, rel=1e-6)


def test_ptb_counts_words_before_it_is_detokenized(uniform, tmp_path):
    path = tmp_path / "ptb.test.txt"
    text = " no it was n't black monday \n the company 's shares fell $ N to N a share \n"
    path.write_text(text, encoding="utf-8")
    plain = " no it wasn't black monday\nthe company's shares fell $1 to 1 a share\n"
    assert detokenizer.penn_treebank(text) == plain
    job, values = measured(uniform, "PTB", path, "adjusted")
    tokens, words = len(uniform[0].encode(plain)), 18  # 6 + "\n" + 11: what single spaces separate
    assert (job.counts["bpe"], job.counts["words"]) == (tokens, words) and job.detokenizer == "penn_treebank"
    nats = math.log(uniform[0].vocab_size)
    assert values["ppl"] == pytest.approx(uniform[0].vocab_size, rel=1e-5)
    assert values["adjusted ppl"] == pytest.approx(math.exp(min(20.0, nats * (tokens - 1) / (words - 1))), rel=1e-5)


def test_a_byte_order_mark_and_crlf_change_nothing(tmp_path):
    path, text = tmp_path / "file", " = Town = \n \n A naïve text .\n"
    rows = '{"text": "one two"}\n\n{"text": "three four"}\n'
    for content in (text, rows):
        for raw in (content.encode(), b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode()):
            path.write_bytes(raw)
            assert texts.read_text(path) == content
            assert texts.read_text(path, last_bytes=12) == content.encode()[-12:].decode()
    assert texts.read_json_lines(path) == ["one two", "three four"]
    assert list(texts.numbered_texts(path)) == [(1, "one two"), (3, "three four")]
