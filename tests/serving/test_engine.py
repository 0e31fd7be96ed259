"""The engine of slots: texts that come and go, and none that depends on those beside it."""

import functools
import math
import random

import pytest
import tiny_checkpoint
import tiny_server
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import custom_ops
from arguments import parse_generate_args
from custom_ops import decode_blocks as native
from generation.requests import new_text
from generation.sampling import Sampling
from generation.text_generator import TextGenerator
from serving.engine import Closed, Engine, Full, TimeUp
from serving.job import Job

GREEDY = Sampling(top_k=1)
SAMPLINGS = (GREEDY, Sampling(temperature=0.8), Sampling(top_p=0.9), Sampling(temperature=1.5, top_p=0.5))
PROMPTS = [[5], list(range(10, 30)), [7, 8], [100, 3, 5], list(range(40, 58)), [9] * 17, [11, 12, 13, 14]]


def served(slots=4, native_ones=True):
    if native_ones and (custom_ops.load() != "native" or not native.available()):
        pytest.skip("custom_ops.so is not built: no native operators")
    return tiny_server.model(slots, native_ones)


def engine(slots=4, native_ones=True, queue=100, **rest):
    model = served(slots, native_ones)
    return Engine(model.step, slots, model.width, queue, together=model.together, **rest)


class Heard:
    """A job and what its listener was told."""

    def __init__(self, prompt, length=8, sampling=GREEDY, seed=1, stop_ids=(), **rest):
        self.scored, self.calls, self.ends = [], 0, 0
        self.job = Job(new_text(prompt, length, seed), sampling, self.listen, stop_ids, **rest)

    def listen(self, job, scored):
        self.calls += 1
        self.scored += scored
        self.ends += bool(job.error or job.text.ended)

    @property
    def tokens(self):
        return [each.token for each in self.scored]

    @property
    def log_probs(self):
        return [each.log_prob for each in self.scored]


def finish(engine, most=10_000):
    for _ in range(most):
        if not engine.turn():
            return
    raise AssertionError("the engine does not come to an end")


def alone(prompt, length, sampling, seed, slots=4, native_ones=True):
    heard, one = Heard(prompt, length, sampling, seed), engine(slots, native_ones)
    one.submit([heard.job])
    finish(one)
    return heard


texts = st.tuples(
    st.integers(0, len(PROMPTS) - 1), st.integers(1, 10), st.sampled_from(SAMPLINGS), st.integers(0, 3)
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(arrivals=st.lists(st.lists(texts, max_size=4), max_size=8), cancelled=st.sets(st.integers(0, 30), max_size=4))
def test_no_text_depends_on_those_beside_it(arrivals, cancelled):
    """Whenever they come, and whichever are cancelled: the same tokens, and log-probabilities to the last bit."""
    together, heard = engine(), []
    for turn in arrivals:
        for number, length, sampling, seed in turn:
            heard.append((Heard(PROMPTS[number], length, sampling, seed), (number, length, sampling, seed)))
            together.submit([heard[-1][0].job])
        together.turn()
        for number in cancelled:
            if number < len(heard) and not heard[number][0].job.over:
                together.cancel(heard[number][0].job)
    finish(together)
    assert together.running == together.waiting == 0
    for text, (number, length, sampling, seed) in heard:
        expected = expected_text(number, length, sampling, seed)
        if text.job.cancelled:
            assert text.tokens == expected.tokens[: len(text.tokens)] and text.ends == 0
        else:
            assert (text.tokens, text.log_probs, text.ends) == (expected.tokens, expected.log_probs, 1)


def test_nor_does_it_in_float16():
    served()  # or skips

    def texts_of(*prompts):
        model = tiny_server.model(4, fp16=True)
        some = Engine(model.step, 4, model.width, 10, together=model.together)
        heard = [Heard(prompt, 5) for prompt in prompts]
        some.submit([each.job for each in heard])
        finish(some)
        return [(each.tokens, each.log_probs) for each in heard]

    assert texts_of(*PROMPTS) == [text for prompt in PROMPTS for text in texts_of(prompt)]


@functools.lru_cache(maxsize=None)
def expected_text(number, length, sampling, seed):
    return alone(PROMPTS[number], length, sampling, seed)


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(temperature=0.8, top_p=0.9), Sampling(typical_p=0.7, eta_cutoff=0.02)],
    ids=["greedy", "sampled", "typical"],
)
@pytest.mark.parametrize("native_ones", [True, False], ids=["native", "modules"])
@pytest.mark.parametrize("slots", [1, 3, 20])
def test_texts_are_those_of_text_generate_gpt2(sampling, native_ones, slots):
    expected = generated(sampling)
    heard = [Heard(prompt, 8, sampling, seed=3) for prompt in PROMPTS]
    some = engine(slots, native_ones)
    some.submit([each.job for each in heard])
    finish(some)
    assert [each.tokens for each in heard] == [text.tokens for text in expected]
    for each, text in zip(heard, expected):
        assert each.log_probs == pytest.approx(text.log_probs, abs=2e-4)


@functools.lru_cache(maxsize=None)
def generated(sampling):
    """By generation/text_generator.py, with the flags of text_generate_gpt2.py."""
    flags = ["--model-name-or-path", tiny_server.folder(), "--repetition-penalty", "1", "--input-len", "20"]
    flags += ["--output-len", "8", "--topk", str(sampling.top_k), "--temperature", str(sampling.temperature)]
    flags += ["--typical-p", str(sampling.typical_p), "--eta-cutoff", str(sampling.eta_cutoff)]
    generator = TextGenerator(parse_generate_args([*flags, "--top-p", str(sampling.top_p), "--seed", "3"]))
    generator.stop_ids = ()
    found = []
    for prompt in PROMPTS:
        text = new_text(prompt, 8, seed=3)
        for _ in generator._generate([text]):
            pass
        found.append(text)
    return found


@pytest.mark.parametrize("native_ones", [True, False], ids=["native", "modules"])
def test_log_probabilities_of_a_prompt_are_those_of_the_model(native_ones):
    gpt2, prompt = tiny_checkpoint.model(served().config.real_vocab_size), PROMPTS[1]
    heard, some = Heard(prompt, 3, alternatives=4, score_prompt=True), engine(4, native_ones)
    some.submit([heard.job])
    finish(some)
    text = prompt + heard.job.text.tokens
    with torch.no_grad():
        log_probs = gpt2(torch.tensor([text]))[0, :, : served().config.real_vocab_size].log_softmax(-1)
    assert heard.tokens == text and heard.scored[0].log_prob is None and heard.scored[0].best == []
    assert heard.calls == 1 + 3
    for place, scored in enumerate(heard.scored[1:]):
        assert scored.log_prob == pytest.approx(log_probs[place, scored.token].item(), abs=2e-5)
        best = log_probs[place].topk(4)
        assert [token for token, _ in scored.best] == best.indices.tolist()
        assert [value for _, value in scored.best] == pytest.approx(best.values.tolist(), abs=2e-5)


def test_a_prompt_can_be_scored_without_a_new_token():
    heard, some = Heard(PROMPTS[3], 0, score_prompt=True), engine()
    some.submit([heard.job])
    finish(some)
    assert (heard.tokens, heard.job.text.ended, heard.ends) == (PROMPTS[3], "length", 1)


def test_stop_tokens_end_a_text_and_a_listener_may():
    free = alone(PROMPTS[2], 8, GREEDY, 1)
    stopped, some = Heard(PROMPTS[2], 8, stop_ids=[free.tokens[2]]), engine()
    ended = Heard(PROMPTS[2], 8)
    listen = ended.job.listener

    def end_at_two(job, scored):
        listen(job, scored)
        if len(ended.tokens) == 2:
            job.text.ended = "stop_string"

    ended.job.listener = end_at_two
    some.submit([stopped.job, ended.job])
    finish(some)
    before = free.tokens.index(free.tokens[2])
    assert stopped.job.text.tokens == free.tokens[:before] and stopped.job.text.ended == "stop"
    assert stopped.tokens == free.tokens[: before + 1]  # the stop token is told
    assert ended.tokens == free.tokens[:2] and some.running == 0


def test_penalties_and_bias_are_openais():
    """mu[j] -= count(j) * frequency + (count(j) > 0) * presence, on the tokens that were made."""
    free = alone(PROMPTS[2], 8, GREEDY, 1).tokens
    forced = Heard(PROMPTS[2], 4, bias={77: 100.0})
    penalised = Heard(PROMPTS[2], 8, frequency=2.0, presence=2.0)
    some = engine()
    some.submit([forced.job, penalised.job])
    finish(some)
    assert forced.tokens == [77] * 4
    assert max(forced.log_probs) < -0.5  # the model's own, not those of the changed logits
    gpt2, expected = tiny_checkpoint.model(served().config.real_vocab_size), []
    for _ in range(8):
        with torch.no_grad():
            logits = gpt2(torch.tensor([PROMPTS[2] + expected]))[0, -1, : served().config.real_vocab_size]
        for token in set(expected):
            logits[token] -= 2.0 * expected.count(token) + 2.0
        expected.append(int(logits.argmax()))
    assert penalised.tokens == expected
    assert len(set(penalised.tokens)) >= len(set(free))


def test_the_queue_has_an_end_and_takes_all_texts_of_a_request_or_none():
    some = engine(slots=3, queue=2)
    some.submit([Heard([5]).job for _ in range(4)])
    with pytest.raises(Full):
        some.submit([Heard([5]).job, Heard([5]).job])
    assert some.waiting == 4
    last = Heard([5])
    some.submit([last.job])
    some.turn()
    assert (some.running, some.waiting) == (3, 2)
    finish(some)
    assert len(last.tokens) == 8


def test_a_cancelled_text_frees_its_slot_and_its_place():
    some = engine(slots=1)
    first, second, third = Heard([5], 20), Heard([6]), Heard([7])
    some.submit([first.job, second.job, third.job])
    some.turn()
    assert len(first.tokens) == 2
    some.cancel(first.job)
    some.cancel(second.job)
    heard_so_far = first.calls
    finish(some)
    assert first.calls == heard_so_far and second.calls == 0 and len(third.tokens) == 8


def test_a_text_whose_time_is_up_ends_with_an_error_wherever_it_is():
    now = [0.0]
    some = engine(slots=1, clock=lambda: now[0])
    running, waiting = Heard([5], 20, deadline=5.0), Heard([6], deadline=4.0)
    later = Heard([7], 3, deadline=math.inf)
    some.submit([running.job, waiting.job, later.job])
    some.turn()
    now[0] = 6.0
    finish(some)
    assert isinstance(running.job.error, TimeUp) and isinstance(waiting.job.error, TimeUp)
    assert (running.ends, waiting.ends, later.tokens) == (1, 1, alone([7], 3, GREEDY, 1).tokens)


def test_a_closed_engine_takes_nothing_and_finishes_what_it_has():
    some, heard = engine(), Heard([5])
    some.submit([heard.job])
    some.close()
    with pytest.raises(Closed):
        some.submit([Heard([6]).job])
    finish(some)
    assert len(heard.tokens) == 8


def test_scores_that_are_not_finite_end_their_text_alone():
    model, calls = served(4), []

    def step(ids, start, count, wanted):
        logits = model.step(ids, start, count, wanted).clone()
        calls.append(1)
        if ids[0, 0] == 200:
            logits[0] = math.nan
        return logits

    some = Engine(step, 4, model.width, 10)
    bad, good = Heard([200, 5]), Heard([6])
    some.submit([bad.job, good.job])
    finish(some)
    assert "not finite" in str(bad.job.error) and bad.ends == 1
    assert good.tokens == alone([6], 8, GREEDY, 1).tokens


@pytest.mark.parametrize("moment", ["a token", "its error"])
def test_a_listener_that_fails_ends_its_text_alone(moment, capsys):
    some, good, now = engine(clock=lambda: now[0]), Heard([6]), [0.0]
    told = []

    def fail(job, scored):
        told.append(job.error)
        if moment == "a token" and job.error is None or moment == "its error" and job.error is not None:
            raise LookupError("no such entry")

    bad = Job(new_text([5], 8, 1), GREEDY, fail, deadline=5.0)
    some.submit([bad, good.job])
    some.turn()
    now[0] = 6.0
    finish(some)
    assert good.tokens == alone([6], 8, GREEDY, 1).tokens and "no such entry" in capsys.readouterr().err
    expected = LookupError if moment == "a token" else TimeUp
    assert isinstance(bad.error, expected) and told[-1] is bad.error and told.count(bad.error) == 1


def test_a_closed_engine_waits(monkeypatch):
    """What has come since the last turn is seen at once; after that nothing turns in a circle."""
    some, waited = engine(), []
    monkeypatch.setattr(some._changed, "wait", waited.append)
    some.close()
    some.wait(1.0)
    assert waited == []
    some.wait(1.0)
    assert waited == [1.0]
    some.cancel(Heard([5]).job)
    some.wait(1.0)
    assert waited == [1.0]


@pytest.mark.parametrize("native_ones", [True, False], ids=["native", "modules"])
def test_modules_compute_all_slots_in_one_call(native_ones):
    model, rows = served(20, native_ones), []

    def step(ids, start, count, wanted):
        rows.append(int((count > 0).sum()))
        return model.step(ids, start, count, wanted)

    some = Engine(step, 20, model.width, 20, together=model.together)
    some.submit([Heard([5 + number], 2).job for number in range(20)])
    finish(some)
    assert rows == [1] * 20 + ([16, 4] if native_ones else [20])


def test_the_token_of_a_single_text_is_computed_without_a_row_beside_it():
    model, rows = served(4), []

    def step(ids, start, count, wanted):
        rows.append(int((count > 0).sum()))
        return model.step(ids, start, count, wanted)

    some, heard = Engine(step, 4, model.width, 20, together=model.together), Heard([5], 3)
    some.submit([heard.job])
    finish(some)
    assert rows == [1] * 3


def test_hundreds_of_texts_with_cancellations_lose_no_slot():
    """Every text that was not cancelled is whole and right."""
    rng, some, heard = random.Random(5), engine(queue=300), []
    for number in range(300):
        heard.append(Heard(PROMPTS[number % 4], 1 + number % 5))
        some.submit([heard[-1].job])
        if rng.random() < 0.3:
            some.cancel(rng.choice(heard).job)
        if number % 8 == 0:
            some.turn()
    finish(some)
    assert some.running == some.waiting == 0
    for number, text in enumerate(heard):
        expected = expected_text(number % 4, 1 + number % 5, GREEDY, 1).tokens
        assert text.tokens == (expected[: len(text.tokens)] if text.job.cancelled else expected)
    assert sum(not text.job.cancelled for text in heard) > 180
