"""Isolated documents: hidden states, loss and gradients against passes over each document alone, in float64."""

import dataclasses

import poptorch
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from arguments import parse_train_args
from data.batches import SampleDataset
from model import placement
from model.config import GPT2Config
from model.documents import document_numbers, positions_in_documents
from model.gpt2 import GPT2LMHeadModel
from model.pretraining import IGNORED, PretrainingModel
from training.validation import Validator

END = 5
CONFIG = GPT2Config(
    32, 16, 12, 2, 3, activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    bos_token_id=END, eos_token_id=END, real_vocab_size=27,
)  # fmt: skip

# Two rows of 16: three documents, one of them only its end, and a row that begins inside a document.
IDS = torch.tensor(
    [
        [1, 2, 3, END, 7, 8, END, END, 9, 1, 1, 4, 2, 2, 3, 11],
        [END, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, END, 3],
    ]
)
LABELS = torch.cat([IDS[:, 1:], torch.tensor([[12], [IGNORED]])], 1)


def new_model(end_id=END, **variant):
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(CONFIG)
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return PretrainingModel(gpt2, end_id=end_id, **variant)


def documents_of(row):
    """The parts of a row of ids, as slices; each but perhaps the last one ends in END."""
    ends = [i + 1 for i, token in enumerate(row.tolist()) if token == END]
    edges = sorted({0, *ends, len(row)})
    return [slice(a, b) for a, b in zip(edges, edges[1:])]


def loss_by_document(gpt2, ids, labels):
    """Mean loss and accuracy of passes over one document at a time. The label after an END is of the next one."""
    losses, right = [], []
    for row, targets in zip(ids, labels):
        for part in documents_of(row):
            logits = gpt2(row[part][None])[0]
            for logit, token, target in zip(logits, row[part].tolist(), targets[part].tolist()):
                if token != END and target != IGNORED:
                    losses.append(F.cross_entropy(logit[None], torch.tensor([target])))
                    right.append(float(logit.argmax() == target))
    return torch.stack(losses).mean(), sum(right) / len(right)


def gradients(loss, module):
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def assert_hidden_by_document(gpt2, ids):
    hidden = gpt2.transformer(ids, documents=document_numbers(ids, END))
    for row, outputs in zip(ids, hidden):
        for part in documents_of(row):
            alone = gpt2.transformer(row[part][None])[0]
            torch.testing.assert_close(outputs[part], alone, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.lists(st.sampled_from([END, 1, 2, 3]), min_size=9, max_size=9), min_size=1, max_size=3))
def test_hidden_states_are_those_of_each_document_alone(rows):
    assert_hidden_by_document(new_model().gpt2.double().eval(), torch.tensor(rows))


def test_numbers_and_positions():
    numbers = document_numbers(IDS, END)
    assert numbers[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    assert numbers[1].tolist() == [0] + [1] * 14 + [2]
    assert positions_in_documents(numbers)[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert positions_in_documents(numbers)[1].tolist() == [0, *range(14), 0]


@pytest.mark.parametrize("blocks", [None, 4])
def test_loss_and_gradients_are_those_of_each_document_alone(blocks):
    model, reference = new_model(serialized_seq_len=blocks).double(), new_model().double()
    loss, accuracy = model(IDS, LABELS)
    expected, expected_accuracy = loss_by_document(reference.gpt2, IDS, LABELS)
    # the loss is summed up in float32 (model/pretraining.py)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert float(accuracy) == pytest.approx(expected_accuracy)
    ours, theirs = gradients(loss, model), gradients(expected, reference)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-7)


def test_only_the_wanted_positions():
    gpt2 = new_model().gpt2.double().eval()
    documents, wanted = document_numbers(IDS, END), torch.tensor([[15, 4, 6], [0, 14, 15]])
    some = gpt2.transformer(IDS, documents=documents, wanted=wanted)
    every = gpt2.transformer(IDS, documents=documents)
    torch.testing.assert_close(some, torch.stack([row[places] for row, places in zip(every, wanted)]))


def test_without_an_end_it_is_the_stream():
    ids = torch.full((2, 16), 6)
    isolated, stream = new_model()(ids, ids), new_model(end_id=None)(ids, ids)
    torch.testing.assert_close(isolated, stream, rtol=0, atol=0)


def executor_step(model, accumulation):
    options = poptorch.Options().outputMode(poptorch.OutputMode.Sum)
    options.Training.gradientAccumulation(accumulation)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=1.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss, _ = executor(input_ids=IDS.repeat(8, 1).int(), labels=LABELS.repeat(8, 1).int())
    after = model.state_dict(keep_vars=True)
    executor.destroy()
    return float(loss) / accumulation, {name: before[name] - after[name].detach() for name in before}


@pytest.mark.parametrize(("layers", "accumulation"), [([2], 1), ([2], 16), ([0, 2], 16)])
def test_through_the_executor(layers, accumulation):
    """On one stage and on several, with one micro-batch of 16 rows and 16 of one."""
    model = new_model()
    placement.place(model.gpt2, layers, training=True)
    loss, steps = executor_step(model, accumulation)
    plain = new_model()
    parts = [(IDS, LABELS)] if accumulation == 1 else [(IDS[i : i + 1], LABELS[i : i + 1]) for i in (0, 1)]
    expected = sum(loss_by_document(plain.gpt2, *part)[0] for part in parts) / len(parts)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients(expected, plain).items():
        torch.testing.assert_close(steps[name], gradient, rtol=1e-4, atol=5e-6)


class Rows(SampleDataset):
    max_len = 16

    def __len__(self):
        return 2

    def read(self, indices, ids):
        ids[:] = torch.cat([IDS, LABELS[:, -1:]], 1).numpy()[indices]

    def summary(self):
        return "two rows"


def test_the_validation_loss_is_a_mean_over_the_labels_that_count():
    """Its micro-batches have one row and unequally many labels: the ends' are not among them."""
    model = new_model()
    expected, _ = loss_by_document(new_model().gpt2, IDS, LABELS)
    loss = Validator(model, Rows(), poptorch.Options, batch_size=1).loss()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_model_without_an_end_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_train_args(["--model", "gpt2-test", "--document-boundaries", "isolated"])
    error = capsys.readouterr().err
    assert "--document-boundaries isolated: the model's configuration has eos_token_id None" in error
    assert parse_train_args(["--document-boundaries", "isolated"]).document_boundaries == "isolated"
    for end in (None, [1, 2], 27):
        with pytest.raises(ValueError, match="not one id of its vocabulary"):
            dataclasses.replace(CONFIG, eos_token_id=end).end_of_text()
    assert CONFIG.end_of_text() == END
