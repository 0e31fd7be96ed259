"""The tasks of the published tables, through lm-evaluation-harness, on small files of their form: the figures are those
of transformers' GPT-2 in float64 on the questions as the tasks put them."""

import json
import math

import pytest
import tiny_checkpoint
import torch

pytestmark = pytest.mark.harness
pytest.importorskip("lm_eval", reason="pip install -r requirements-evaluation.txt")

LAMBADA = [{"text": row} for row in tiny_checkpoint.ROWS]
PIQA = [
    {"goal": "meet the people", "sol1": "go to the market", "sol2": "rain on the bridge and the town", "label": 0},
    {"goal": "find the source", "sol1": "follow the river north", "sol2": "sea", "label": 0},
    {"goal": "cross the river", "sol1": "take a bridge", "sol2": "take the sea", "label": 1},
]
HELLASWAG = [
    {
        "activity_label": "Walking [x]",
        "ctx_a": "A river [title] flows to the sea.",
        "ctx_b": "the people",
        "endings": ["meet in the town.", "rain.", "are  a bridge.", "flow north [step] wet."],
        "label": "2",
    },
    {
        "activity_label": "Rain",
        "ctx_a": "It rains on the town.",
        "ctx_b": "it",
        "endings": ["is wet", "is a market of five towns", "flows to the sea", "spring"],
        "label": "0",
    },
]
WINOGRANDE = [
    {
        "sentence": "The river met the sea because _ was near.",
        "option1": "the river",
        "option2": "the sea",
        "answer": "2",
    },
    {"sentence": "The town is wet and _ is where it rains.", "option1": "the town", "option2": "north", "answer": "1"},
]
FILES = {"lambada_openai": LAMBADA, "piqa": PIQA, "hellaswag": HELLASWAG, "winogrande": WINOGRANDE}


def log_likelihood(reference, bpe, context, continuation):
    """(nats, whether it is the greedy one): of the continuation's tokens after the context's; as whole texts encode."""
    before, whole = bpe.encode(context), bpe.encode(context + continuation)
    assert whole[: len(before)] == before
    with torch.no_grad():
        logs = reference(torch.tensor([whole])).logits[0].log_softmax(-1)
    places = range(len(before) - 1, len(whole) - 1)
    picked = [float(logs[place, whole[place + 1]]) for place in places]
    return sum(picked), all(int(logs[place].argmax()) == whole[place + 1] for place in places)


def expected(reference, bpe):
    """Task -> measure -> value, by the tasks' definitions."""
    words = [log_likelihood(reference, bpe, *_last_word(row["text"])) for row in LAMBADA]
    found = {
        "lambada_openai": {
            "acc": sum(greedy for _, greedy in words) / len(words),
            "perplexity": math.exp(-sum(nats for nats, _ in words) / len(words)),
        }
    }

    def accuracy(questions):
        """Questions: pairs of (context, continuation) for each choice, and the right one."""
        hits = 0
        for choices, right in questions:
            scores = [log_likelihood(reference, bpe, *choice)[0] for choice in choices]
            hits += scores.index(max(scores)) == right
        return {"acc": hits / len(questions)}

    piqa = [([(f"Question: {d['goal']}\nAnswer:", f" {d[s]}") for s in ("sol1", "sol2")], d["label"]) for d in PIQA]
    contexts = ["Walking: A river. flows to the sea. The people", "Rain: It rains on the town. It"]
    endings = [["meet in the town.", "rain.", "are a bridge.", "flow north wet."], HELLASWAG[1]["endings"]]
    hellaswag = [([(c, f" {e}") for e in es], int(d["label"])) for c, es, d in zip(contexts, endings, HELLASWAG)]
    # Of Winogrande the choices are contexts, and what follows the gap is scored.
    winogrande = []
    for document in WINOGRANDE:
        before, after = document["sentence"].split("_")
        choices = [(before + document[option], f" {after.strip()}") for option in ("option1", "option2")]
        winogrande.append((choices, int(document["answer"]) - 1))
    for name, questions in (("piqa", piqa), ("hellaswag", hellaswag), ("winogrande", winogrande)):
        found[name] = accuracy(questions)
    return found


def _last_word(text):
    context, word = text.rsplit(" ", 1)
    return context, f" {word}"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def words(folder, *names):
    """The command line for these tasks, each with a file of its own."""
    given = []
    for name in names:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(document) + "\n" for document in FILES[name]), encoding="utf-8")
        given.append(f"{name}={path}")
    model = ["--pretrained-checkpoint", str(folder / "checkpoint"), "--seq-length", "0"]
    return [*model, "--tasks", ",".join(names), "--task-data", *given]


@pytest.mark.parametrize("seed", [0, 4])
def test_figures_are_those_of_the_definitions_and_are_recorded(tmp_path, offline, seed, capsys):
    from tasks import harness, tables

    gpt2 = tiny_checkpoint.write(tmp_path, positions=128, seed=seed)
    reference, bpe = tiny_checkpoint.reference(gpt2), tiny_checkpoint.tokenizer()
    kept = tmp_path / "results.json"
    assert harness.main([*words(tmp_path, *FILES), "--record", "--json", str(kept)]) == 0
    found = json.loads(kept.read_text(encoding="utf-8"))
    for name, values in expected(reference, bpe).items():
        for measure, value in values.items():
            assert found[name][f"{measure},none"] == pytest.approx(value, rel=1e-4), (name, measure)
    capsys.readouterr()
    assert tables.main(["002", "--runs", str(tmp_path), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tables"][-1]["rows"]
    assert {row["Task"]: row["Result"]["acc,none"] for row in rows} == {name: found[name]["acc,none"] for name in FILES}


def test_lambada_of_the_harness_is_last_word(tmp_path, offline):
    """The table takes either: the harness's lambada_openai, or protocol last-word of our own."""
    from test_evaluate_program import run as evaluate

    from tasks import harness

    tiny_checkpoint.write(tmp_path, positions=128)
    theirs, ours = tmp_path / "theirs.json", tmp_path / "ours.json"
    assert harness.main([*words(tmp_path, "lambada_openai"), "--json", str(theirs)]) == 0
    lambada = ("--valid-data", tmp_path / "lambada_openai.jsonl", "--seq-length", 0, "--json", ours)
    assert evaluate(tmp_path, *lambada, task="LAMBADA")[0] == 0
    found = json.loads(theirs.read_text(encoding="utf-8"))["lambada_openai"]
    values = json.loads(ours.read_text(encoding="utf-8"))["results"][1]["values"]
    assert found["perplexity,none"] == pytest.approx(values["ppl"], rel=1e-4)
    assert found["acc,none"] == values["accuracy"]


def test_a_name_for_several_tasks_has_no_file(tmp_path, offline, capsys):
    from tasks import harness

    tiny_checkpoint.write(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a b"}\n', encoding="utf-8")
    model = ["--pretrained-checkpoint", str(tmp_path / "checkpoint")]
    with pytest.raises(SystemExit) as end:
        harness.main([*model, "--tasks", "lambada", "--task-data", f"lambada={tmp_path / 'rows.jsonl'}"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "lambada stands for several tasks" in error, error


def test_flags_that_contradict_each_other(tmp_path, offline, capsys):
    from tasks import harness

    tiny_checkpoint.write(tmp_path)
    given = words(tmp_path, "piqa")
    for further, said in (
        (["--record", "--limit", "2"], "--record: with --limit 2 a part is computed"),
        (["--num-fewshot", "2"], "--task-data: with --num-fewshot the examples would be of the questions"),
    ):
        with pytest.raises(SystemExit) as end:
            harness.main([*given, *further])
        assert end.value.code == 2 and said in capsys.readouterr().err
