"""Reports of real runs in headless Chromium: nothing is fetched or refused, and keyboard, light and dark are served."""

import pytest

chromium = pytest.importorskip("chromium")

from test_processes import run_flags, run_together  # noqa: E402
from tiny_run import NO_DROPOUT, flags, run_here, write_config, write_corpus  # noqa: E402

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("reported")
    write_config(made, **NO_DROPOUT)
    write_corpus(made / "corpus.pkl", articles=24, length=40)
    return made


@pytest.fixture
def opened():
    pages = []

    def open_page(path):
        if chromium.executable() is None:
            pytest.skip("no Chromium: `apt install chromium`, or name one in CHROMIUM")
        pages.append(chromium.Page(chromium.executable(), path.as_uri()))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def one(folder):
    """The page of a run of one process."""
    asked = {
        "layers_per_ipu": "0 2",
        "gradient_accumulation": 5,
        "training_steps": 3,
        "profile": folder / "one_profile",
    }
    asked["recompute_checkpoint_every_layer"] = True
    done = run_here(flags(folder, **asked))
    assert done.status == 0, done.err
    return folder / "one_profile" / "training" / "report.html"


def test_it_asks_for_nothing_and_no_policy_is_broken(opened, one):
    page = opened(one)
    assert page.requests() == [one.as_uri()] and page.complaints() == []
    numbers = page.value("JSON.parse(document.getElementById('report').textContent).ranks[0].phases.length")
    assert page.value("document.querySelectorAll('#phases tbody tr').length") == numbers


def test_pictures_have_the_bars_of_the_tables(opened, one):
    page = opened(one)
    drawn, counted = page.value(
        """(() => {
          const events = JSON.parse(document.getElementById("report").textContent).timeline.events;
          const boxes = [...document.querySelectorAll("#pipeline svg")][0].querySelectorAll("g > rect");
          return [boxes.length, events.length];
        })()"""
    )
    assert drawn == counted > 5
    widths = page.value(
        """[...document.querySelectorAll("#memory svg rect")].map((box) => box.getBoundingClientRect().width)"""
    )
    assert len(widths) > 5 and min(widths) > 0
    rows = page.value("document.querySelectorAll('#memory svg text.label').length")
    assert rows == page.value("document.querySelectorAll('#memory tbody tr').length") == 3


def test_the_keyboard_reaches_all_and_a_screen_reader_has_names(opened, one):
    page = opened(one)
    names = page.value(
        """[...document.querySelectorAll("[tabindex], svg[role], section")].map((part) =>
          part.getAttribute("aria-label") ||
          document.getElementById(part.getAttribute("aria-labelledby"))?.textContent)"""
    )
    assert len(names) > 10 and all(names)
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {node["role"]["value"] for node in tree if not node["ignored"]}
    assert {"image", "table", "rowheader", "columnheader", "region", "main", "navigation", "heading"} <= roles
    page.press("Tab")
    assert page.value("document.activeElement.hash") == "#pipeline"
    seen = []
    while page.value("document.activeElement !== document.body") and len(seen) < 60:
        seen.append(page.value("document.activeElement.getAttribute('aria-label') || document.activeElement.hash"))
        page.press("Tab")
    regions = page.value("[...document.querySelectorAll('[tabindex]')].map((part) => part.getAttribute('aria-label'))")
    assert seen[-len(regions) :] == regions


CONTRAST = """
(() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const paper = getComputedStyle(document.body).backgroundColor;
  const texts = [...document.querySelectorAll("p, a, h1, td, th, caption")].map((part) => getComputedStyle(part).color);
  const marks = [...document.querySelectorAll("svg text")].map((part) => getComputedStyle(part));
  const labels = marks.filter((style) => style.fill !== paper).map((style) => style.fill);
  const boxes = [...document.querySelectorAll("svg rect:not(.lane)")].map((part) => getComputedStyle(part))
    .map((style) => style.fill.startsWith("url") ? style.stroke : style.fill);
  const inside = [...document.querySelectorAll("svg text.inside")]
    .map((part) => ratio(getComputedStyle(part).fill, getComputedStyle(part.previousSibling).fill));
  return [paper, Math.min(...texts.concat(labels).map((colour) => ratio(colour, paper))),
    Math.min(...boxes.map((colour) => ratio(colour, paper))), Math.min(...inside)];
})()
"""


def test_light_and_dark_can_both_be_read(opened, one):
    """Contrasts of WCAG 2, level AA: 4.5 for text, 3 for bars."""
    page, papers = opened(one), []
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        paper, text, bars, inside = page.value(CONTRAST)
        papers.append(paper)
        assert text >= 4.5 and bars >= 3.0 and inside >= 4.5, (scheme, text, bars, inside)
    assert papers[0] != papers[1]


def test_two_processes_have_two_rows(opened, folder):
    profile = folder / "two_profile"
    asked = {"layers_per_ipu": "1 1", "gradient_accumulation": 9, "training_steps": 3, "profile": profile}
    asked["replication_factor"] = 1
    done = run_together(2, run_flags(folder, folder / "two", **asked))
    assert done.status == 0, done.err
    page = opened(profile / "training" / "report.html")
    labels = page.value(
        "[...document.querySelectorAll('#pipeline svg')[0].querySelectorAll('text.label')].map((l) => l.textContent)"
    )
    assert [label.split(":")[0] for label in labels] == ["rank 0", "rank 1"]
    assert page.value("document.querySelectorAll('#phases table').length") == 2
    assert page.complaints() == []


def test_a_plan_of_ipus(opened, folder):
    profile = folder / "plan_profile"
    asked = {"layers_per_ipu": "0 2", "gradient_accumulation": 5, "compile_only": True, "plan_device": "ipu"}
    done = run_here(flags(folder, profile=profile, **asked))
    assert done.status == 0, done.err
    page = opened(profile / "training" / "report.html")
    assert page.value("document.querySelectorAll('#pipeline rect.waiting').length") > 0
    assert "261.3" in page.value("document.getElementById('estimates').innerText")
    assert page.complaints() == [] and len(page.requests()) == 1
