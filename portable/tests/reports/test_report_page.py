"""report.html and report.json: what is in them, that it adds up, and that no name does harm."""

from __future__ import annotations

import html.parser
import json
import re

import pytest
import torch
from test_auto_report import Model, ask, folder, nobody_else, options, train  # noqa: F401 - fixtures

import poptorch
from poptorch.reports import drawing, estimates, memory, page


class Reader(html.parser.HTMLParser):
    """Tags in order, texts, what stands in scripts; AssertionError where tags do not close as they opened."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.scripts, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


def read(where) -> tuple[dict, Reader]:
    """The numbers of the file, which are those of the page, and the page."""
    record = json.loads((where / "report.json").read_text())
    found = Reader((where / "report.html").read_text())
    assert [json.loads(text) for text in found.scripts] == [record]
    return record, found


def test_the_page_needs_nothing_else(folder):  # noqa: F811
    train(3)
    record, found = read(folder / "training")
    assert "http:" not in (text := (folder / "training" / "report.html").read_text()) and "https:" not in text
    assert not [each for each in found.attributes if each[1] in ("src", "srcset", "xlink:href", "action")]
    assert all(value.startswith("#") for _, name, value in found.attributes if name == "href")
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text) and "@import" not in text
    assert ("script", "type", "application/json") in found.attributes and found.tags.count("script") == 1
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]


def test_each_picture_has_a_name_and_a_table_and_the_keyboard_reaches_both(folder):  # noqa: F811
    train(2)
    _, found = read(folder / "training")
    pictures = [value for tag, name, value in found.attributes if tag == "svg" and name == "aria-label"]
    assert len(pictures) == found.attributes.count(("svg", "role", "img")) == 2 and found.tags.count("table") >= 5
    assert found.tags.count("svg") == 3 and ("svg", "aria-hidden", "true") in found.attributes  # a pattern
    regions = [value for tag, name, value in found.attributes if name == "tabindex"]
    assert len(regions) == found.tags.count("table") + len(pictures)
    names = [value for _, name, value in found.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert found.tags.count("caption") == found.tags.count("table") and found.tags.count("h1") == 1


def test_phases_and_memory_add_up(folder):  # noqa: F811
    train(5)
    record, found = read(folder / "training")
    (rank,) = record["ranks"]
    assert sum(row["seconds"] for row in rank["phases"]) == pytest.approx(rank["wall_seconds"], abs=0.005)
    for row in rank["memory"]["stages"]:
        assert row["total"] == sum(row[kind] for kind in memory.KINDS)
    total = sum(row["total"] for row in rank["memory"]["stages"])
    assert f"{drawing.of_bytes(total)}" in found.text
    shares = [row["in_all"] for row in rank["operators"]["rows"]]
    assert shares[-1] >= 0.9 and all(share < 0.9 for share in shares[:-1])
    assert f"{drawing.of_time(rank['wall_seconds'])} in all" in found.text
    assert rank["calls"] == 1 and "Measured over 1 calls after the first one" in found.text  # the program goes on


def test_memory_is_what_the_tensors_take(folder):  # noqa: F811
    opts = options(4)
    model = Model()
    executor = poptorch.trainingModel(model, opts, torch.optim.Adam(model.parameters()))
    for _ in range(2):
        executor(torch.randn(4 * 3, 4), torch.zeros(4 * 3))
    record, _ = read(folder / "training")
    first, second = record["ranks"][0]["memory"]["stages"]
    weights = [4 * (4 * 8 + 8), 4 * (8 + 1)]
    for row, size in zip((first, second), weights, strict=True):
        assert row["weights"] == row["gradients"] == size and row["optimizer"] == 2 * size
        assert row["buffers"] == row["recomputed"] == 0
    # Of 4 micro-batches as one, 3 samples each: what relu made, (4, 3, 8), and the differences, (4, 3).
    assert record["ranks"][0]["memory"]["together"] == 4
    assert (first["activations"], second["activations"]) == (4 * 4 * 3 * 8, 4 * 4 * 3)


class Again(torch.nn.Module):
    """The block between two checkpoints is computed twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(4))
        self.dropout = torch.nn.Dropout(0.25)

    def block(self, x):
        return self.dropout(torch.tanh(self.layers[1](x).sin())).exp()

    def forward(self, x, y):
        x = poptorch.recomputationCheckpoint(self.layers[0](x))
        x = poptorch.recomputationCheckpoint(self.block(x))
        return poptorch.identity_loss((self.layers[3](self.layers[2](x)) - y).square(), "mean")


def run_again() -> tuple[list[float], torch.Tensor]:
    model = Again()
    executor = poptorch.trainingModel(model, poptorch.Options().randomSeed(1), torch.optim.SGD(model.parameters(), 0.1))
    generator = torch.Generator().manual_seed(2)
    losses = [float(executor(*torch.randn(2, 8, 16, generator=generator))) for _ in range(3)]
    return losses, model.layers[1].weight.detach().clone()


def test_what_is_computed_again_is_measured_and_changes_nothing(folder, monkeypatch):  # noqa: F811
    losses, weight = run_again()
    record, _ = read(folder / "training")
    (row,) = record["ranks"][0]["memory"]["stages"]
    tensor = 8 * 16 * 4
    # the inputs of the two checkpointed parts that are no inputs of the program, and the last linear layers'
    assert 3 * tensor <= row["activations"] <= 5 * tensor
    # sin's input, tanh's result, dropout's mask (bytes or floats), exp's result
    assert 3 * tensor <= row["recomputed"] <= 6 * tensor
    monkeypatch.delenv("POPLAR_ENGINE_OPTIONS")
    plain, plain_weight = run_again()
    assert losses == plain and torch.equal(weight, plain_weight)


def test_a_sum_of_what_is_not_held_at_once_is_said_to_be_one(folder):  # noqa: F811
    train(2)
    record, _ = read(folder / "training")
    for recomputed, said in (((0, 0), False), ((7, 0), False), ((7, 5), True)):
        for row, size in zip(record["ranks"][0]["memory"]["stages"], recomputed, strict=True):
            row["recomputed"] = size
        assert ("not all of its sum at once" in Reader(page.html_of(record)).text) == said


def test_of_an_inference_program(folder):  # noqa: F811
    executor = poptorch.inferenceModel(Model(), options(iterations=2))
    for _ in range(3):
        executor(torch.randn(2 * 5, 4))
    record, found = read(folder / "inference")
    assert record["kind"] == "inference" and "Inference on cpu" in found.text
    kinds = {event["kind"] for event in record["timeline"]["events"]}
    assert kinds == {"forward"} and [row["name"] for row in record["timeline"]["rows"]] == ["IPU 0", "IPU 1", "process"]
    first, second = record["ranks"][0]["memory"]["stages"]
    assert first["weights"] == 4 * (4 * 8 + 8) and first["gradients"] == first["optimizer"] == 0
    assert second["activations"] == 4 * 2 * 5  # the outputs of the two micro-batches as one
    assert record["comparison"] == []  # what the shapes say of activations is about training


class WithTable(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.arange(4096.0).reshape(8, 512)  # no buffer

    def forward(self, x):
        with poptorch.Block(ipu_id=0):
            x = x + 1
        with poptorch.Block(ipu_id=1):
            return x @ self.table.to("ipu")


def test_what_a_model_did_not_register_takes_memory_too(folder):  # noqa: F811
    poptorch.inferenceModel(WithTable(), options())(torch.zeros(2, 8))
    record, _ = read(folder / "inference")
    assert [row["buffers"] for row in record["ranks"][0]["memory"]["stages"]] == [0, 4096 * 4]


class Doubling(torch.nn.Module):
    def forward(self, x):
        for ipu in range(8):
            with poptorch.Block(ipu_id=ipu):
                x = x * 2.0
        return x


def test_what_a_stage_hands_on_counts_where_freed_memory_is_used_again(folder):  # noqa: F811
    size = 512 * 1024 * 4  # large enough that the allocator gives back and takes the same addresses
    poptorch.inferenceModel(Doubling(), options())(torch.zeros(512, 1024))
    record, _ = read(folder / "inference")
    assert [row["activations"] for row in record["ranks"][0]["memory"]["stages"]] == [size] * 8


def test_waiting_for_data_and_the_backward_pass_of_each_stage_are_drawn(folder):  # noqa: F811
    opts = options(accumulation=4)
    executor = poptorch.trainingModel(Model(), opts)
    data = torch.utils.data.TensorDataset(torch.randn(12, 4), torch.zeros(12))
    for x, y in poptorch.DataLoader(opts, data):
        executor(x, y)
    record, _ = read(folder / "training")
    events = record["timeline"]["events"]
    assert [(e["kind"], e.get("stages")) for e in events] == [
        ("data", None),
        ("forward", [0]),
        ("forward", [1]),
        ("backward", [1]),
        ("backward", [0]),
        ("update", None),
    ]
    assert all(a["end"] <= b["start"] + 1e-9 for a, b in zip(events, events[1:], strict=False))
    assert events[0]["start"] == 0.0 and record["timeline"]["of"] == "second call"


def test_what_another_executor_waited_for_is_not_drawn(folder):  # noqa: F811
    checked, opts = poptorch.inferenceModel(Model(), options()), options(accumulation=4)
    trained = poptorch.trainingModel(Model(), opts)
    checked(torch.randn(1, 4))
    for x, y in poptorch.DataLoader(opts, torch.utils.data.TensorDataset(torch.randn(12, 4), torch.zeros(12))):
        trained(x, y)
    checked(torch.randn(1, 4))
    record, _ = read(folder / "inference")
    assert {event["kind"] for event in record["timeline"]["events"]} == {"forward"}


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def test_names_do_no_harm(folder, monkeypatch):  # noqa: F811
    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x):
            with poptorch.Block(EVIL, ipu_id=0):
                return poptorch.identity_loss(self.layer(x), "sum")

    monkeypatch.setattr("sys.argv", ["train.py", EVIL, "caf\udce9"])  # and a path in Latin-1
    folder.mkdir()
    estimate = {"assumptions": [EVIL], "figures": [{"what": EVIL, "unit": EVIL, "note": EVIL}]}
    estimate["stages"] = [{"stage": 0, "contents": EVIL, "memory": {EVIL: 1.0}}]
    events = [
        {"row": 0, "kind": EVIL, "start": 0, "end": 1, "stages": [0]},
        {"row": 0, "kind": "update", "start": 1, "end": 2},
    ]
    estimate["timeline"] = {"of": EVIL, "unit": EVIL, "rows": [{"name": EVIL}], "events": events}
    (folder / estimates.FILE).write_text(json.dumps(estimate))
    executor = poptorch.trainingModel(Named())
    for _ in range(2):
        executor(torch.ones(1, 2))
    record, found = read(folder / "training")
    assert found.tags.count("script") == 1 and "img" not in found.tags and EVIL in found.text
    assert record["stages"][0]["blocks"] == [EVIL] and EVIL in record["estimate"]["assumptions"]
    assert not [name for _, name, _ in found.attributes if name.startswith("on") or name == "src"]


def test_an_estimate_of_the_program_is_shown_beside(folder):  # noqa: F811
    folder.mkdir()
    expected = {
        "assumptions": ["equal parts"],
        "stages": [{"stage": 0, "work": 0.25, "memory": {"weights": 160, "working": 7}}],
        "bubble": 0.2,
        "figures": [{"what": "another machine", "unit": "samples/s", "published": 261}],
    }
    (folder / "estimate.json").write_text(json.dumps(expected))
    train(2)
    record, found = read(folder / "training")
    rows = {(row["what"], row["by"]): row for row in record["comparison"]}
    assert rows["stage 0: weights", "program"]["measured"] == 160
    assert rows["stage 0: working", "program"]["measured"] is None
    work = rows["stage 0: share of the work", "program"]
    seconds = {row["name"]: row["seconds"] for row in record["ranks"][0]["phases"] if "stage" in row}
    mine = sum(value for name, value in seconds.items() if name.startswith("stage 0"))
    assert work["estimated"] == 0.25 and work["measured"] == pytest.approx(mine / sum(seconds.values()))
    assert rows["pipeline not full", "program"]["estimated"] == 0.2
    assert "equal parts" in found.text and "another machine" in found.text and "261" in found.text


@pytest.mark.parametrize("value, shown", [(101.84, "101.8"), (999.96, "1000"), (40469.1, "40,469"), (0.25, "0.25")])
def test_figures_are_plain_numbers(value, shown):
    assert page._number({"published": value}, "published") == shown


def test_an_estimate_of_another_command_is_left_out(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sys.argv", ["train.py", "--size", "2 3"])
    folder.mkdir()
    for program, shown in (("train.py --size '2 3'", True), ("train.py --size 4", False)):
        (folder / "estimate.json").write_text(json.dumps({"program": program, "assumptions": ["mine"]}))
        executor = train(2)
        record, found = read(executor._probe._files.folder)
        assert ("mine" in found.text) == shown and (record["estimate"] is not None) == shown


def test_what_is_expected_of_training_is_not_shown_of_inference(folder):  # noqa: F811
    folder.mkdir()
    (folder / "estimate.json").write_text(json.dumps({"kind": "training", "assumptions": ["mine"], "bubble": 0.2}))
    train(2)
    poptorch.inferenceModel(Model(), options())(torch.zeros(1, 4))
    for kind, shown in (("training", True), ("inference", False)):
        record, found = read(folder / kind)
        assert ("mine" in found.text) == (record["comparison"] != []) == shown


@pytest.mark.parametrize(
    "text, told",
    [
        ("{", "Expecting"),
        ("[1]", "it must be an object"),
        ('{"stages": [{"stage": "0"}]}', "a whole number is expected, not '0'"),
        ('{"bubble": NaN}', "a number is expected, not nan"),
        ('{"bubble": 1' + "0" * 400 + "}", "a number is expected, not 1000"),
        ('{"stages": [{"stage": 0, "memory": {"weights": -1}}]}', "0 or more is expected, not -1"),
        ('{"timeline": {"rows": [], "events": [{"row": 0, "kind": "forward", "start": 0, "end": 1}]}}', "in no row"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_what_is_no_estimate_is_told_once_and_left_out(text, told, folder, capsys):  # noqa: F811
    folder.mkdir()
    (folder / "estimate.json").write_text(text)
    train(2)
    record, _ = read(folder / "training")
    assert record["estimate"] is None
    err = capsys.readouterr().err
    assert err.count("it is no estimate of a run") == 1 and told in err


def test_a_program_compiled_offline_has_a_page_of_its_estimate(folder, capsys):  # noqa: F811
    folder.mkdir()
    events = [{"row": 0, "kind": "forward", "start": 0, "end": 1, "stages": [0], "micro_batch": 0}]
    timeline = {"of": "the beginning", "unit": "passes", "rows": [{"name": "IPU 0"}], "events": events}
    stages = [{"stage": 0, "memory": {"weights": 3 << 20}}]
    (folder / "estimate.json").write_text(json.dumps({"timeline": timeline, "stages": stages}))
    executor = poptorch.trainingModel(Model(), options(4).useOfflineIpuTarget())
    executor.compile(torch.zeros(4, 4), torch.zeros(4))
    assert sorted(path.name for path in (folder / "training").iterdir()) == ["report.html", "report.json"]
    record, found = read(folder / "training")
    assert record["ranks"] == record["timeline"]["events"] == []
    assert "Compiled, not run" in found.text and "the beginning" in found.text and "3 MiB" in found.text
    assert f"poptorch: report in {folder / 'training'}" in capsys.readouterr().err


def test_a_picture_of_very_much_says_what_is_left_out():
    events = [
        {"kind": "forward", "rank": 0, "start": n, "end": n + 1, "iteration": 0, "stages": [0], "micro_batch": n}
        for n in range(5000)
    ]
    from poptorch.reports import timeline

    found = timeline.picture(events, [0], several=False)
    assert len(found["events"]) == timeline.MOST_DRAWN and found["left_out"] == 5000 - timeline.MOST_DRAWN
    many = [{**event, "rank": number % 100} for number, event in enumerate(events)]
    rows = timeline.picture(many, [0], several=True)["rows"]
    assert len(rows) == timeline.MOST_ROWS
    drawing.timeline(found["rows"], found["events"], "s", "x")


@pytest.mark.parametrize("value, shown", [(0, "0"), (1.5, "1.5 s"), (0.0042, "4.2 ms"), (3e-6, "3 µs"), (-0.0, "0")])
def test_times(value, shown):
    assert drawing.of_time(value) == shown


def test_ticks_are_round_and_end_in_time():
    for end in (1e-6, 0.37, 1.0, 2.567, 1000.0):
        found = drawing.ticks(end, 8)
        assert found[0] == 0 and found[-1] <= end * 1.001 and 2 <= len(found) <= 10


def test_the_json_cannot_end_its_element():
    assert not set("<>&") & set(page.embedded({"name": EVIL}))
    assert json.loads(page.embedded({"name": EVIL})) == {"name": EVIL}
