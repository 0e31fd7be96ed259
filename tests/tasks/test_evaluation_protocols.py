"""The protocols against the definitions, computed with transformers' GPT-2 in float64; the published token counts."""

import math
import os
import re
from pathlib import Path

import numpy as np
import poptorch
import pytest
import tiny_checkpoint
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.building import detokenizer
from model.scoring import Scorer
from tasks import texts
from tasks.lambada import bucket_lengths, encode_rows, item_of, score_bucketed
from tasks.logits_scorer import LogitsScorer
from tasks.protocols import Planner
from tasks.texts import count_words
from tasks.windows import DisjointWindows, RollingWindows, SlidingWindows
from tokenizer import Tokenizer


def options(iterations=1, replicas=1):
    made = poptorch.Options().deviceIterations(iterations).replicationFactor(replicas)
    return made.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))


def scorer(gpt2, batch=3, iterations=1, replicas=1, part=(0, 1)):
    return Scorer(gpt2, lambda: options(iterations, replicas), batch, part)


def log_probabilities(reference, ids):
    """(n, V) float64: of the token after each of these."""
    with torch.no_grad():
        return reference(torch.tensor(np.asarray(ids, np.int64))[None]).logits[0].log_softmax(-1)


# ---- The definitions, a window at a time -------------------------------------------------------------------------


def token_loss(reference, ids, window):
    """Every token but the first of its window, after those before it in the window."""
    loss, count = 0.0, 0
    for start in range(0, len(ids), window):
        tokens = list(map(int, ids[start : start + window]))
        if len(tokens) > 1:
            out = reference(torch.tensor([tokens]), labels=torch.tensor([tokens]))
            loss, count = loss + float(out.loss.detach()) * (len(tokens) - 1), count + len(tokens) - 1
    return loss, count


def adjusted_loss(reference, ids, window, stride):
    """Target t belongs to the first window, [0, T], or to the first later one that reaches it: start s, a multiple of
    the stride, with t <= s + T."""
    loss = 0.0
    for target in range(1, len(ids)):
        start = max(0, -(-(target - window) // stride)) * stride
        loss -= float(log_probabilities(reference, ids[start:target])[-1, ids[target]])
    return loss, len(ids) - 1


def rolling_loss(reference, pages, window, first):
    """Each target after the tokens of its window, which is the last T before its end; windows are T targets apart."""
    loss = count = 0
    for page in pages:
        text = [first, *page]
        for number in range(len(page)):
            end = min((number // window + 1) * window, len(page))
            context = text[max(0, end - window) : number + 1]
            loss -= float(log_probabilities(reference, context)[-1, page[number]])
            count += 1
    return loss, count


@pytest.mark.parametrize(
    "window, stride, protocols",
    [
        (16, 6, ("token", "token-joined", "word", "adjusted")),
        (16, 16, ("adjusted",)),  # the stride is the window
        (31, 1, ("adjusted",)),
        (1000, 32, ("word", "adjusted")),  # the window is longer than the text
    ],
)
def test_losses_are_those_of_the_definitions(tmp_path, window, stride, protocols):
    gpt2 = tiny_checkpoint.write(tmp_path, positions=max(32, window), layers=1 + stride % 2, seed=window)
    reference = tiny_checkpoint.reference(gpt2)
    bpe = tiny_checkpoint.tokenizer()
    planner = Planner(bpe, window, stride)
    path = tmp_path / "data" / "wikitext-103" / "wiki.test.tokens"
    jobs = {job.protocol: job for job in planner.jobs("WIKITEXT103", path, protocols)}
    text, detokenized = tiny_checkpoint.TEXT, detokenizer.wikitext(tiny_checkpoint.TEXT)
    pages = [bpe.encode(detokenizer.wikitext(page)) for page in texts.pages(text)]
    assert len(pages) == 2
    assert stride == 1 or (len(bpe.encode(detokenized)) - 1 - window) % stride, "the last window is whole"
    expected = {
        "token": token_loss(reference, bpe.encode(text), window),
        "token-joined": token_loss(reference, bpe.encode(texts.joined_lines(text)), window),
        "word": rolling_loss(reference, pages, window, bpe.eot_id),
        "adjusted": adjusted_loss(reference, bpe.encode(detokenized), window, stride),
    }
    assert set(jobs) == set(protocols)
    measured = scorer(gpt2)
    for name, job in jobs.items():
        loss, count = measured.score(job.cut, job.cut.length, job.cut.width).total()
        assert count == expected[name][1], name
        assert loss == pytest.approx(expected[name][0], rel=1e-5), name
    words = sum(len(re.split(r"\s+", page)) for page in texts.pages(text))
    loss, count = expected["word"]
    if "word" in jobs:
        assert jobs["word"].values(loss, count)["word ppl"] == pytest.approx(math.exp(loss / words))
    loss, count = expected["adjusted"]
    values = jobs["adjusted"].values(loss, count)
    assert values["adjusted ppl"] == pytest.approx(math.exp(min(20, loss / (len(text.strip().split(" ")) - 1))))
    assert values["ppl"] == pytest.approx(math.exp(loss / count))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 70), st.integers(2, 20), st.data())
def test_every_token_with_a_context_is_scored_once(length, window, data):
    ids = np.arange(1, length + 1)  # an id says where it stands
    stride = data.draw(st.integers(1, window))
    sliding = SlidingWindows(ids, window, stride)
    assert sorted(t for item in sliding for t in item.targets) == list(range(2, length + 1))
    assert sliding.windows == (0 if length < 2 else 1 + max(0, -(-(length - 1 - window) // stride)))
    disjoint = DisjointWindows(ids, window)
    assert sorted(t for item in disjoint for t in item.targets) == [t for t in ids if (t - 1) % window]
    rolling = RollingWindows([ids, [], ids[:3] + 100], window, 0)
    assert [t for item in rolling for t in item.targets] == [*ids, *(ids[:3] + 100)]
    for cut in (sliding, disjoint, rolling):
        for item in cut:
            assert (item.ids[item.positions] + 1 == item.targets).sum() >= len(item.targets) - 1  # 0 begins a text
            assert len(item.ids) <= cut.length and len(item.targets) <= (cut.width or cut.length)


def test_the_same_whatever_the_batch_the_iterations_and_the_ranks():
    bpe = tiny_checkpoint.tokenizer()
    gpt2 = tiny_checkpoint.model(bpe.vocab_size)
    ids = np.asarray(bpe.encode(tiny_checkpoint.TEXT))
    cut = SlidingWindows(ids, 40 - 8, 7)
    loss, count = scorer(gpt2, 1).score(cut, cut.length, cut.width).total()
    assert count == len(ids) - 1
    for batch, iterations, replicas in ((5, 1, 1), (3, 2, 2), (50, 1, 1)):
        again = scorer(gpt2, batch, iterations, replicas).score(cut, cut.length, cut.width).total()
        assert again == (pytest.approx(loss, rel=1e-6), count)
    parts = [scorer(gpt2, 2, part=(number, 3)).score(cut, cut.length, cut.width).total() for number in range(3)]
    assert min(counts for _, counts in parts) > 0
    assert (sum(part for part, _ in parts), sum(counts for _, counts in parts)) == (
        pytest.approx(loss, rel=1e-6),
        count,
    )


def test_what_follows_the_end_of_a_text_is_left_out_where_asked():
    ids = np.asarray([1, 2, 0, 3, 4, 0, 5, 6, 7])
    cut = SlidingWindows(ids, 4, 2, masked=0)
    assert sorted(t for item in cut for t in item.targets) == [0, 0, 2, 4, 6, 7]


def test_lambada_against_transformers():
    bpe = tiny_checkpoint.tokenizer()
    gpt2 = tiny_checkpoint.model(bpe.vocab_size)
    reference = tiny_checkpoint.reference(gpt2)
    rows, plain = encode_rows(tiny_checkpoint.ROWS, bpe)
    assert [row.context + row.target == ids for row, ids in zip(rows, plain)] == [row.is_plain for row in rows]
    items = [item_of(row.context, row.target, 32) for row in rows] + [item_of([4], [9, 8, 7], 32)]
    found = score_bucketed(scorer(gpt2, 2), items, buckets=2)
    for number, item in enumerate(items):
        logs = log_probabilities(reference, item.ids)[item.positions]
        count = len(item.targets)
        picked = logs[range(count), item.targets]
        assert found.losses[number, :count] == pytest.approx(-picked.numpy(), rel=1e-4)
        assert found.hits[number, :count].tolist() == (logs.argmax(-1).numpy() == item.targets).tolist()
        assert not found.losses[number, count:].any() and found.counts[number] == count


def test_a_running_model_scores_as_the_scorer_does():
    """transformers' GPT-2 as a PopTorch program, with a window of its own, next to the scorer of our model."""
    bpe = tiny_checkpoint.tokenizer()
    gpt2 = tiny_checkpoint.model(bpe.vocab_size)
    theirs = tiny_checkpoint.reference(gpt2).float()
    running = poptorch.inferenceModel(theirs, options(iterations=2))
    other = LogitsScorer(running, 4, 24, lambda output: output["logits"])
    ids = np.asarray(bpe.encode(tiny_checkpoint.TEXT))
    for cut in (SlidingWindows(ids, 20, 5), DisjointWindows(ids, 24)):
        ours, found = (one.score(cut, cut.length, cut.width) for one in (scorer(gpt2), other))
        np.testing.assert_allclose(found.losses, ours.losses, rtol=1e-4, atol=1e-5)
        assert (found.hits == ours.hits).all() and (found.counts == ours.counts).all()
    with pytest.raises(ValueError, match="a window of 25 tokens, but the model sees 24"):
        other.score(DisjointWindows(ids, 26), 25, None)
    with pytest.raises(ValueError, match="expected logits .4, 24, V.: check rows and window"):
        LogitsScorer(running, 4, 24, lambda output: output["logits"][:1]).score(cut, cut.length, None)


def test_a_context_longer_than_the_window_loses_its_beginning():
    item = item_of(range(10, 20), [30, 31], 4)
    assert item.ids.tolist() == [17, 18, 19, 30] and item.positions.tolist() == [2, 3]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 4))
def test_buckets_hold_every_item_with_the_least_padding(lengths, buckets):
    import itertools

    def total(chosen):
        return sum(min(high for high in chosen if high >= length) for length in lengths)

    chosen = bucket_lengths(lengths, buckets)
    assert chosen == sorted(set(chosen)) and chosen[-1] == max(lengths) and len(chosen) <= buckets
    others = sorted(set(lengths) - {max(lengths)})
    if len(others) <= 12:
        every = (c for k in range(min(buckets, len(others) + 1)) for c in itertools.combinations(others, k))
        assert total(chosen) == min(total([*c, max(lengths)]) for c in every)


def test_the_detokenizer_rule_by_rule():
    for spaced, plain in (
        ("the boys ' day", "the boys' day"),
        ("well @-@ known 1 @,@ 000 3 @.@ 5", "well-known 1,000 3.5"),
        ("a , b ; c : d . e ! f ? g", "a, b; c: d. e! f? g"),
        ("( a ) [ b ] { c }", "(a) [b] {c}"),
        ("say \" a b \" and ' c ' end", "say \"a b\" and 'c' end"),
        (" = = = = x = = = = \n = = y = = \n", " ==== x ====\n== y ==\n"),
        ("5 ° C", "5°C"),
        ("N N times", "N 1 times"),
        ("it 's", "it's"),
        ("' 90s", "' 90s"),
    ):
        assert detokenizer.wikitext(spaced) == plain


DATA = os.environ.get("GPT2_EVAL_DATA")
real_data = pytest.mark.skipif(not DATA, reason="GPT2_EVAL_DATA does not name the folder of the evaluation files")


@real_data
@pytest.mark.parametrize(
    "name, words, plain_words, bpe, detokenized",
    [
        ("wiki.test.tokens", 245_566, 241_211, 285_234, 270_330),
        ("wiki.test.raw", 245_570, 241_211, 286_221, 272_045),
        ("wiki.valid.raw", 217_646, 213_886, 249_887, 237_489),
    ],
)
def test_published_counts_of_wikitext(name, words, plain_words, bpe, detokenized):
    text, gpt2 = texts.read_text(Path(DATA) / name), Tokenizer.gpt2()
    assert (count_words(text), len(text.split())) == (words, plain_words)
    assert len(gpt2.encode(text)) == bpe
    assert len(gpt2.encode(detokenizer.wikitext(text))) == detokenized
    if name == "wiki.test.raw":
        assert len(gpt2.encode(texts.joined_lines(text))) == 287_644
        assert len(texts.pages(text)) == 62


@real_data
def test_jobs_on_the_real_files_score_every_token():
    planner = Planner(Tokenizer.gpt2(), 1024, 32)
    jobs = {job.protocol: job for job in planner.jobs("WIKITEXT103", Path(DATA) / "wiki.test.tokens")}
    scored = {name: sum(len(item.targets) for item in job.cut) for name, job in jobs.items()}
    assert jobs["token"].counts["bpe"] == 285_234 and scored["token"] == 285_234 - 279
    assert jobs["token-joined"].counts["bpe"] == 287_644 and scored["token-joined"] == 287_644 - 281
    assert scored["adjusted"] == 270_330 - 1 and scored["word"] == jobs["word"].counts["bpe"]
    ratio = jobs["adjusted"].values(1.0, 1)["token ratio"]
    assert ratio == (270_330 - 1) / (245_566 - 1)


@real_data
def test_published_counts_of_lambada():
    rows, plain = encode_rows(texts.read_json_lines(Path(DATA) / "lambada_test.jsonl"), Tokenizer.gpt2())
    lengths = [len(ids) for ids in plain]
    assert (len(rows), max(lengths), round(sum(lengths) / len(lengths), 1)) == (5153, 224, 83.5)
    sizes = np.bincount([len(row.target) for row in rows])
    assert sizes[1:4].tolist() == [4013, 913, 208] and sizes[4:].sum() == 19
    assert sum(not row.is_plain for row in rows) == 7
