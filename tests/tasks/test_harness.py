"""lm-evaluation-harness on a local task: log-likelihoods are those of its own Hugging Face model on the checkpoint."""

import json

import poptorch
import pytest
import tiny_checkpoint

pytestmark = pytest.mark.harness
pytest.importorskip("lm_eval", reason="pip install -r requirements-evaluation.txt")

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: {kind}
doc_to_text: {text}
doc_to_target: {target}
{more}
metadata: {{version: 1.0}}
"""


def write_tasks(folder):
    rows = [
        {"text": row, "word": row.split()[-1], "choices": ["sea", "town is wet", "river"]}
        for row in tiny_checkpoint.ROWS
    ]
    rows.append({"text": " ".join(tiny_checkpoint.ROWS * 2), "word": "end", "choices": ["market", "north", "spring"]})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, kind, text, target, more in (
        ("words", "loglikelihood", '"{{text}}"', '" {{word}}"', "metric_list: [{metric: perplexity}, {metric: acc}]"),
        ("choices", "multiple_choice", '"{{text}}"', "0", 'doc_to_choice: "{{choices}}"\nmetric_list: [{metric: acc}]'),
        ("rolling", "loglikelihood_rolling", '""', '"{{text}}"', "metric_list: [{metric: word_perplexity}]"),
    ):
        content = TASK.format(name=name, file=file, kind=kind, text=text, target=target, more=more)
        (folder / f"{name}.yaml").write_text(content, encoding="utf-8")


def test_log_likelihoods_are_those_of_the_harness_own_model(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from test_evaluation_protocols import scorer

    from tasks.harness import HarnessModel
    from tasks.logits_scorer import LogitsScorer

    gpt2 = tiny_checkpoint.write(tmp_path)
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks")
    checkpoint = str(tmp_path / "checkpoint")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=f"{checkpoint}/tokenizer.json", eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    theirs = HFLM(
        pretrained=transformers.GPT2LMHeadModel.from_pretrained(checkpoint), tokenizer=fast, device="cpu",
        batch_size=1, max_length=32,
    )  # fmt: skip
    ours = HarnessModel(scorer(gpt2), tiny_checkpoint.tokenizer())
    executor = poptorch.inferenceModel(gpt2, poptorch.Options().deviceIterations(2))
    running = HarnessModel(LogitsScorer(executor, 6, 32), tiny_checkpoint.tokenizer())
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    names = ["words", "choices", "rolling"]
    found = [
        simple_evaluate(model, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0)
        for model in (ours, running, theirs)
    ]
    for name in names:
        *mine_twice, their_samples = (sorted(one["samples"][name], key=lambda s: s["doc_id"]) for one in found)
        assert [len(samples) for samples in mine_twice] == [4, 4]
        for our, their in (pair for samples in mine_twice for pair in zip(samples, their_samples)):
            assert len(our["resps"]) == (3 if name == "choices" else 1)
            for (mine,), (other,) in zip(our["resps"], their["resps"]):
                if name == "rolling":
                    assert float(mine) == pytest.approx(float(other), rel=1e-4)
                else:
                    assert float(mine[0]) == pytest.approx(float(other[0]), rel=1e-4)
                    assert mine[1] == other[1]


def test_data_that_cannot_be_had_are_an_error_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from tasks import harness

    tiny_checkpoint.write(tmp_path)
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks")
    (tmp_path / "tasks" / "rows.jsonl").unlink()
    words = ["--pretrained-checkpoint", str(tmp_path / "checkpoint"), "--include-path", str(tmp_path / "tasks")]
    assert harness.main([*words, "--tasks", "words"]) == 1
    error = capsys.readouterr().err
    assert "the data of a task cannot be had" in error and "HINT: " in error and "Traceback" not in error


# Context and continuation, and what is said of them: what the harness's own model answers with an error.
NOTHING_SCORED = {
    "the continuation merges into the last token of the context": ("the t", "own"),
    "the context is white space alone": (" \n ", "the town"),
    "the continuation is empty": ("", ""),
    "tokens, more than the 32 that the model sees": ("", " ".join(tiny_checkpoint.ROWS)),
    "tokens, more than the 32 that the model": ("the town", " ".join(["", *tiny_checkpoint.ROWS])),
}


@pytest.mark.parametrize("said", NOTHING_SCORED)
def test_a_choice_of_which_nothing_is_scored_does_not_win(tmp_path, said):
    """Both models raise; ours names both texts, before anything is scored."""
    import transformers
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from test_evaluation_protocols import scorer

    from tasks.harness import HarnessModel

    context, continuation = NOTHING_SCORED[said]
    gpt2 = tiny_checkpoint.write(tmp_path)
    checkpoint = str(tmp_path / "checkpoint")
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in (("the river", " flows"), (context, continuation))]
    ours = HarnessModel(scorer(gpt2), tiny_checkpoint.tokenizer())
    with pytest.raises(ValueError) as told:
        ours.loglikelihood(requests)
    text = str(told.value)
    assert said in text and repr(context) in text and repr(continuation[-160:]) in text
    assert len(ours.loglikelihood(requests[:1])) == 1
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=f"{checkpoint}/tokenizer.json", eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    theirs = HFLM(
        pretrained=transformers.GPT2LMHeadModel.from_pretrained(checkpoint), tokenizer=fast, device="cpu",
        batch_size=1, max_length=32,
    )  # fmt: skip
    with pytest.raises((AssertionError, IndexError)):
        theirs.loglikelihood(requests, disable_tqdm=True)


def test_outputs_that_are_not_finite_end_the_harness(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch

    from model.checkpoint import save_pretrained
    from tasks import harness

    gpt2 = tiny_checkpoint.write(tmp_path)
    with torch.no_grad():
        gpt2.transformer.h[1].ln_1.bias[0] = float("nan")
    save_pretrained(gpt2, tmp_path / "checkpoint")
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks")
    words = ["--pretrained-checkpoint", str(tmp_path / "checkpoint"), "--include-path", str(tmp_path / "tasks")]
    for task in ("words", "choices", "rolling"):
        assert harness.main([*words, "--tasks", task, "--seq-length", "0"]) == 1
        error = capsys.readouterr().err
        assert "not finite" in error and "transformer.h.1.ln_1" in error and "HINT: " in error, error
