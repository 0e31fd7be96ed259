"""for_loop: a body traced once and run as often as asked, in inference (spec section 11)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import Body, infer, make_options, train
from torch.utils._python_dispatch import TorchDispatchMode

import poptorch


def test_it_loops_and_takes_what_it_returned():
    def forward(m, x):
        return poptorch.for_loop(5, lambda a, b: (a + b, b * 2), [x, torch.ones_like(x)])

    a, b = infer(forward, torch.zeros(2), options=make_options(2))
    assert a.tolist() == [31, 31] and b.tolist() == [32, 32]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_counts_and_a_single_tensor(count):
    def forward(m, x):
        return poptorch.for_loop(count, lambda a: a * 3, [x])[0]

    assert infer(forward, torch.ones(1)).item() == 3**count


def test_captured_tensors_parameters_and_constants():
    def forward(m, x):
        outer = x * 2
        return poptorch.for_loop(3, lambda a: [a + outer + m.w + 1], [x])[0]

    assert infer(forward, torch.ones(1), w=torch.nn.Parameter(torch.full((1,), 10.0))).item() == 1 + 3 * 13


def test_by_value():
    def forward(m, x):
        def body(a):
            a.add_(1)
            return a

        (looped,) = poptorch.for_loop(4, body, [x])
        return looped, x + 0

    x = torch.zeros(2)
    looped, after = infer(forward, x)
    assert looped.tolist() == [4, 4] and after.tolist() == [0, 0] == x.tolist()


def test_nested():
    def forward(m, x):
        def outer(a, total):
            (a,) = poptorch.for_loop(2, lambda b: b * 2, [a])
            (total,) = poptorch.for_loop(3, lambda t: t + a, [total])
            return a, total

        return poptorch.for_loop(2, outer, [x, torch.zeros_like(x)])

    a, total = infer(forward, torch.ones(1))
    assert a.item() == 16 and total.item() == 3 * 4 + 3 * 16


def test_buffers_change_in_every_round_also_in_inner_loops():
    def forward(m, x):
        def body(a):
            m.count.add_(1)
            (a,) = poptorch.for_loop(2, lambda b: b + m.inner.add_(1).sum() * 0 + 1, [a])
            return a

        return poptorch.for_loop(3, body, [x])[0] + m.count

    executor = poptorch.inferenceModel(Body(forward, count=torch.zeros(1), inner=torch.zeros(1)), make_options(2))
    assert executor(torch.zeros(2)).tolist() == [6 + 3, 6 + 6]
    executor.copyWeightsToHost()
    assert executor.model.inner.item() == 12
    text = "broadcasting buffers"
    with pytest.raises(poptorch.Error, match=text):
        infer(forward, torch.zeros(2), options=make_options(replicas=2), count=torch.zeros(1), inner=torch.zeros(1))


def test_random_numbers_are_new_in_every_round():
    def forward(m, x):
        def body(i, seen):
            return i + 1, torch.where(torch.arange(4) == i, torch.rand(4), seen)

        return poptorch.for_loop(4, body, [x, torch.zeros(4)])[1]

    drawn = infer(forward, torch.zeros(1))
    assert len(set(drawn.tolist())) == 4


def test_dropout_is_off_in_the_body():
    def forward(m, x):
        return poptorch.for_loop(2, lambda a: F.dropout(a, 0.5, training=True), [x])[0]

    assert infer(forward, torch.ones(64)).tolist() == [1.0] * 64


def test_beside_attention_that_is_fused():
    def forward(m, x):
        scores = x @ x.transpose(-1, -2) * 0.5
        mask = torch.ones(4, 4, dtype=torch.bool).tril()
        out = torch.softmax(torch.where(mask, scores, -1e9), -1) @ x
        (looped,) = poptorch.for_loop(2, lambda a: a + out, [out])
        return looped, out

    x = torch.randn(1, 2, 4, 3)
    looped, out = infer(forward, x)
    expected = F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.5)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(looped, 3 * expected)


def test_greedy_decoding_with_a_cache():
    torch.manual_seed(0)
    embedding, head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)

    def forward(m, token):
        def body(position, token, past, tokens):
            past = torch.where((torch.arange(6) == position).unsqueeze(-1), m.embedding(token), past)
            hidden = past.sum(0) / (position + 1)
            token = m.head(hidden).argmax(-1).reshape(1).to(token.dtype)
            return position + 1, token, past, torch.where(torch.arange(6) == position, token, tokens)

        start = [torch.zeros(1, dtype=torch.int32), token, torch.zeros(6, 4), torch.zeros(6, dtype=torch.int32)]
        return poptorch.for_loop(6, body, start)[3]

    found = infer(forward, torch.tensor([3], dtype=torch.int32), embedding=embedding, head=head)
    expected, seen, token = [], [], torch.tensor(3)
    for _ in range(6):
        seen.append(embedding(token))
        token = head(sum(seen) / len(seen)).argmax()
        expected.append(token.item())
    assert found.dtype == torch.int32 and found.tolist() == expected


def test_in_a_plain_call_the_body_runs_once():
    x = torch.zeros(2)
    assert poptorch.for_loop(10, lambda a: a.add_(1), [x])[0].tolist() == [1, 1]
    assert x.tolist() == [0, 0]


def test_the_body_is_called_once_while_tracing():
    calls = []

    def forward(m, x):
        return poptorch.for_loop(4, lambda a: calls.append(1) or a + 1, [x])[0]

    assert infer(forward, torch.zeros(2), options=make_options(2)).tolist() == [4, 4]
    assert calls == [1]


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"must be of type list. \(Object is not list\)$"):
        poptorch.for_loop(1, lambda a: a, torch.ones(1))
    with pytest.raises(ValueError, match=r"must be of type list of tensors.*index 1 is not torch.Tensor\)$"):
        poptorch.for_loop(1, lambda a, b: [a, b], [torch.ones(1), 1])
    with pytest.raises(poptorch.Error, match="the body returns 2 tensors but takes 1"):
        infer(lambda m, x: poptorch.for_loop(2, lambda a: (a, a), [x]), torch.ones(1))
    with pytest.raises(poptorch.Error, match="output 0 of the body is \\(2,\\)"):
        infer(lambda m, x: poptorch.for_loop(2, lambda a: torch.cat([a, a]), [x]), torch.ones(1))
    with pytest.raises(poptorch.Error, match="torch.int64"):
        infer(lambda m, x: poptorch.for_loop(2, lambda a: a.long(), [x]), torch.ones(1))
    with pytest.raises(poptorch.Error, match="poptorch.for_loop\\(\\) is only supported in inference."):
        train(
            lambda m, x: poptorch.identity_loss(poptorch.for_loop(2, lambda a: a * m.w, [x])[0], "sum"), torch.ones(1)
        )


@pytest.mark.parametrize("result", [3, None, [torch.ones(1), "text"]])
def test_a_body_returns_tensors(result):
    for run in (infer, lambda forward, x: forward(None, x)):
        with pytest.raises(poptorch.Error, match=r"poptorch.for_loop\(\): a body must return a tensor"):
            run(lambda m, x: poptorch.for_loop(2, lambda a: result, [x]), torch.ones(1))


class Copies(TorchDispatchMode):
    """Counts the clones of tensors with as many elements."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.clone.default and args[0].numel() == self.elements:
            self.count += 1
        return func(*args, **(kwargs or {}))


def kept(state, step):
    state[:, 0].add_(step)
    return [state, step + 1]


def added(state, step):
    return [state.add_(step), step + 1]


@pytest.mark.parametrize("body", [kept, added])
def test_state_that_is_changed_in_place_is_not_copied(body):
    def forward(m, x):
        state = x * 2
        found = poptorch.for_loop(5, body, [state, torch.zeros(1)])[0]
        return found, state

    executor = poptorch.inferenceModel(Body(forward))
    x = torch.ones(3, 7)
    executor(x)
    with Copies(21) as copies:
        found, state = executor(x)
    expected, step = x * 2, torch.zeros(1)
    for _ in range(5):
        expected, step = body(expected, step)
    assert torch.equal(found, expected) and torch.equal(state, x * 2)
    assert copies.count == 1  # the loop's own, at its beginning
