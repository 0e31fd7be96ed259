"""tasks.tables: the documents' tables from folders of runs, written by hand and by the programs themselves."""

import csv
import dataclasses
import io
import json
import math
import shutil

import pytest
import tiny_checkpoint
import tiny_run
from test_evaluate_program import run as evaluate

from model.checkpoint import save_pretrained
from model.config import MODELS, GPT2Config, real_parameter_count
from tasks import tables
from tasks.runs import systems_of

PUBLISHED = json.loads(tables.PUBLISHED.read_text(encoding="utf-8"))


def shown(capsys, document, folder, form="json"):
    """What the program prints: as JSON, the rows of each table by its name."""
    assert tables.main([document, "--runs", str(folder), "--format", form]) == 0
    out = capsys.readouterr().out
    return {table["name"]: table for table in json.loads(out)["tables"]} if form == "json" else out


def write_run(folder, system, evaluations=(), curves="", checkpoint="step_6", **flags):
    """A run as train_gpt2.py leaves it, with these flags, of the configuration that --model `system` stands for."""
    (folder / checkpoint).mkdir(parents=True)
    shutil.copy(str(MODELS[system]), str(folder / checkpoint / "config.json"))
    (folder / checkpoint / "model.safetensors").write_bytes(b"weights of " + system.encode())
    content = {
        "flags": {
            **{"batch_size": 1, "gradient_accumulation": 2, "replication_factor": 1, "device_iterations": 1},
            **{"max_len": 1024, "optimizer": "Adam", "learning_rate": 1e-4, "tensor_gradient_clipping": None, **flags},
        },
        "started_from": flags.get("pretrained_checkpoint"),
        "samples_an_epoch": 4,
        "checkpoints": [checkpoint],
        "numerics": {"products of half": "float32"},
    }
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    if curves:
        (folder / "curves.csv").write_text(curves, encoding="utf-8")
    for number, evaluation in enumerate(evaluations):
        place = folder / "evaluations"
        place.mkdir(exist_ok=True)
        (place / f"{number}.json").write_text(json.dumps({"checkpoint": checkpoint, **evaluation}), encoding="utf-8")
    return folder


def result(task, protocol, window, file, counts=None, **values):
    values = {name.replace("_", " "): value for name, value in values.items()}
    return {
        "results": [
            {
                **{"task": task, "protocol": protocol, "window": window, "files": [file], "complete": True},
                **{"counts": {"scored": 7, **(counts or {})}, "values": values},
            }
        ]
    }


CURVES = """step,epoch,tokens,loss,accuracy,learning_rate,samples_per_second,validation_loss
0,,0,,,,,9.0
1,0,2048,8.0,0,0.1,4.0,
2,0,4096,7.0,0,0.1,2.0,
2,,4096,,,,,6.5
4,1,8192,6.0,0,0.1,8.0,
4,,8192,,,,,5.5
5,2,10240,3.0,0,0.1,1.0,
6,2,12288,2.0,0,0.1,2.0,
6,,12288,,,,,5.0
"""


def test_a_run_stands_beside_the_published_row_that_has_its_settings(tmp_path, capsys):
    tfchat = {"task": "WIKITEXT103", "protocol": "token-tfchat", "window": 1024, "file": "x/wiki.valid.raw"}
    write_run(
        tmp_path / "clipped",
        "tfchat-preln",
        [result(**tfchat, counts={"batch": 2}, ppl=21.0), result(**tfchat, counts={"batch": 4}, ppl=99.0)],
        CURVES,
        tensor_gradient_clipping=1.0,
        train_path="wiki/train.pkl",
    )
    write_run(tmp_path / "wide" / "four", "tfchat-preln", [], CURVES, gradient_accumulation=4)
    found = shown(capsys, "000", tmp_path)
    rows = found["Benchmark1: compared with existing frameworks"]["rows"]
    measured = {row["WikiText-103 (PPL), published"]: row["WikiText-103 (PPL), measured"] for row in rows}
    assert measured == {"20.76": None, "20.47": None, "20.13": 21.0, "19.52": None, "1730.9": None, "20.128": None}
    (row,) = (row for row in rows if row["Run"])
    assert row["Run"] == "clipped (step_6)" and row["Activation"] == "GELU"
    first, *others = found["Benchmark2: mixed precision"]["rows"]
    # 4 samples an epoch are 2 calls of 2. Calls 1, 2, 3 and 4, 5, 6 at 4, 2, 8, 1 and 2 samples a second took
    # 0.5 + 1 + 2 * 0.25 + 2 + 1 = 5 seconds; two of the six 5 / 3.
    assert first["Training time for 1 epoch (s), measured"] == pytest.approx(5 / 3)
    assert (first["Clipnorm"], first["Mixed Precision"], first["Batch size"]) == ("1.0", "Off", "2")
    assert all(row["Run"] is None for row in others), "four samples and no mixed precision: a row of no table"
    losses = found["Held-out loss after each epoch"]["rows"][0]
    assert [losses[f"{n}, measured"] for n in (1, 2, 3, 5)] == [6.5, 5.5, 5.0, None]
    of_all = {row["Run"]: row for row in found["All runs"]["rows"]}
    assert of_all["wide/four"]["Parameters"] == 123_614_976, "padding of the vocabulary is none"
    assert (of_all["clipped"]["Corpus"], of_all["wide/four"]["Corpus"]) == ("wiki/train.pkl", None)
    assert of_all["wide/four"]["Batch"] == 4 and of_all["wide/four"]["Model"] == ["tfchat-preln"]
    assert of_all["clipped"]["Tokens trained"] == 12288 and of_all["clipped"]["Epochs"] == 3.0
    assert of_all["clipped"]["Held-out PPL"] == pytest.approx(math.exp(5.0))
    assert of_all["clipped"]["Training PPL"] == pytest.approx(math.exp(2.5))  # of the last epoch


def test_figures_by_context_and_from_the_harness(tmp_path, capsys):
    wiki = {"task": "WIKITEXT103", "protocol": "token-gpt-star", "file": "wikitext-103/wiki.test.raw"}
    harness = [{"harness": {"piqa": {"alias": "piqa", "acc,none": 0.625, "acc_stderr,none": 0.01}}}]
    harness += [{"harness": {"piqa": {"acc,none": 0.9}}, "num_fewshot": 5}]
    write_run(
        tmp_path / "star",
        "gpt-127-star",
        [
            *(result(**wiki, window=window, ppl=float(window)) for window in (1024, 8192)),
            result("ENWIK8", "bits-per-byte-disjoint", 2048, "enwik8.zip", bits_per_byte=1.25),
            result("ENWIK8", "bits-per-byte", 1024, "enwik8", bits_per_byte=9.9),
            result("LAMBADA", "last-word", 512, "lambada_test.jsonl", accuracy=0.5, ppl=17.0),
            *reversed(harness),
        ],
        CURVES,
        max_len=512,
        gradient_accumulation=1024,
        lr_warmup_steps=4000,
        lr_schedule="cosine",
        min_learning_rate=6e-5,
        weight_decay=0.1,
    )
    found = shown(capsys, "002", tmp_path)
    rows = {row["Model"]: row for row in found["By ALiBi context length"]["rows"]}
    wikitext = {name: row["WikiText (PPL), measured"] for name, row in rows.items() if row["Run"]}
    contexts, figures = (1024, 2048, 3072, 4096, 8192), (1024.0, None, None, None, 8192.0)
    assert wikitext == {f"GPT-127* ({n} ctx)": figure for n, figure in zip(contexts, figures)}
    assert [rows[f"GPT-127* ({n} ctx)"]["enwik8 (BPB), measured"] for n in (1024, 2048)] == [None, 1.25]
    row = found["GPT-127*"]["rows"][0]
    assert (row["Piqa (Acc), measured"], row["LAMBADA (Acc), measured"]) == (0.625, 0.5)
    assert row["Hellaswag (Acc), measured"] is None and row["Training Tokens, measured"] == 12288
    text = shown(capsys, "002", tmp_path, "markdown")
    assert "| 63.17% | 62.50% |" in text and "| 26B[^3] | 12,288 |" in text and "GPT-127\\* (8192 ctx)" in text
    details = {row["Hyperparameter"]: row["Value, measured"] for row in found["Training details"]["rows"]}
    assert details == {
        **{"Batch Size": 1024, "Sequence Length": 512, "Warmup Steps": 4000, "Total Steps": 6, "Weight Decay": 0.1},
        **{"Min Learning Rate": 6e-5, "Max Learning Rate": 1e-4, "Initial LR": 0.0},
    }


def test_every_system_is_told_from_the_others():
    for name, path in MODELS.items():
        config = GPT2Config.from_json(path)
        assert systems_of(config) == [name]
        changed = dataclasses.replace(config, n_positions=77, resid_pdrop=0.3, embd_pdrop=0.0)
        assert systems_of(changed) == [name], "its length and dropout do not matter"
    assert systems_of(GPT2Config()) == ["gpt2"], "OpenAI's checkpoints say gelu_new"
    assert systems_of(GPT2Config(n_layer=47)) == [] == systems_of(None)
    assert systems_of(GPT2Config(n_layer=48, n_embd=1600, n_head=25)) == ["gpt2-xl"]


def test_sequences_of_one_corpus_are_not_those_of_the_other(tmp_path, capsys):
    def counted(folder, tokens):
        return result("WIKITEXT103", "token", 256, f"/x/{folder}/wiki.valid.tokens", counts={"bpe": tokens}, ppl=2.0)

    both = [counted("WikiText_2", 255 * 11 + 3), counted("wikitext-103", 255 * 7)]
    write_run(tmp_path / "two", "gpt2", both, max_len=256, train_path="/home/pgreen/wikitext_2/train")
    write_run(tmp_path / "large", "gpt2", both, max_len=256, train_path="/home/pgreen/wikitext-103/train")
    rows = shown(capsys, "004", tmp_path)["Sequences of 256 tokens, GPT-2's tokenizer"]["rows"]
    found = {(row["Data set"], row["Run"]): row["valid, measured"] for row in rows}
    assert found == {
        ("WikiText-2", "two (step_6)"): 11,
        ("WikiText-103", "large (step_6)"): 7,
        ("PG-19", None): None,  # no run is of it, whatever letters are in its path
        ("WritingPrompts", None): None,
    }


def test_evaluations_stand_by_context(tmp_path, capsys):
    text = {"task": "TEXT8", "protocol": "bits-per-character-disjoint", "file": "x/text8"}
    kept = [result(**text, window=window, ppl=2.0) for window in (1024, 2048, 512)]  # as their files are called
    write_run(tmp_path / "run", "gpt-127-star", kept)
    assert [row["Context"] for row in shown(capsys, "002", tmp_path)["All evaluations"]["rows"]] == [512, 1024, 2048]


def test_each_of_several_corpora_is_named_once(tmp_path, capsys):
    files = ["a/corpus.pkl", "b/corpus.pkl"]  # as run.json has --dataset pickle --input-files
    write_run(tmp_path / "run", "gpt2", train_path=files[0], data_prefix=files)
    (row,) = shown(capsys, "001", tmp_path)["All runs"]["rows"]
    assert row["Corpus"] == "a/corpus.pkl b/corpus.pkl"


def test_a_figure_in_float32_comes_before_one_in_half(tmp_path, capsys):
    of = {"task": "WIKITEXT103", "protocol": "token-gpt-star", "window": 1024, "file": "x/wiki.test.raw"}
    kept = [{**result(**of, ppl=3.0), "precision": "half"}, {**result(**of, ppl=2.0), "precision": "float32"}]
    write_run(tmp_path / "run", "gpt-127-star", kept)
    assert shown(capsys, "002", tmp_path)["GPT-127*"]["rows"][0]["WikiText (PPL), measured"] == 2.0


def test_the_warm_up_is_what_training_made_of_the_flags(tmp_path, capsys):
    flags = {"device_iterations": 4, "learning_rate": 6e-4, "max_len": 512, "lr_warmup": 0.1, "lr_warmup_steps": None}
    folder = write_run(tmp_path / "run", "gpt-127-star", **flags)
    content = json.loads((folder / "run.json").read_text(encoding="utf-8"))

    def measured():
        rows = shown(capsys, "002", tmp_path)["Training details"]["rows"]
        found = {row["Hyperparameter"]: row["Value, measured"] for row in rows}
        return found["Warmup Steps"], found["Initial LR"]

    assert measured() == (None, None), "a tenth, of how many steps the file does not say"
    (folder / "run.json").write_text(json.dumps({**content, "warmup_steps": 11}), encoding="utf-8")
    assert measured() == (44, 0.0)  # 11 calls of 4 updates
    (folder / "run.json").write_text(json.dumps({**content, "warmup_steps": 0}), encoding="utf-8")
    assert measured() == (0, 6e-4)


def test_a_folder_is_a_run_by_what_is_in_it(tmp_path, capsys):
    """A folder that is only called evaluations hides no run; a run without a checkpoint has its own positions."""
    (tmp_path / "evaluations").mkdir()
    folder = write_run(tmp_path / "run", "gpt2-tiny", model="gpt2-tiny", max_len=48)
    shutil.rmtree(str(folder / "step_6"))
    (row,) = shown(capsys, "000", tmp_path)["All runs"]["rows"]
    config = dataclasses.replace(GPT2Config.from_json(MODELS["gpt2-tiny"]), n_positions=48)
    assert row["Run"] == "run" and row["Parameters"] == real_parameter_count(config)


def test_what_was_not_evaluated_to_the_end_is_not_kept(tmp_path):
    from tasks import report
    from tasks.protocols import Result

    def one(protocol, complete):
        return Result("PTB", protocol, ["data/ptb.test.txt"], "none", 8, 8, {"bpe": 9}, {"ppl": 2.0}, complete, "PTB")

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    lines = report.kept([one("token", True), one("adjusted", False)], str(tmp_path), GPT2Config(), fp16=True)
    assert lines == [f"kept: 1 of 2 results in {tmp_path}/evaluations", "what was not evaluated to the end is not kept"]
    (path,) = (tmp_path / "evaluations").iterdir()
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["precision"] == "half" and [one["protocol"] for one in content["results"]] == ["token"]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("000", "The document names this row Transformers.GPT2: it is a run of TfChat.PreLNDecoder."),
        ("000", "prints the loss, 3.0232, as perplexity"),
        ("000", "1730.9"),
        ("002", "At context 2048; at the 1024 of the other rows it is 29.91."),
        ("002", "A copy slip: the row above's figure"),
        ("002", "lists Min Learning Rate twice: 6e-4 is the maximum"),
    ],
)
def test_without_runs_the_published_figures_and_the_errata_are_there(tmp_path, capsys, document, said):
    assert tables.main([document, "--runs", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert said in captured.out and "no run in it" in captured.err
    rows = [line.strip("| ").split(" | ") for line in captured.out.splitlines() if line.startswith("| ")]
    heads = [number for number, row in enumerate(rows) if set(row) == {"----"}]
    for number, row in enumerate(rows):
        head = rows[max(h for h in heads if h <= number) - 1] if number > heads[0] else []
        if number in heads or number + 1 in heads:
            continue
        for name, cell in zip(head, row):
            assert not name.endswith(", measured") or cell.startswith("-"), (name, cell)


def test_the_published_file_is_of_one_piece():
    """Every row has a cell for each column and a system that exists; measures and notes are there, and none unused."""
    for document in PUBLISHED["documents"].values():
        used = set()
        for table in document["tables"]:
            used.update(table.get("notes", ()))
            names = [column["name"] for column in table["columns"]]
            assert len(set(names)) == len(names)
            for column in table["columns"]:
                used.update(column.get("notes", ()))
                measure = column.get("measure")
                assert not isinstance(measure, str) or measure in PUBLISHED["measures"]
            for row in table["rows"]:
                assert len(row["cells"]) == len(names) and all(isinstance(cell, str) for cell in row["cells"])
                assert row.get("system", "any") in (*MODELS, "any")
                assert set(row.get("notes", {})) <= set(names) and set(row.get("measures", {})) <= set(names)
                used.update(note for notes in row.get("notes", {}).values() for note in notes)
        assert used == set(document["notes"])


@pytest.mark.parametrize("document", ["000", "001"])
def test_settings_read_from_a_run_are_written_as_the_document_has_them(tmp_path, capsys, document):
    """A run made from the conditions of each row: its cells of settings are the published ones."""
    numbers = iter(range(1000))
    expected = {}
    for table in PUBLISHED["documents"][document]["tables"]:
        settings = [column["name"] for column in table["columns"] if "setting" in column]
        for row in table["rows"]:
            where = {**table.get("where", {}), **row.get("where", {})}
            where = {name: value[0] if isinstance(value, list) else value for name, value in where.items()}
            if "system" not in row or where.get("start") == "none" or table["name"].startswith("Pretrained"):
                continue
            flags = {
                "tensor_gradient_clipping": where.get("clipnorm"),
                "gradient_accumulation": where.get("batch", 2),
                "max_len": where.get("context", 1024),
                "optimizer": where.get("optimizer", "Adam"),
                "learning_rate": where.get("learning_rate", 1e-4),
                "pretrained_checkpoint": "elsewhere" if where["start"] == "fine-tuned" else "",
            }
            name = f"run{next(numbers):03}"
            folder = write_run(tmp_path / name, row["system"], **flags)
            content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            content["numerics"]["products of half"] = where.get("precision", "float32")
            (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
            cells = dict(zip((column["name"] for column in table["columns"]), row["cells"]))
            expected[table["name"], name] = {setting: cells[setting] for setting in settings}
    found = shown(capsys, document, tmp_path)
    for (table, run), settings in expected.items():
        rows = [row for row in found[table]["rows"] if row["Run"] == run]
        assert rows, (table, run)
        same = [{name: _plain(row[name]) for name in settings} for row in rows]
        assert {name: _plain(text) for name, text in settings.items()} in same, (table, run, same)


def _plain(text):
    """Numbers as numbers: 1e-4 is 0.0001."""
    try:
        return float(text)
    except ValueError:
        return text.replace("NoScaling", "")


def test_a_run_of_the_programs_themselves(tmp_path, capsys):
    """train_gpt2.py, resumed, from a checkpoint; an evaluation with --record; what the tables say of it."""
    tiny_run.write_config(tmp_path)
    corpus = tiny_run.write_corpus(tmp_path / "corpus.pkl")
    common = {"train_path": corpus, "val_num": 2, "epochs": 2}
    first = tmp_path / "first"
    assert tiny_run.run_here(tiny_run.flags(tmp_path, **common, save_model_path=first, training_steps=3)).status == 0
    fine = tiny_run.flags(
        tmp_path, **common, save_model_path=tmp_path / "runs" / "fine", pretrained_checkpoint=first / "step_3"
    )
    assert tiny_run.run_here([*fine, "--training-steps", "4"]).status == 0
    assert tiny_run.run_here([*fine, "--training-steps", "6", "--resume", "latest"]).status == 0
    capsys.readouterr()
    (row,) = shown(capsys, "000", tmp_path / "runs")["All runs"]["rows"]
    content = json.loads((tmp_path / "runs" / "fine" / "run.json").read_text(encoding="utf-8"))
    assert row["Start"] == "fine-tuned" and content["started_from"] == str(first / "step_3")
    assert (row["Run"], row["Context"], row["Batch"], row["Steps"], row["Precision"]) == ("fine", 16, 2, 6, "float32")
    assert row["Tokens trained"] == 6 * 2 * 16 and row["Epochs"] == 6 / (content["samples_an_epoch"] // 2)
    assert content["warmup_steps"] == 0  # a tenth of 4 calls, which a resumed run keeps
    assert row["Seconds an epoch"] > 0 and row["Held-out PPL"] > 1


def test_an_evaluation_that_is_recorded_is_found(tmp_path, capsys):
    runs = tmp_path / "runs"
    tiny_checkpoint.write(runs / "own")
    (runs / "own" / "run.json").write_text('{"flags": {}, "checkpoints": ["checkpoint"]}', encoding="utf-8")
    whole = tmp_path / "all.json"
    words = ("--all", "--seq-length", 16, "--overlapping-eval", 8, "--record", "--json", whole)
    status, out, err = evaluate(runs / "own", *words)
    assert status == 0 and f"kept: 6 of 6 results in {runs / 'own' / 'evaluations'}" in out, err
    assert evaluate(runs / "own", *words)[0] == 0, "again: in the place of the first"
    capsys.readouterr()
    rows = shown(capsys, "002", runs)["All evaluations"]["rows"]
    results = json.loads(whole.read_text(encoding="utf-8"))["results"]
    assert len(rows) == len(results) == 6
    found = {(row["Task"], row["Protocol"]): row for row in rows}
    for one in results:
        row = found[one["task"], one["protocol"]]
        assert row["Result"] == {k: v for k, v in one["values"].items() if k != "token ratio"}
        assert (row["Run"], row["Checkpoint"], row["Context"]) == ("own", "checkpoint", 16)
        assert row["Tokens scored"] == one["counts"]["scored"]
    # The weights are replaced: what was computed of the old ones is none of the run's figures.
    other = tiny_checkpoint.model(tiny_checkpoint.tokenizer().vocab_size, seed=5)
    save_pretrained(other, runs / "own" / "checkpoint")
    assert tables.main(["002", "--runs", str(runs)]) == 0
    captured = capsys.readouterr()
    assert "LAMBADA.last-word" in captured.err and "has other weights now; evaluate it again" in captured.err
    assert "| own | checkpoint |" not in captured.out


def test_a_checkpoint_that_stands_alone_keeps_its_evaluations_itself(tmp_path, capsys):
    tiny_checkpoint.write(tmp_path / "released")
    assert evaluate(tmp_path / "released", "--protocols", "token", "--record")[0] == 0
    capsys.readouterr()
    found = shown(capsys, "001", tmp_path)
    assert [(row["Run"], row["Start"]) for row in found["All runs"]["rows"]] == [("released/checkpoint", "none")]
    assert [row["Protocol"] for row in found["All evaluations"]["rows"]] == ["token"]


def test_the_figures_of_a_loader_that_approximates_stand_beside_its_mark(tmp_path, capsys):
    folder = write_run(tmp_path / "fast", "gpt-127-star", [], CURVES)
    content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    why = "--windows first: padding counts in the loss"
    (folder / "run.json").write_text(json.dumps({**content, "approximate": why}), encoding="utf-8")
    text = shown(capsys, "002", tmp_path, "markdown")
    rows = [line for line in text.splitlines() if "| fast" in line]
    assert len(rows) > 5 and all(line.endswith(f"| APPROXIMATE ({why}) |") for line in rows), rows


def test_csv_has_every_row_with_its_table_and_notes(tmp_path, capsys):
    lines = list(csv.reader(io.StringIO(shown(capsys, "002", tmp_path, "csv"))))
    head = next(line for line in lines if "LAMBADA (Acc), published" in line)
    row = next(line for line in lines if line[:2] == ["GPT-303*", "GPT-303*"])
    assert len(head) == len(row) and dict(zip(head, row))["WikiText (PPL), published"] == "28.57"
    assert "at the 1024 of the other rows it is 29.91" in row[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["000"], "--runs: is needed"),
        (["003", "--runs", "."], "document: '003' must be one of 000, 001, 002, 004"),
        (["000", "--runs", "absent"], "--runs absent: there is no such folder"),
        (["000", "--runs", ".", "--format", "html"], "--format: 'html' must be one of markdown, csv, json"),
        ([], "document: is needed, one of 000"),
    ],
)
def test_flags_that_cannot_be_followed(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        tables.main(words)
    captured = capsys.readouterr()
    assert end.value.code == 2 and said in captured.err and captured.out == "", captured.err


BAD_RESULT = result("PTB", "token", 8, "f", counts={"bpe": "many"}, ppl=1.0)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("run.json", '{"flags": ', "is not JSON"),
        ("run.json", '{"flags": 3}', "flags is not what a run writes"),
        ("run.json", '{"flags": {"batch_size": "auto"}, "checkpoints": []}', "flags.batch_size is not what a run"),
        ("run.json", '{"checkpoints": 3, "numerics": "x"}', "checkpoints, numerics is not what a run writes"),
        ("curves.csv", "step,loss\n1,many\n", "curves.csv:2: "),
        ("evaluations/a.json", "[]", "not an object"),
        ("evaluations/a.json", '{"checkpoint": "step_6", "results": [{"task": "PTB"}]}', "is no evaluation"),
        ("evaluations/a.json", '{"results": []}', "is no evaluation"),
        ("evaluations/a.json", json.dumps({**BAD_RESULT, "checkpoint": "step_6"}), "is no evaluation"),
        ("step_6/config.json", '{"n_layer": "many"}', "n_layer"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, file, content, said, capsys):
    folder = write_run(tmp_path / "run", "gpt2", [result("PTB", "token", 8, "f", ppl=1.0)], CURVES)
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        tables.main(["000", "--runs", str(tmp_path)])
    captured = capsys.readouterr()
    assert end.value.code == 2 and str(folder / file) in captured.err and said in captured.err, captured.err
    assert captured.out == ""


def test_weights_that_cannot_be_read_are_named(tmp_path, capsys):
    folder = write_run(tmp_path / "run", "gpt2", [result("PTB", "token", 8, "f", ppl=1.0)])
    weights = folder / "step_6" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "moved")
    with pytest.raises(SystemExit) as end:
        tables.main(["000", "--runs", str(tmp_path)])
    assert end.value.code == 2 and f"{weights}: cannot be read" in capsys.readouterr().err


def test_what_record_cannot_do_is_said_before_anything_is_computed(tmp_path, capsys):
    tiny_checkpoint.write(tmp_path)
    status, out, err = evaluate(tmp_path, "--record", checkpoint="absent")
    assert status == 2 and "--pretrained-checkpoint" in err
    from tasks import compare

    one = str(tmp_path / "checkpoint")
    with pytest.raises(SystemExit) as end:
        compare.main([one, one, "--record"])
    assert (
        end.value.code == 2 and "--record: is of the programs that evaluate one checkpoint" in capsys.readouterr().err
    )
