"""A loss is the mean over all its labels, whatever the split of a batch: against plain torch, and over whole runs."""

import gc
import weakref

import numpy as np
import poptorch
import pytest
import torch
import torch.nn.functional as F
from tiny_run import NO_DROPOUT, flags, run_here, write_config

from data.articles.pickle_file import write_articles
from data.batches import NOTHING, SampleDataset
from data.loading.datasets import GeneratedDataset, make_sampler
from data.loading.sampler import OrderedSampler, ResumableSampler, Shard
from model.config import GPT2Config
from model.gpt2 import GPT2LMHeadModel
from model.pretraining import IGNORED, PretrainingModel
from training.label_counts import LabelCounter
from training.state import loss_notes

LENGTH, END = 12, 7
SMALL = GPT2Config(32, 16, 12, 2, 3, activation_function="gelu", real_vocab_size=27, **NO_DROPOUT)


class Padded(SampleDataset):
    """Samples of 2 to LENGTH + 1 random ids; what follows is padding."""

    max_len, uneven = LENGTH, True

    def __init__(self, count, seed=0):
        random = np.random.default_rng(seed)
        self.ids = random.integers(0, 27, (count, LENGTH + 1), dtype=np.int32)
        self.ids[np.arange(LENGTH + 1) >= random.integers(2, LENGTH + 2, (count, 1))] = NOTHING

    def __len__(self):
        return len(self.ids)

    def read(self, indices, ids):
        ids[:] = self.ids[indices]


def new_model(end_id=None):
    torch.manual_seed(0)
    return PretrainingModel(GPT2LMHeadModel(SMALL), end_id=end_id)


UPDATES, SAMPLES = 3, 8  # weight updates, samples in each


def float64_loop(samples, end_id):
    """Weights after the updates, and sums of losses and numbers of labels of each: plain torch in float64."""
    model = new_model(end_id).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sums = []
    for update in range(UPDATES):
        ids, labels = samples.__getitems__(range(update * SAMPLES, (update + 1) * SAMPLES))
        documents = None
        if end_id is not None:
            labels = torch.where(ids == end_id, torch.tensor(IGNORED, dtype=torch.int32), labels)
            ends = (ids == end_id).int()
            documents = (ends.cumsum(1) - ends).int()
        hidden = model.gpt2.transformer(ids, documents=documents)
        logits = model.gpt2.lm_head(hidden).flatten(0, 1)
        total = F.cross_entropy(logits, labels.long().flatten(), ignore_index=IGNORED, reduction="sum")
        count = int((labels != IGNORED).sum())
        sums.append((float(total.detach()), count))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}, sums


@pytest.fixture(scope="module", params=[None, END], ids=["stream", "isolated"])
def loop(request):
    samples = Padded(UPDATES * SAMPLES)
    return samples, request.param, float64_loop(samples, request.param)


@pytest.mark.parametrize(
    "accumulation, replicas, iterations", [(1, 1, 3), (8, 1, 3), (2, 1, 1), (1, 4, 3), (2, 2, 3), (1, 2, 1)]
)
def test_every_split_of_padded_samples_is_one_large_batch(loop, accumulation, replicas, iterations):
    samples, end_id, (weights, sums) = loop
    model = new_model(end_id)
    options = poptorch.Options().deviceIterations(iterations).replicationFactor(replicas)
    options.outputMode(poptorch.OutputMode.Sum).Training.gradientAccumulation(accumulation)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.5, loss_scaling=8.0))
    sampler = OrderedSampler(len(samples), len(samples), Shard(block=iterations * SAMPLES))
    counter = LabelCounter(samples, sampler, model.counted, iterations, accumulation * replicas, uneven=True)
    numbers = np.arange(len(samples)).reshape(-1, iterations * SAMPLES)
    expected = np.array(sums).reshape(-1, iterations, 2).sum(axis=1)
    for call, (total, count) in zip(counter.calls(samples.__getitems__(row) for row in numbers), expected):
        loss, _ = executor(**call._asdict())
        assert float(loss.mean()) / (iterations * accumulation) == pytest.approx(total / count, rel=1e-5)
    for name, parameter in new_model(end_id).named_parameters():
        trained = model.state_dict()[name].double()
        torch.testing.assert_close(trained, weights[name], rtol=1e-4, atol=2e-6)
        assert name.endswith(("wpe.weight", "bias")) or not torch.equal(trained.float(), parameter), name


def test_even_samples_keep_every_bit():
    """Against the loss of each micro-batch by itself, which is the same there."""
    samples = GeneratedDataset(16, LENGTH, 27, seed=0)

    def weights(with_counts):
        model = new_model().half()
        options = poptorch.Options().deviceIterations(2).outputMode(poptorch.OutputMode.Sum)
        options.Training.gradientAccumulation(4)
        executor = poptorch.trainingModel(model, options, poptorch.optim.AdamW(model.parameters(), lr=0.01))
        counter = LabelCounter(samples, ResumableSampler(16, 0), model.counted, 2, 4, uneven=False)
        outputs = []
        for call in counter.calls([samples.__getitems__(range(16))] * 3):
            inputs = call._asdict()
            if not with_counts:
                del inputs["label_counts"]
            outputs += executor(**inputs)
        return outputs + list(model.state_dict().values())

    assert all(torch.equal(*pair) for pair in zip(weights(True), weights(False)))


@pytest.mark.parametrize("own_order", [True, False])
def test_processes_divide_by_the_same_number(own_order):
    samples, ranks, iterations, micro_batches, rows = Padded(70), 3, 2, 2, 2
    block = iterations * micro_batches * rows

    def sampler_of(rank, ranks, block):
        shard = Shard(rank, ranks, rows, block // rows)
        found = OrderedSampler(70, 70, shard) if own_order else ResumableSampler(70, 5, shard)
        found.set_epoch(0, ranks * block)  # resumed after one call
        return found

    of_update, of_call = [], []
    for rank in range(ranks):
        sampler = sampler_of(rank, ranks, block)
        counter = LabelCounter(samples, sampler, new_model().counted, iterations, micro_batches, uneven=True)
        batch = samples.__getitems__(list(sampler)[:block])
        (call,) = counter.calls([batch])
        assert call.label_counts.shape == (iterations * micro_batches, 2)
        of_update.append(call.label_counts[:, 0])
        of_call.append(float(call.label_counts[0, 1]))
    assert torch.equal(of_update[0], of_update[1]) and torch.equal(of_update[0], of_update[2])
    of_the_call = slice(ranks * block, 2 * ranks * block)
    order = range(70) if own_order else list(ResumableSampler(70, 5))
    _, labels = samples.__getitems__(order[of_the_call])
    # Labels of each update, whose samples are those that one process would take for it.
    counts = (labels != IGNORED).sum(dim=1).reshape(iterations, -1).sum(dim=1)
    expected = counts.repeat_interleave(micro_batches) / (ranks * micro_batches)
    torch.testing.assert_close(of_update[0], expected.float())
    assert of_call == [pytest.approx(float(counts.sum()) / (ranks * iterations * micro_batches))] * ranks


def test_an_update_without_labels_costs_nothing():
    samples = Padded(4)
    samples.ids[:, 1:] = NOTHING
    model = new_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = poptorch.Options().outputMode(poptorch.OutputMode.Sum)
    options.Training.gradientAccumulation(4)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=1.0))
    counter = LabelCounter(samples, ResumableSampler(4, 0), model.counted, 1, 4, uneven=True)
    (call,) = counter.calls([samples.__getitems__(range(4))])
    assert [float(output) for output in executor(**call._asdict())] == [0.0, 0.0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_counting_keeps_no_batch():
    """The next one, of up to half a gigabyte, is made while a call is under way."""
    samples = Padded(8)
    counter = LabelCounter(samples, make_sampler(samples, 0), new_model().counted, 1, 4, uneven=True)
    alive = []

    def batches():
        for start in (0, 4):
            gc.collect()
            assert all(reference() is None for reference in alive)
            batch = samples.__getitems__(range(start, start + 4))
            alive.append(weakref.ref(batch[0]))
            yield batch
            del batch

    for call in counter.calls(batches()):
        del call
    assert len(alive) == 2


# ---- whole runs ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny model without dropout, and a corpus of which half the articles are padded; some ids end a document."""
    folder = tmp_path_factory.mktemp("padded")
    write_config(folder, **NO_DROPOUT, eos_token_id=END)
    random = np.random.default_rng(0)
    with (folder / "corpus.pkl").open("wb") as file:
        articles = [random.integers(0, 60, size) for size in (17, 9) * 16]
        for article in articles:
            article[random.random(len(article)) < 0.15] = END
        write_articles(file, iter(articles), 60)
    return folder


def logged(folder, **changes):
    """Loss and accuracy of every line, and what was printed."""
    done = run_here(flags(folder, **{"train_path": folder / "corpus.pkl", "lr_warmup": 0, "epochs": 2, **changes}))
    assert done.status == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith("step ")]
    return [[float(line.split(name)[1].split(",")[0]) for name in (" loss: ", " acc: ")] for line in lines], done.out


@pytest.mark.parametrize("boundaries", ["stream", "isolated"])
def test_a_run_does_not_depend_on_the_split(folder, boundaries):
    def run(*split):
        names = ("batch_size", "gradient_accumulation", "replication_factor")
        return logged(folder, document_boundaries=boundaries, **dict(zip(names, split)))[0]

    whole = run(8, 1, 1)
    assert len(whole) == 8
    for split in ((1, 8, 1), (2, 2, 2)):
        assert np.allclose(run(*split), whole, atol=2e-3), split


def test_a_run_of_the_older_loss_says_so(folder, tmp_path):
    split = {"gradient_accumulation": 4}
    logged(folder, save_model_path=tmp_path, training_steps=2, **split)
    path = tmp_path / "step_2" / "training_state.pt"
    resume = {"pretrained_checkpoint": path.parent, "resume_training_from_checkpoint": True, "training_steps": 3}
    said = "this run began when a loss was the mean of the means of its micro-batches"
    state = torch.load(str(path), weights_only=True)
    assert said not in logged(folder, **split, **resume)[1]
    del state["loss_mean"]
    torch.save(state, str(path))
    assert said in logged(folder, **split, **resume)[1]
    assert loss_notes(state, uneven=False) == [], "unpadded data: nothing has changed"
