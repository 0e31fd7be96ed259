"""The front page and docs/: short, complete, and nothing in them that is not there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from model.config import MODELS, VARIANT_FIELDS, GPT2Config, real_parameter_count

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "portable" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CHANGELOG.md"]
# Names that the programs make: not files of the repository.
MADE = re.compile(
    r".*\.(so|whl|unfinished)|(demo|mine|benchmark_logs|wandb)/.*|(training|inference)/(summary\.txt|trace\.json)"
)
SUFFIXES = r"(?:py|sh|md|cpp|h|yml|toml|txt|json)"


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def headings(text: str) -> list[tuple[int, str]]:
    """(level, title) of each."""
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.*)$", prose(text), flags=re.MULTILINE)]


def slug(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def links(text: str) -> list[str]:
    """Targets of links and pictures."""
    return re.findall(r"\]\(([^()\s]*)\)", prose(text))


def broken_links(path: Path, text: str) -> list[str]:
    found = []
    for link in links(text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / target).resolve() if target else path
        page = text if file == path else file.read_text(encoding="utf-8") if file.is_file() and anchor else ""
        if target and not file.exists():
            found.append(f"{named(path)}: {link}: there is no {target}")
        elif anchor and anchor not in {slug(title) for _, title in headings(page)}:
            found.append(f"{named(path)}: {link}: no heading has this anchor")
    return found


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def missing_paths(path: Path, text: str) -> list[str]:
    """Paths of the repository in backticks, in commands and as modules of `-m`, that do not exist.

    Paths are those from the root; of the pages of portable/, also from there and from poptorch/. What begins with a
    slash is none of them: an endpoint of the server.
    """
    rooms = {folder.name for folder in ROOT.iterdir() if folder.is_dir()}
    words = [span for span in spans(text) if not re.search(r"\s", span)]
    words += [word for command in [*spans(text), *code_blocks(text)] if " " in command for word in command.split()]
    bases = (ROOT, ROOT / "portable", ROOT / "portable" / "poptorch")
    found = []
    for word in words:
        word = word[2:] if word.startswith("./") else word
        in_room = "/" in word and word.split("/")[0] in rooms
        is_file = re.fullmatch(rf"[\w./-]+\.{SUFFIXES}", word) and ("/" in word or word.startswith("requirements"))
        if re.fullmatch(r"[\w.-][\w./-]*", word) and (in_room or is_file) and not MADE.fullmatch(word):
            if not any((base / word).exists() for base in bases):
                found.append(f"{named(path)}: there is no {word}")
    for module in re.findall(r"-m ([\w.]+)(?!\S)", "\n".join([*spans(text), *code_blocks(text)])):
        parts = module.split(".")
        files = (ROOT.joinpath(*parts).with_suffix(".py"), ROOT.joinpath(*parts, "__main__.py"))
        if parts[0] in rooms and not any(file.is_file() for file in files):
            found.append(f"{named(path)}: there is no module {module}")
    return found


def defined(path: Path) -> set[str]:
    """Functions, classes, methods as Class.method, and what the module assigns."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def misplaced_names(text: str) -> list[str]:
    """Of "`name` (`file.py`)" those whose file does not define the name."""
    pairs = re.findall(r"`([\w.]+)`\s+\(`([\w/]+\.py)`\)", text)
    return [f"{file} defines no {name}" for name, file in pairs if name not in defined(ROOT / file)]


def contents_problem(text: str) -> str:
    """What is wrong with the contents list of a page of more than 100 lines; empty: nothing."""
    if len(text.splitlines()) <= 100 and "\n## Contents\n" not in text:
        return ""
    if "\n## Contents\n" not in text:
        return "more than 100 lines and no list under ## Contents"
    listed = re.findall(
        r"^\* \[(.*)\]\(#(.*)\)$", text.split("\n## Contents\n")[1].split("\n## ")[0], flags=re.MULTILINE
    )
    titles = [title for level, title in headings(text) if level == 2 and title != "Contents"]
    expected = [(title, slug(title)) for title in titles]
    return "" if listed == expected else f"its contents are {listed}, its headings {expected}"


def make_targets() -> set[str]:
    """Those that `make help` lists."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("path", LINKED, ids=named)
def test_links_and_anchors_resolve(path):
    text = path.read_text(encoding="utf-8")
    assert broken_links(path, text) == []


@pytest.mark.parametrize("path", [page for page in PAGES if page != ROOT / "README.md"], ids=named)
def test_long_pages_have_contents_that_match(path):
    assert contents_problem(path.read_text(encoding="utf-8")) == ""


@pytest.mark.parametrize("path", LINKED, ids=named)
def test_paths_and_modules_that_are_named_exist(path):
    assert missing_paths(path, path.read_text(encoding="utf-8")) == []


def test_functions_on_the_map_are_where_it_says():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert len(re.findall(r"`[\w.]+`\s+\(`[\w/]+\.py`\)", text)) > 10
    assert misplaced_names(text) == []


def test_every_room_is_on_the_map():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    outside = {"portable", "tests", "benchmarks"}
    inits = [path.parent.relative_to(ROOT) for path in ROOT.glob("*/**/__init__.py") if path.parts]
    rooms = [path.as_posix() for path in inits if path.parts[0] not in outside and path.parts[0][0] != "."]
    runtime = ROOT / "portable" / "poptorch"
    rooms += [path.parent.relative_to(runtime).as_posix() for path in runtime.glob("*/**/__init__.py")]
    assert len(rooms) > 20 and [room for room in rooms if f"`{room}/`" not in text] == []


def test_every_page_is_reached_from_the_front_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    reached = {link.partition("#")[0] for link in links(text)}
    assert [named(page) for page in PAGES if page.parent.name == "docs" and named(page) not in reached] == []


def test_every_make_target_is_in_the_table_and_no_other():
    rows = re.findall(r"^\| (`make.*?) \|", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(re.findall(r"`make ([a-z-]+)`", "\n".join(rows))) == make_targets()
    for page in PAGES:  # and none that is named elsewhere is an invention
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"`make ([a-z][a-z-]+)`", text)) <= make_targets(), page
        in_blocks = re.findall(r"^make ([a-z-]+)$", "\n".join(code_blocks(text)), flags=re.MULTILINE)
        assert set(in_blocks) <= make_targets(), page


@pytest.mark.parametrize("name", ["small", "medium", "large_512", "large_1024"])
def test_the_spelled_out_commands_are_those_of_the_scripts(name):
    """docs/training.md shows a script and the command in it; the quick start stands on two pages."""
    blocks = code_blocks((ROOT / "docs" / "training.md").read_text(encoding="utf-8"))
    shown = blocks[blocks.index(f"bash run/pretraining_{name}.sh\n") + 1]
    script = (ROOT / "run" / f"pretraining_{name}.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    flags = re.search(r'"\$python" train_gpt2\.py (.*) "\$@"', script)
    assert shlex.split(shown.replace("\\\n", " "))[2:] == shlex.split(flags.group(1))


def test_the_quick_start_is_the_same_on_both_pages():
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/training.md")]
    section = "## Quick start with generated mock dataset\n"
    first, second = (code_blocks(page.split(section)[1])[0] for page in pages)
    assert first == second and first.startswith("python train_gpt2.py")


def test_what_is_wrong_is_found():
    page = ROOT / "docs" / "page.md"
    assert broken_links(page, "# A\n[x](#a) [y](../README.md) [z](https://example.org/q)") == []
    assert broken_links(page, "# A\n[x](#b)") == ["docs/page.md: #b: no heading has this anchor"]
    assert broken_links(page, "[x](gone.md)") == ["docs/page.md: gone.md: there is no gone.md"]
    assert broken_links(page, "![`x`](gone.png)") == ["docs/page.md: gone.png: there is no gone.png"]
    assert len(broken_links(page, "[x](../README.md#gone)")) == 1
    assert broken_links(page, "```\n[x](gone.md)\n```") == []
    assert missing_paths(page, "`model/gpt2.py`, `custom_ops.so`, `data/`, `--input FILE`, `a.b`") == []
    for gone in ("`model/gone.py`", "`model/gone`", "`requirements-gone.txt`", "```\nbash run/gone.sh\n```"):
        assert len(missing_paths(page, gone)) == 1, gone
    assert len(missing_paths(page, "```\npython3 -m data.gone --input x\n```")) == 1
    assert missing_paths(page, "`python -m data.prepare`, `python3 -m examples_utils benchmark`") == []
    assert misplaced_names("`place` (`model/placement.py`), `gone`\n(`model/gpt2.py`)") == [
        "model/gpt2.py defines no gone"
    ]
    assert contents_problem("# A\n" + "line\n" * 99) == ""
    assert "no list" in contents_problem("# A\n" + "line\n" * 100)
    matching = "# A\n\n## Contents\n\n* [B](#b)\n* [C d](#c-d)\n\n## B\n\n## C d\n" + "line\n" * 100
    assert contents_problem(matching) == ""
    assert "its headings" in contents_problem(matching.replace("## B", "## E"))


def test_the_table_of_systems_is_that_of_the_models():
    text = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z0-9-]+) \| `(config_\w+\.json)` \| ([\d,]+) \|", text, flags=re.MULTILINE)
    configs = {name: GPT2Config.from_json(path) for name, path in MODELS.items() if not name.startswith("gpt2")}
    expected = [(name, MODELS[name].name, f"{real_parameter_count(config):,}") for name, config in configs.items()]
    assert rows == expected


def test_every_field_of_a_variant_is_in_its_table():
    text = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8").split("## The fields")[1].split("\n## ")[0]
    fields = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert set(fields) == {"tie_word_embeddings", "initialization", *VARIANT_FIELDS}
