"""--task-data of tasks/harness.py: which files serve, and what is said of the others. Needs no harness."""

import json

import pytest

from tasks.harness_data import FORMS, read_task_data

GOOD = {
    "lambada_openai": {"text": "a river flows"},
    "piqa": {"goal": "a", "sol1": "b", "sol2": "c", "label": 1},
    "hellaswag": {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": "1", "ind": 7},
    "winogrande": {"sentence": "a _ b", "option1": "c", "option2": "d", "answer": "1"},
}
BAD = {
    ("lambada_openai", "has no text"): {"label": "a b"},
    ("lambada_openai", "by its text"): {"text": "word"},
    ("piqa", "by its label"): {**GOOD["piqa"], "label": -1},
    ("piqa", "has no sol1, sol2"): {"goal": "a", "label": 1},
    ("hellaswag", "by its label"): {**GOOD["hellaswag"], "label": ""},
    ("hellaswag", "by its endings, label"): {**GOOD["hellaswag"], "endings": 3},
    ("winogrande", "by its sentence"): {**GOOD["winogrande"], "sentence": "no gap"},
    ("winogrande", "by its answer"): {**GOOD["winogrande"], "answer": ""},
}


def write(path, *documents):
    path.write_text("".join(json.dumps(document) + "\n\n" for document in documents), encoding="utf-8")
    return path


def test_every_task_takes_a_file_of_its_form(tmp_path):
    files = {name: write(tmp_path / f"{name}.jsonl", GOOD[name], GOOD[name]) for name in FORMS}
    words = [f"{name}={path}" for name, path in files.items()]
    assert read_task_data(words, list(FORMS)) == files
    assert read_task_data([f"other={files['piqa']}"], ["other"]), "a task whose form is not known"


@pytest.mark.parametrize("name, said", BAD, ids=" ".join)
def test_a_line_that_is_no_document_of_the_task(tmp_path, name, said):
    path = write(tmp_path / "rows.jsonl", GOOD[name], BAD[name, said])
    with pytest.raises(ValueError) as told:
        read_task_data([f"{name}={path}"], [name])
    assert f"--task-data {name}={path}, line 3: " in str(told.value) and said in str(told.value)


def test_words_and_files_that_are_of_no_use(tmp_path):
    (tmp_path / "rows.txt").write_text("text", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"goal": 1}\n{"goal": \n', encoding="utf-8")
    for word, said in (
        ("piqa", "give TASK=FILE"),
        ("hellaswag=rows.jsonl", "hellaswag is none of --tasks piqa"),
        (f"piqa={tmp_path / 'rows.txt'}", "only .json, .jsonl, .csv, .parquet can be read"),
        (f"piqa={tmp_path / 'absent.jsonl'}", "there is no such file"),
        (f"piqa={tmp_path / 'rows.jsonl'}", "line 1: has no sol1, sol2, label"),
    ):
        with pytest.raises(ValueError, match="--task-data ") as told:
            read_task_data([word], ["piqa"])
        assert said in str(told.value)
