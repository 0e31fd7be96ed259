"""The server's page in headless Chromium: by keyboard, streaming, in light and dark, with nothing from elsewhere."""

import json
import threading
import urllib.request

import pytest

pytest.importorskip("starlette", reason="requirements-serving.txt is not installed")
pytest.importorskip("uvicorn", reason="requirements-serving.txt is not installed")

import chromium  # noqa: E402
import tiny_server  # noqa: E402

pytestmark = pytest.mark.browser


@pytest.fixture
def opened():
    """Opens a page of a service; keyword arguments are those of tiny_server."""
    closers = []

    def open_page(key=None, **settings):
        if chromium.executable() is None:
            pytest.skip("no Chromium: `apt install chromium`, or name one in CHROMIUM")
        service = tiny_server.service(**settings)
        listening = tiny_server.listening(service.__enter__(), key)
        address = listening.__enter__()
        page = chromium.Page(chromium.executable(), address + "/")
        closers.extend([lambda: service.__exit__(None, None, None), lambda: listening.__exit__(None, None, None)])
        closers.append(page.close)
        return page, address

    yield open_page
    for close in reversed(closers):
        close()


def fill(page, **fields):
    for name, value in fields.items():
        page.value(f"document.getElementById({name!r}).focus()")
        page.press("a", control=True)
        page.type(value)


def text(page, name):
    return page.value(f"document.getElementById({name!r}).textContent")


def test_a_text_comes_by_keyboard_alone(opened):
    page, address = opened()
    assert page.value("document.activeElement.id") == "prompt"
    page.press("a", control=True)
    page.type("the river")
    order = []
    for _ in range(5):
        page.press("Tab")
        order.append(page.value("document.activeElement.id"))
    assert order == ["max_tokens", "temperature", "top_p", "seed", "go"]
    fill(page, max_tokens="7", temperature="0")
    page.press("Enter")  # in a field: the form is sent
    page.until("document.getElementById('state').textContent.startsWith('Done in')")
    fields = {"model": tiny_server.NAME, "prompt": "the river", "max_tokens": 7, "temperature": 0}
    body = urllib.request.Request(f"{address}/v1/completions", json.dumps(fields).encode())
    body.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(body) as answer:
        expected = json.load(answer)["choices"][0]["text"]
    assert (text(page, "old"), text(page, "new")) == ("the river", expected)
    fill(page, prompt="the town")
    page.press("Enter", control=True)
    page.until("document.getElementById('old').textContent === 'the town' && !document.getElementById('go').disabled")
    assert page.complaints() == []
    assert {url.rpartition(":")[2].split("/", 1)[1] for url in page.requests()} <= {"", "v1/models", "v1/completions"}
    assert all(url.startswith(address) for url in page.requests())


def test_a_text_streams_and_escape_stops_it(opened):
    """The engine is held after its tenth step: what has come by then is on the page."""
    release, steps = threading.Event(), []

    def step(*inputs):
        steps.append(1)
        if len(steps) > 10:
            release.wait(60)
        return tiny_server.model(1).step(*inputs)

    page, _ = opened(slots=1, step=step)
    fill(page, prompt="the river", max_tokens="20", temperature="0")
    page.press("Enter")
    page.until("document.getElementById('new').textContent.length > 0")
    assert text(page, "state") == "Writing …" and page.value("document.getElementById('stop').disabled") is False
    page.press("Escape")
    page.until("document.getElementById('state').textContent === 'Stopped.'")
    release.set()
    assert page.value("document.getElementById('go').disabled") is False


def test_errors_are_told_and_a_key_is_asked_for(opened):
    page, _ = opened(key="a secret")
    fill(page, max_tokens="5")
    page.press("Enter")
    page.until("document.getElementById('state').textContent.startsWith('Error: Incorrect API key')")
    assert page.value("document.activeElement.id") == "key"
    page.type("a secret")
    page.press("Enter")
    page.until("document.getElementById('state').textContent.startsWith('Done in')")
    fill(page, max_tokens="500")
    page.press("Enter")
    page.until("document.getElementById('state').textContent.includes('maximum context length is 32 tokens')")


CONTRAST = """
(() => {
  const light = (colour) => {
    const parts = colour.match(/\\d+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const style = (name) => getComputedStyle(name === "body" ? document.body : document.getElementById(name));
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const paper = style("body").backgroundColor;
  return [paper, ratio(style("body").color, paper), ratio(style("new").color, paper),
    ratio(style("go").color, style("go").backgroundColor), ratio(style("prompt").borderTopColor, paper)];
})()
"""


def test_light_and_dark_can_both_be_read(opened):
    """Contrasts of WCAG 2, level AA: 4.5 for text, 3 for the edge of a field."""
    page, _ = opened()
    papers = []
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        paper, *text_ratios, edge = page.value(CONTRAST)
        papers.append(paper)
        assert min(text_ratios) >= 4.5 and edge >= 3.0
    assert papers[0] != papers[1]
