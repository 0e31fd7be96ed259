"""Samples as published recipes cut them, against slow transcriptions of their rules."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.articles.corpus import open_corpus
from data.loading.corpus_files import Cut, names_of, open_corpora
from data.loading.datasets import open_dataset
from data.loading.stream import StreamDataset
from data.loading.windows import WindowDataset

VOCAB = 1000
CODE = 999


def saved(path, articles):
    path.write_bytes(pickle.dumps(articles))
    return str(path)


def samples_of(dataset):
    ids = np.full((len(dataset), dataset.max_len + 1), -7, np.int32)
    dataset.read(np.arange(len(dataset)), ids)
    return ids.tolist()


def opened(paths, max_len, **changes):
    settings = dict(cut=Cut("stream"), max_len=max_len, val_num=0, seed=1, real_vocab_size=VOCAB)
    return open_corpora(paths, **{**settings, **changes})


def slow_stream(ids, window, stride, last):
    found, start = [], 0
    while start + window <= len(ids):
        found.append(ids[start : start + window])
        start += stride
    covered = start - stride + window if found else 0
    if last == "pad" and covered < len(ids) and len(ids) - start > 1:
        rest = ids[start:]
        found.append(rest + [-100] * (window - len(rest)))
    return found


@settings(max_examples=150, deadline=None)
@given(
    articles=st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=20), min_size=1, max_size=6),
    max_len=st.integers(1, 9),
    stride=st.integers(1, 12),
    last=st.sampled_from(["drop", "pad"]),
)
def test_windows_over_a_stream(tmp_path_factory, articles, max_len, stride, last):
    folder = tmp_path_factory.mktemp("corpus")
    corpus = open_corpus(saved(folder / "c.pkl", [*articles, [5]]), VOCAB)
    ids = sum(articles, []) + [5]
    expected = slow_stream(ids, max_len + 1, stride, last)
    if not expected:
        with pytest.raises(ValueError, match="fewer than a window"):
            StreamDataset(corpus, max_len, stride, last)
        return
    dataset = StreamDataset(corpus, max_len, stride, last)
    assert samples_of(dataset) == expected
    assert dataset.padded_ids == sum(row.count(-100) for row in expected)
    backwards = np.empty((len(dataset), max_len + 1), np.int32)
    dataset.read(np.arange(len(dataset))[::-1].copy(), backwards)
    assert backwards[::-1].tolist() == expected


def test_tfchats_windows(tmp_path):
    """Windows of 1,025 ids with shift 1,024, the last partial one dropped: of N ids (N - 1) // 1,024."""
    ids = list(range(900)) * 4
    train, held_out = opened([saved(tmp_path / "c.pkl", [ids[:1000], ids[1000:]])], 1024)
    assert held_out is None and len(train) == (len(ids) - 1) // 1024 == 3
    assert samples_of(train) == [ids[start : start + 1025] for start in (0, 1024, 2048)]
    assert "stride 1024" in train.summary() and "527 ids dropped" in train.summary()


@pytest.mark.parametrize(("last", "count"), [("drop", 2), ("pad", 3)])
def test_a_control_code_before_each_chunk(tmp_path, last, count):
    """lm-finetuning: chunks of seq_len - 1 ids, a code before each; no id is in two of them."""
    ids = list(range(1, 21))
    (tmp_path / "v").mkdir()
    paths = [saved(tmp_path / "c.pkl", [ids])]
    validation = [saved(tmp_path / "v" / "v.pkl", [ids[:9]])]
    cut = Cut("stream", last=last)
    train, held_out = opened(paths, 8, cut=cut, codes=[CODE], validation_paths=validation)
    rows = [[CODE, *ids[0:8]], [CODE, *ids[8:16]], [CODE, *ids[16:20], -100, -100, -100, -100]]
    assert samples_of(train) == rows[:count]
    single = [[CODE, 9] + [-100] * 7] if last == "pad" else []  # behind a code a single id is something to predict
    assert samples_of(held_out) == [[CODE, *ids[:8]], *single]
    assert train.largest_id() == CODE and f"each behind the id {CODE}" in train.summary()
    inputs, labels = train.__getitems__(list(range(len(train))))
    assert inputs.shape == labels.shape == (count, 8) and (inputs[:, 0] == CODE).all()


@pytest.mark.parametrize(
    ("short", "expected"),
    [
        ("half", [[3, 3, 3, -100, -100], [5, 5, 5, 5, 5]]),
        ("pad", [[2, 2, -100, -100, -100], [3, 3, 3, -100, -100], [5, 5, 5, 5, 5]]),
        ("skip", [[5, 5, 5, 5, 5]]),
    ],
)
def test_articles_below_a_window_are_skipped_or_not(tmp_path, short, expected):
    path = saved(tmp_path / "c.pkl", [[1], [2] * 2, [3] * 3, [5] * 5])
    train, _ = opened([path], 4, cut=Cut(short=short))
    assert samples_of(train) == expected
    assert train.uneven == (short != "skip")


def test_several_data_sets_share_nothing_but_the_order(tmp_path):
    a, b = saved(tmp_path / "a.pkl", [[1] * 9]), saved(tmp_path / "b.pkl", [[2] * 12])
    va, vb = saved(tmp_path / "va.pkl", [[3] * 5]), saved(tmp_path / "vb.pkl", [[4] * 9])
    train, held_out = opened([a, b], 4, codes=[7, 8], validation_paths=[va, vb])
    assert samples_of(train) == [[7] + [1] * 4] * 2 + [[8] + [2] * 4] * 3
    assert held_out.names == ["va", "vb"]
    assert [samples_of(part) for part in held_out.parts] == [[[7] + [3] * 4], [[8] + [4] * 4] * 2]
    mixed = np.empty((3, 5), np.int32)
    train.read(np.array([4, 0, 2]), mixed)
    assert mixed[:, 0].tolist() == [8, 7, 8]
    held = opened([a, b], 2, val_num=1)[1]
    assert held.names == ["a", "b"] and [len(part) for part in held.parts] == [1, 1]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.pkl", "x/b.pkl"], ["a", "b"]),
        (["wiki/corpus.pkl", "imdb/corpus.pkl"], ["wiki/corpus", "imdb/corpus"]),
        (["x/my.txt.prepared-12ab-v2-1-2/corpus.pkl", "x/corpus.pkl"], ["my", "corpus"]),
        (["x/corpus.pkl", "x/corpus.pkl"], ["x/corpus", "x/corpus"]),
    ],
)
def test_names_of_data_sets_differ(paths, names):
    assert names_of(paths) == names


def test_a_streams_end_is_held_out(tmp_path):
    ids = list(range(1, 101))
    train, held_out = opened([saved(tmp_path / "c.pkl", [ids])], 8, val_num=3)
    assert samples_of(held_out) == slow_stream(ids[75:], 9, 8, "drop") and len(held_out) == 3
    assert samples_of(train) == slow_stream(ids[:75], 9, 8, "drop")
    with pytest.raises(ValueError, match="--val-num 12"):
        opened([saved(tmp_path / "c.pkl", [ids])], 8, val_num=12)


def test_the_beginnings_of_articles_are_marked_as_approximate(tmp_path):
    path = saved(tmp_path / "c.pkl", [[1] * 9, [], [2] * 3, [3] * 5])
    train, held_out = opened([path], 4, cut=Cut("first"))
    assert samples_of(train) == [[1] * 5, [2, 2, 2, 0, 0], [3] * 5]
    inputs, labels = train.__getitems__([1])
    assert labels.tolist() == [[2, 2, 0, 0]], "the padding counts, as in the loader that this stands for"
    assert "--windows first" in train.approximate
    coded, held_out = opened([path], 5, cut=Cut("first"), codes=[CODE], validation_paths=[path])
    assert coded.approximate and held_out.approximate
    assert not opened([path], 4)[0].approximate


def test_documents_that_do_not_end_cannot_be_isolated(tmp_path):
    train, _ = opened([saved(tmp_path / "c.pkl", [[1, 2, 0], [3, 4, 0]])], 2)
    train.check_document_ends(0)
    train, _ = opened([saved(tmp_path / "d.pkl", [[1, 2], [3, 4, 0]])], 2)
    with pytest.raises(ValueError, match="--document-ends end"):
        train.check_document_ends(0)


def test_bad_validation_files_are_told_by_their_flag(tmp_path):
    a, b = saved(tmp_path / "a.pkl", [[1] * 9]), saved(tmp_path / "b.pkl", [[2] * 3])
    with pytest.raises(ValueError, match="--validation-files .*b.pkl: its 3 ids are fewer than a window"):
        opened([a], 4, validation_paths=[b])
    (tmp_path / "c.pkl").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="c.pkl"):
        opened([a], 4, validation_paths=[str(tmp_path / "c.pkl")])


def test_the_default_is_the_references(tmp_path):
    path = saved(tmp_path / "c.pkl", [list(range(300))])
    train, _ = open_dataset(path, max_len=8, stride=4, seed=1, val_num=0, real_vocab_size=VOCAB, num_samples=1)
    assert isinstance(train, WindowDataset) and train.stride == 4
