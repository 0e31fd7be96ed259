"""bpe_encoder.so against tiktoken, the `tokenizers` library and the published algorithm; and what serves without it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import EOT, Tokenizer, native, train_bpe, unicode_classes
from tokenizer.bpe import byte_characters, published_files

ROOT = Path(__file__).resolve().parents[2]
# tiktoken's own spelling of GPT-2's expression: what it uses by default cannot be read without the network.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# What real texts are made of, so that words, runs of white space and contractions meet in every order.
PIECES = st.one_of(
    st.sampled_from(["'s", "'ll", "'re", "'", "''", "'S", "’s", "l've", " ", "  ", "\n", "\n\n", "\t", "\r\n", " \n "]),
    st.sampled_from(
        ["the", " the", "ing", "ANTIDIS", "naïve", "数学", "한국어", "עברית", "ไทย", "e\u0301", "ﬁ", "½", "Ⅷ", "٣"]
    ),
    st.sampled_from(
        ["👩‍👩‍👧‍👦", "🇨🇭", "☃", "\u200b", "\ufeff", "\x00", "\x1c", "\x85", "\u00a0", "\u2003", "\u3000", "\U0010ffff"]
    ),
    st.sampled_from(
        ["def f(x):\n    return x ** 2", "for(i=0;i<n;++i){", "0x1F", "1234567890", "3.14", "#!/bin/sh", EOT]
    ),
    st.text(max_size=4),
    st.binary(max_size=6).map(lambda raw: raw.decode("utf-8", "replace")),
)
TEXT = st.lists(PIECES, max_size=25).map("".join)


@pytest.fixture(scope="module")
def gpt2():
    tokenizer = Tokenizer.gpt2()
    if not tokenizer.is_native:
        pytest.skip("bpe_encoder.so is not built: run `make`")
    return tokenizer


@pytest.fixture(scope="module")
def published():
    """tiktoken over GPT-2's published files, without the network."""
    byte_of = {character: byte for byte, character in byte_characters().items()}
    entries = json.loads(published_files()[0].read_text(encoding="utf-8"))
    ranks = {bytes(byte_of[c] for c in token): i for token, i in entries.items() if token != EOT}
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={EOT: 50256})


def encoded(tokenizer, text):
    ids, counts = tokenizer.encode_documents([text], end=False)
    assert counts.tolist() == [len(ids)]
    return ids.tolist()


@settings(max_examples=400, deadline=None)
@given(text=TEXT)
def test_same_as_tiktoken_and_tokenizers(gpt2, published, text):
    ids = encoded(gpt2, text)
    assert ids == published.encode_ordinary(text)
    assert ids == gpt2.encode(text)
    assert gpt2.decode(ids) == text


@pytest.mark.long
@settings(max_examples=20_000, deadline=None)
@given(text=TEXT)
def test_same_as_tiktoken_and_tokenizers_at_length(gpt2, published, text):
    assert encoded(gpt2, text) == published.encode_ordinary(text) == gpt2.encode(text)


def test_same_as_tiktoken_on_the_sources_here(gpt2, published):
    """Code and prose of this repository, whole files."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*/*.py")) + sorted(ROOT.glob("*.md"))]
    ids, counts = gpt2.encode_documents(texts)
    expected = [[*ids, gpt2.eot_id] for ids in published.encode_ordinary_batch(texts)]
    assert counts.tolist() == [len(document) for document in expected]
    assert ids.tolist() == sum(expected, [])


def test_classes_of_characters_are_those_of_the_tokenizers_library(capsys):
    """For every code point; if a new version of the library differs, the docstring of the module has the command."""
    unicode_classes.main()
    assert capsys.readouterr().out == (ROOT / "tokenizer" / "unicode_classes.inc").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1000,
        "ab" * 500,
        " " * 999 + "x",
        "\n" * 4097,
        "ANTIDISESTABLISHMENTARIANISM" * 40,
        "é" * 300,
        "数学" * 200,
        "!?" * 300,
        "🇨🇭" * 100,
        "".join(random.Random(3).choices("abcdefghijklmnopqrstuvwxyz", k=3000)),
    ],
)
def test_long_words(gpt2, text):
    assert encoded(gpt2, text) == gpt2.encode(text)


def test_a_word_of_a_million_bytes_ends(gpt2):
    generator = random.Random(5)
    text = "".join(generator.choices("etaoinshrdlu", k=1_000_000))
    assert gpt2.decode(encoded(gpt2, text)) == text


def test_every_length_around_the_limit_of_the_cache(gpt2):
    generator = random.Random(7)
    words = ["".join(generator.choices("etaoinsé", k=length)) for length in range(1, 60) for _ in range(20)]
    for _ in range(2):  # from the cache the second time
        for word in words:
            assert encoded(gpt2, word) == gpt2.encode(word)


def test_documents_do_not_run_together(gpt2):
    texts = ["", "in", "put ", " ", "\n", "", "x'", "s", "\ud800", "é"[:1]]
    ids, counts = gpt2.encode_documents(texts)
    assert (ids.dtype, counts.dtype) == (np.uint32, np.int64)
    documents = [document.tolist() for document in np.split(ids, np.cumsum(counts)[:-1])]
    assert documents == [[*gpt2.encode(text), gpt2.eot_id] for text in texts]
    ids, counts = gpt2.encode_documents([])
    assert (len(ids), len(counts)) == (0, 0)


def test_a_trained_vocabulary(gpt2):
    texts = ["the cat sat on the mat. " * 5, "naïve 😀 the theme"] * 3
    tokenizer = train_bpe(texts, 300)
    assert tokenizer.is_native
    for text in [*texts, "other words", EOT]:
        assert encoded(tokenizer, text) == tokenizer.encode(text)


def test_threads_share_an_encoder(gpt2):
    texts = [" ".join(random.Random(i).choices(["alpha", "beta", "gamma", "δ", "12"], k=2000)) for i in range(6)]
    results = {}

    def work(i):
        results[i] = encoded(gpt2, texts[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(6)] == [gpt2.encode(text) for text in texts]


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
    ],
)
def test_another_kind_of_tokenizer_stays_with_the_library(gpt2, change):
    content = json.loads(gpt2.to_json())
    content.update(change)
    other = Tokenizer.from_json(json.dumps(content))
    assert not other.is_native
    text = "e\u0301 two  words"
    assert encoded(other, text) == other.encode(text)


def test_without_the_library_the_ids_are_the_same(gpt2, monkeypatch, tmp_path):
    texts = ["", "Hello world", "naïve 😀\n\n  x"]
    expected, counts = gpt2.encode_documents(texts)
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "missing.so")
    native._library.cache_clear()
    try:
        slow = Tokenizer.gpt2()
        assert not slow.is_native
        for end in (True, False):
            ids, lengths = slow.encode_documents(texts, end)
            assert ids.tolist() == gpt2.encode_documents(texts, end)[0].tolist()
            assert lengths.tolist() == (counts - (not end)).tolist()
        assert expected.dtype == slow.encode_documents(texts)[0].dtype
    finally:
        native._library.cache_clear()


def test_a_library_that_is_none_is_not_used(tmp_path):
    (tmp_path / "bad.so").write_bytes(b"not a library")
    code = "import pathlib, sys; from tokenizer import native, Tokenizer; native.LIBRARY = pathlib.Path(sys.argv[1])"
    code += "; print(Tokenizer.gpt2().is_native)"
    command = [sys.executable, "-c", code, str(tmp_path / "bad.so")]
    done = subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
