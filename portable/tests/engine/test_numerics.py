"""What the machine chooses for a program, and how a run keeps it."""

from __future__ import annotations

import io

import pytest
import torch
from programs import Regression, make_options, regression_data

import poptorch
from poptorch.engine.numerics import RECORD, Numerics
from poptorch.execution import compilation

X, Y = regression_data(2)


@pytest.fixture
def lines(monkeypatch):
    """What is said, by whom it may."""
    said = []
    monkeypatch.setattr(poptorch.notices, "_said", set())
    monkeypatch.setattr(poptorch.notices.logger, "log", lambda level, message: said.append(message))
    return said


def test_the_machine_chooses_where_there_is_nothing_to_continue(lines):
    numerics = Numerics()
    assert numerics.settle("products", lambda: "wide") == "wide"
    assert numerics.settle("products", lambda: "narrow") == "wide"  # once a program
    numerics.report()
    assert numerics.record() == {RECORD: {"products": "wide"}}
    assert lines == []


def test_nothing_chosen_leaves_nothing_in_the_state():
    assert Numerics().record() == {}


@pytest.mark.parametrize(
    ("options", "expected", "told"),
    [
        ({}, "narrow", "narrow, with which the run began. This machine would choose wide"),
        ({"asked": "VARIABLE=wide"}, "wide", "wide, as VARIABLE=wide asks. The run began with narrow"),
        ({"possible": lambda value: False}, "wide", "wide. The run began with narrow, which this device lacks"),
    ],
)
def test_a_run_keeps_its_choice(options, expected, told, lines):
    numerics = Numerics({RECORD: {"products": "narrow"}})
    assert numerics.settle("products", lambda: "wide", **options) == expected
    numerics.report()
    assert len(lines) == 1 and told in lines[0]


def test_the_same_choice_is_no_line(lines):
    numerics = Numerics({RECORD: {"products": "wide"}})
    assert numerics.settle("products", lambda: "wide", asked="VARIABLE=wide") == "wide"
    numerics.report()
    assert lines == []


def test_an_older_state_is_continued_with_one_line(lines):
    numerics = Numerics({"ipu_state": {}, "ipu_param": {}})
    numerics.settle("products", lambda: "wide")
    numerics.settle("rows", lambda: 4)
    numerics.report()
    assert len(lines) == 1 and "no record of products: wide, rows: 4" in lines[0]


@pytest.fixture
def choose(monkeypatch):
    """`choose(value)`: executors compiled from then on find that this machine would choose it for "products"."""
    compile_model = compilation.compile_model

    def choose(value):
        def compiled(*arguments):
            arguments[-1].settle("products", lambda: value)
            return compile_model(*arguments)

        monkeypatch.setattr(compilation, "compile_model", compiled)

    return choose


def adam(model):
    return poptorch.optim.AdamW(model.parameters(), lr=1e-3)


def trained(optimizer, model):
    executor = poptorch.trainingModel(model, make_options(), optimizer)
    executor(X, Y)
    return executor


def test_the_choice_travels_with_the_optimizers_state(choose, lines):
    model = Regression()
    choose("wide")
    optimizer = adam(model)
    executor = trained(optimizer, model)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    executor.destroy()
    assert optimizer.state_dict()[RECORD] == {"products": "wide"}

    choose("narrow")
    resumed = adam(model)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    trained(resumed, model)
    assert resumed.state_dict()[RECORD] == {"products": "wide"}
    assert sum("This machine would choose narrow" in line for line in lines) == 1


def test_a_state_loaded_into_a_compiled_program_does_not_change_it(choose, lines):
    model = Regression()
    choose("wide")
    optimizer = adam(model)
    trained(optimizer, model)
    state = optimizer.state_dict()
    choose("narrow")
    other_model = Regression()
    other = adam(other_model)
    trained(other, other_model)
    other.load_state_dict(state)
    assert other.state_dict()[RECORD] == {"products": "narrow"}
    assert sum("was reached with wide, this program was compiled with narrow" in line for line in lines) == 1


def test_it_is_in_an_executors_file(choose, tmp_path):
    model = Regression()
    choose("wide")
    executor = poptorch.trainingModel(model, make_options(), torch.optim.SGD(model.parameters(), lr=0.1))
    executor(X, Y)
    executor.save(str(tmp_path / "saved"))
    choose("narrow")
    loaded = poptorch.load(str(tmp_path / "saved"))
    assert loaded._numerics.settled("products") == "wide"


def test_what_the_first_process_has_and_this_one_lacks_is_an_error(monkeypatch):
    numerics = Numerics()
    only_wide = {"possible": lambda value: value == "wide"}
    assert numerics.settle("products", lambda: "wide", **only_wide) == "wide"
    monkeypatch.setattr("poptorch.engine.numerics.group.from_first", lambda value: {"products": "narrow"})
    assert numerics.share()
    with pytest.raises(poptorch.Error, match="products: the first process has narrow, which this device lacks"):
        numerics.settle("products", lambda: "wide", **only_wide)
