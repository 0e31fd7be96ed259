"""lm-evaluation-harness through the server (its local-completions model) scores as tasks/harness.py does."""

import poptorch
import pytest
import tiny_checkpoint

pytestmark = pytest.mark.harness
pytest.importorskip("lm_eval", reason="pip install -r requirements-evaluation.txt")
pytest.importorskip("starlette", reason="requirements-serving.txt is not installed")

import tiny_server  # noqa: E402

PAIRS = [
    ("the river", " flows to the sea"),
    ("it rains on the bridge and", " it rains on the market"),
    ("", "the town is wet"),
    ("a spring is the source of the", " river"),
]


def test_log_likelihoods_are_those_of_tasks_harness(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from tasks.harness import HarnessModel
    from tasks.logits_scorer import LogitsScorer

    gpt2 = tiny_checkpoint.write(tmp_path)  # the same seed, so that it is the server's
    executor = poptorch.inferenceModel(gpt2, poptorch.Options().deviceIterations(2))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=f"{tiny_server.folder()}/tokenizer.json", eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    fast.save_pretrained(tmp_path / "tokenizer")
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PAIRS)]
    expected = HarnessModel(
        LogitsScorer(executor, 6, tiny_server.POSITIONS), tiny_checkpoint.tokenizer()
    ).loglikelihood(requests)
    with tiny_server.service() as one, tiny_server.listening(one) as address:
        client = LocalCompletionsAPI(
            base_url=f"{address}/v1/completions", model=tiny_server.NAME, tokenizer=str(tmp_path / "tokenizer"),
            tokenizer_backend="huggingface", max_length=tiny_server.POSITIONS - 1, batch_size=2,
        )  # fmt: skip
        found = client.loglikelihood(requests, disable_tqdm=True)
    for (value, greedy), (other, other_greedy) in zip(found, expected):
        assert value == pytest.approx(other, abs=1e-4) and greedy == other_greedy
    assert len(found) == len(PAIRS)
