"""The application is a PopTorch program: it uses names and signatures of the vendor's API only, in Python 3.8.

tests/poptorch_api.json has the names of PopTorch 3.4, and those of popart and popdist that the program may count on.
"""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = json.loads(Path(__file__).with_name("poptorch_api.json").read_text(encoding="utf-8"))
NAMES, POPART_KEYS = TABLE["names"], set(TABLE["popart_keys"])
VENDOR = ("poptorch", "popart", "popdist")

# Every package is a room of the application. `make demo` leaves a script in a folder that is none.
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
FILES = sorted([*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in ROOT.glob(f"{folder}/**/*.py"))])

# What a name in the application stands for wherever it occurs; test_objects_have_known_names holds it to that.
OBJECTS = {
    "options": "poptorch.Options",
    "location": "poptorch.TensorLocationSettings",
    "executor": "poptorch.PoplarExecutor",
    "_executor": "poptorch.PoplarExecutor",
    "loader": "poptorch.DataLoader",
    "_context": "poptorch.Attribute",
}
RETURNS = {
    "poptorch.trainingModel": "poptorch.PoplarExecutor",
    "poptorch.inferenceModel": "poptorch.PoplarExecutor",
    "popdist.poptorch.Options": "poptorch.Options",
}
CONSTRUCTORS = {name for name in (*OBJECTS.values(), *RETURNS) if name != "poptorch.PoplarExecutor"}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 8))


def dotted(node):
    """`a.b.c` of a chain of attributes, None for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        start = dotted(node.value)
        return f"{start}.{node.attr}" if start else None
    return None


def vendor_name(node):
    """The vendor's name that a chain stands for, None if it is no chain of the vendor's."""
    name = dotted(node)
    if name is None:
        return None
    parts = name.split(".")
    if parts[0] in VENDOR:
        return name
    for index in range(len(parts) - 1, -1, -1):  # run.executor.compile -> poptorch.PoplarExecutor.compile
        if parts[index] in OBJECTS:
            return ".".join([OBJECTS[parts[index]], *parts[index + 1 :]])
    return None


def signature_problem(signature, call, bound):
    """Why the arguments of `call` do not fit `signature`, None if they do. `bound`: a leading self is not in it."""
    arguments = ast.parse(f"def f{signature}: pass").body[0].args
    positional = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    if positional[:1] == ["self"] and bound:
        positional = positional[1:]
    given = {keyword.arg for keyword in call.keywords}
    if any(isinstance(argument, ast.Starred) for argument in call.args) or None in given:
        given.discard(None)  # what is unpacked cannot be seen here
        required = []
    else:
        required = positional[len(call.args) : len(positional) - len(arguments.defaults)]
        required += [a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults) if d is None]
    if len(call.args) > len(positional) and not arguments.vararg:
        return f"{len(call.args)} positional arguments for {signature}"
    twice = given & set(positional[: len(call.args)])
    unknown = given - set(positional) - {argument.arg for argument in arguments.kwonlyargs}
    if twice or (unknown and not arguments.kwarg):
        return f"{sorted(twice | unknown)} do not fit {signature}"
    missing = [name for name in required if name not in given]
    return f"{missing} are missing for {signature}" if missing else None


def api_problems(tree):
    """Every use of the vendor's API in a module that the table does not allow."""
    problems = []
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and id(node) not in inner:
            name = vendor_name(node)
            if name and name not in NAMES and name not in VENDOR:
                problems.append(f"line {node.lineno}: {name} is not in the API")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
            name = vendor_name(node.value.func) or ""
            if name in CONSTRUCTORS or name.startswith("poptorch.Options."):
                problems.append(
                    f"line {node.lineno}: give what {name}() returns a name of OBJECTS, or this goes unseen"
                )
        if not isinstance(node, ast.Call):
            continue
        name = vendor_name(node.func)
        if name in OBJECTS.values() and dotted(node.func).split(".")[0] not in VENDOR:
            name += ".__call__"
        if NAMES.get(name):
            problem = signature_problem(NAMES[name], node, bound="." in name)
            if problem:
                problems.append(f"line {node.lineno}: {name}: {problem}")
        if name == "poptorch.Options._Popart.set" and isinstance(node.args[0], ast.Constant):
            if node.args[0].value not in POPART_KEYS:
                problems.append(f"line {node.lineno}: {node.args[0].value} is no PopART option")
    return problems


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def identify(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_only_the_public_api_with_its_signatures(path):
    assert api_problems(parse(path)) == []


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_the_vendors_modules_are_imported_whole(path):
    """`import poptorch`, so that every use shows where it comes from; never a module inside of it."""
    allowed = {"poptorch", "popart", "popdist", "popdist.poptorch"}
    wrong = [name for name in imported(parse(path)) if name.split(".")[0] in VENDOR and name not in allowed]
    assert wrong == []
    portable = {path.name for path in (ROOT / "portable").iterdir() if path.is_dir()} - set(VENDOR)
    assert [name for name in imported(parse(path)) if name.split(".")[0] in portable | {"portable"}] == []


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_objects_have_known_names(path):
    """What a vendor's constructor returns is kept under a name of OBJECTS, so that no use of it goes unseen."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = dotted(node.value.func) or ""
            made = RETURNS.get(made, made)
            if made in OBJECTS.values():
                for target in node.targets:
                    assert OBJECTS.get(dotted(target).split(".")[-1]) == made, f"line {node.lineno}"
        if isinstance(node, ast.arg) and node.annotation is not None:
            kind = dotted(node.annotation)
            assert OBJECTS.get(node.arg, kind) == kind or node.arg not in OBJECTS, f"line {node.lineno}"
            assert kind not in OBJECTS.values() or OBJECTS.get(node.arg) == kind, f"line {node.lineno}"


def test_the_options_of_the_reference_are_popart_options():
    from model import ipu_options

    assert set(ipu_options._POPART_OPTIONS) <= POPART_KEYS


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_python_3_8(path):
    """Syntax, and what 3.8 has the syntax for but not the meaning: list[int] and X | Y where they are evaluated."""
    tree = parse(path)
    future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    annotations = set()
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                assert future, f"line {node.lineno}: add `from __future__ import annotations`"
                annotations |= {id(inner) for inner in ast.walk(getattr(node, field))}
    builtins = {"list", "dict", "tuple", "set", "frozenset", "type"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and id(node) not in annotations and isinstance(node.value, ast.Name):
            assert node.value.id not in builtins, f"line {node.lineno}: {node.value.id}[...] is evaluated"
        if isinstance(node, ast.Call) and dotted(node.func) == "zip":
            assert not node.keywords, f"line {node.lineno}: zip(strict=…) is of Python 3.10"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("removeprefix", "removesuffix"), f"line {node.lineno}: of Python 3.9"


@pytest.mark.parametrize(
    "line, problem",
    [
        ("poptorch.Options().fancy", "give what poptorch.Options() returns a name"),
        ("options.deviceIterations(1).fancy", "give what poptorch.Options.deviceIterations() returns a name"),
        ("poptorch.fancy(1)", "poptorch.fancy is not in the API"),
        ("poptorch.OutputMode.Some", "poptorch.OutputMode.Some is not in the API"),
        ("options.Training.fancy(1)", "poptorch.Options.Training.fancy is not in the API"),
        ("options.deviceIterations()", "['device_iterations'] are missing"),
        ("options.deviceIterations(1, 2)", "2 positional arguments"),
        ("options.deviceIterations(device_iterations=1)", None),
        ("options._Popart.set('fancy', 1)", "fancy is no PopART option"),
        ("self.executor.program", "poptorch.PoplarExecutor.program is not in the API"),
        ("run.executor(input_ids=1)", None),
        ("poptorch.identity_loss(x)", "['reduction'] are missing"),
        ("poptorch.identity_loss(x, reduce='mean')", "do not fit"),
        ("poptorch.BeginBlock(x, layer_to_call=x)", "do not fit"),
        ("poptorch.Attribute(__outline={})", None),
        ("popart.SubgraphCopyingStrategy.JustInTime", None),
        ("popart.Nothing", "popart.Nothing is not in the API"),
        ("popdist.poptorch.Options(ipus_per_replica=4)", None),
    ],
)
def test_the_check_itself(line, problem):
    found = api_problems(ast.parse(line))
    assert found == [] if problem is None else problem in " ".join(found)


def test_every_file_is_looked_at():
    found = {identify(path) for path in FILES}
    assert {
        "train_gpt2.py",
        "arguments.py",
        "model/ipu_options.py",
        "data/loading/datasets.py",
        "custom_ops/build.py",
    } <= found
    used = {name for path in FILES for name in map(vendor_name, ast.walk(parse(path))) if name in NAMES}
    assert {"poptorch.trainingModel", "poptorch.PoplarExecutor.setOptimizer", "poptorch.serializedMatMul"} <= used
    assert {"poptorch.Options.Training.gradientAccumulation", "poptorch.DataLoader", "poptorch.BeginBlock"} <= used
