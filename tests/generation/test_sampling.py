"""What may be drawn and how often, against transformers' logits processors and against formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from custom_ops.top_scores import penalised, top_scores
from generation.sampling import NEVER, Sampling, candidates, choose, stream

transformers = pytest.importorskip("transformers")
processors = transformers.generation.logits_process


def distribution(logits, sampling, seen=None):
    """(B, V) probabilities that choose() draws from."""
    if sampling.top_k:
        scores, ids, _ = top_scores(logits, seen, sampling.top_k, sampling.repetition_penalty)
    else:
        scores, ids = penalised(logits, seen, sampling.repetition_penalty).sort(dim=-1, descending=True)
    probs = torch.softmax(candidates(scores, sampling), -1)
    return torch.zeros_like(logits).scatter(-1, ids.long(), probs)


def reference(logits, sampling, text):
    """The same by transformers, in the order of its generate()."""
    chain = []
    if sampling.repetition_penalty != 1.0:
        chain.append(processors.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    chain.append(processors.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(processors.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(processors.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        chain.append(processors.MinPLogitsWarper(sampling.min_p))
    if sampling.typical_p < 1:
        chain.append(processors.TypicalLogitsWarper(sampling.typical_p))
    if sampling.eta_cutoff > 0:
        chain.append(processors.EtaLogitsWarper(sampling.eta_cutoff))
    scores = logits.clone()
    for step in chain:
        scores = step(text, scores)
    return torch.softmax(scores, -1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    penalty=st.sampled_from([1.0, 1.5, 0.7]),
    top_k=st.sampled_from([0, 2, 7]),
    temperature=st.sampled_from([1.0, 0.5, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.1]),
    typical_p=st.sampled_from([1.0, 0.8, 0.2]),
    eta_cutoff=st.sampled_from([0.0, 0.002, 0.3]),
)
def test_distributions_equal_those_of_transformers(
    seed, penalty, top_k, temperature, top_p, min_p, typical_p, eta_cutoff
):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 23, generator=generator) * 3
    text = torch.randint(0, 23, (3, 5), generator=generator)
    seen = torch.zeros(3, 23, dtype=torch.bool).scatter(1, text, True)
    sampling = Sampling(penalty, top_k, temperature, top_p, min_p, typical_p, eta_cutoff)
    torch.testing.assert_close(
        distribution(logits, sampling, seen), reference(logits, sampling, text), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("sampling", "processor"),
    [
        (Sampling(typical_p=0.2), processors.TypicalLogitsWarper(0.2)),
        (Sampling(typical_p=0.95), processors.TypicalLogitsWarper(0.95)),
        (Sampling(eta_cutoff=0.0003), processors.EtaLogitsWarper(0.0003)),
        (Sampling(eta_cutoff=0.05), processors.EtaLogitsWarper(0.05)),
        (Sampling(eta_cutoff=0.9), processors.EtaLogitsWarper(0.9)),
    ],
)
def test_typical_and_eta_keep_what_transformers_keeps(sampling, processor):
    """On flat, middling and peaked rows of GPT-2's width; in float64, because of a flat one much is close."""
    scales = torch.tensor([[0.01], [1.0], [2.0], [4.0], [8.0], [20.0]])
    logits = torch.randn(6, 50257, generator=torch.Generator().manual_seed(4)).double() * scales
    kept = candidates(logits, sampling) > NEVER
    assert torch.equal(kept, processor(None, logits) > NEVER)
    assert 0 < kept.sum() < kept.numel()


def test_eta_by_hand():
    """Probabilities 1/2, 1/4, 1/8, 1/8: entropy 1.75 bits; of 0.2 the cut-off is min(0.2, 0.447 x 2^-1.75 = 0.133)."""
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]]))
    assert (candidates(logits, Sampling(eta_cutoff=0.2)) > NEVER).tolist() == [[True, True, False, False]]
    assert (candidates(logits, Sampling(eta_cutoff=0.1)) > NEVER).tolist() == [[True] * 4]  # min(0.1, 0.094)
    assert (candidates(logits, Sampling(eta_cutoff=1.0)) > NEVER).tolist() == [[True, False, False, False]]


def test_frequencies_follow_the_tempered_softmax():
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    uniform = (torch.arange(4000) + 0.5) / 4000
    token, _ = choose(logits.expand(4000, 4), None, uniform, Sampling(temperature=0.7))
    weights = [math.exp(value / 0.7) for value in (1.0, 0.0, -1.0, 2.0)]
    expected = torch.tensor([weight / sum(weights) for weight in weights])
    assert torch.allclose(token.bincount(minlength=4) / 4000, expected, atol=1e-3)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_what_has_no_probability_is_never_drawn(uniform):
    logits = torch.full((1, 9), NEVER)
    logits[0, 4] = logits[0, 6] = 0.0
    token, _ = choose(logits, None, torch.tensor([uniform]), Sampling())
    assert token.item() == (4 if uniform < 0.5 else 6)


def test_greedy_takes_the_largest_after_the_penalty():
    logits, seen = torch.tensor([[3.0, 2.0], [-1.0, -1.5]]), torch.tensor([[True, False], [True, False]])
    greedy = Sampling(repetition_penalty=2.0, top_k=1, temperature=5.0)
    token, _ = choose(logits, seen, torch.zeros(2), greedy)  # 1.5 against 2, -2 against -1.5
    assert token.tolist() == [1, 1]


def test_log_probabilities_are_the_models_own():
    logits = torch.tensor([[0.0, math.log(3.0), math.log(4.0)]])
    token, log_prob = choose(logits, None, torch.tensor([0.9]), Sampling(top_k=2, temperature=3.0))
    assert log_prob.item() == pytest.approx(math.log([1, 3, 4][token.item()] / 8), abs=1e-6)


def test_a_stream_depends_on_seed_prompt_and_sample_alone():
    first = stream(1, [5, 6], 0, 20)
    assert torch.equal(first, stream(1, [5, 6], 0, 20)) and torch.equal(first[:7], stream(1, [5, 6], 0, 7))
    others = [stream(2, [5, 6], 0, 20), stream(1, [5, 7], 0, 20), stream(1, [5, 6], 1, 20)]
    assert not any(torch.equal(first, other) for other in others)
