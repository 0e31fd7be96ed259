"""Articles out of WikiExtractor's files: entities, what ends an article, lines of JSON, placeholders."""

from __future__ import annotations

import json

import pytest

from corpora.documents import DocumentReader
from corpora.sources import guess, open_source
from corpora.wikipedia import ArticleReader, resolve_entities, wiki_files, without_placeholders


def doc(title, body):
    return f'<doc id="7" url="u" title="{title}">\n{title}\n\n{body}\n\n</doc>\n'


def folder_of(tmp_path, *contents):
    (tmp_path / "AA").mkdir()
    for number, content in enumerate(contents):
        raw = content if isinstance(content, bytes) else content.encode("utf-8")
        (tmp_path / "AA" / f"wiki_{number:02d}").write_bytes(raw)
    return tmp_path


def articles(tmp_path, *contents, **options):
    return list(ArticleReader(wiki_files(folder_of(tmp_path, *contents)), **options))


def through_source(folder, kind):
    return [text for piece in open_source(kind, [folder])[0].pieces() for text in DocumentReader(piece)]


def test_entities_are_resolved_once():
    assert resolve_entities("AT&amp;T, a &lt; b &gt; c") == "AT&T, a < b > c"
    assert resolve_entities("&amp;lt; and &amp;amp; and &amp;nbsp;") == "&lt; and &amp; and &nbsp;"
    assert resolve_entities("&quot; & &copy; &lt") == "&quot; & &copy; &lt", "no other one is WikiExtractor's"


def test_marks_of_documents_inside_an_article_are_text(tmp_path):
    body = 'It ends so:\n</doc>\nor begins so:\n<doc id="1">\n</doc>\n\n&lt;doc id="2"&gt;\nand goes on.'
    found = articles(tmp_path, doc("A", body) + doc("B", "</doc>\n</doc>") + "\n" + doc("C", "last") + "\n \n")
    assert found == [
        'It ends so: </doc> or begins so: <doc id="1"> </doc> <doc id="2"> and goes on.',
        "</doc> </doc>",
        "last",
    ]


def test_whole_documents_inside_an_article_are_text(tmp_path):
    """Of an article about this very format: one after the other, one in another, at the end."""
    inner, outer = doc("X", "body of X"), doc("Y", doc("Z", "body of Z"))
    found = articles(tmp_path, doc("A", f"It looks so:\n{inner}\n{outer}or\n{inner}") + doc("B", "b"))
    x = '<doc id="7" url="u" title="X"> X body of X </doc>'
    y = '<doc id="7" url="u" title="Y"> Y <doc id="7" url="u" title="Z"> Z body of Z </doc> </doc>'
    assert found == [f"It looks so: {x} {y} or {x}", "b"]


@pytest.mark.parametrize(
    "content",
    [
        doc("A", "b").replace("</doc>", "") + doc('C "D"', "e"),  # the head of another one, its title below it
        doc("A", "b").replace("</doc>", "") + doc("C", "d") + doc("E", "f"),
        doc("A", "b") + "more of A, and no end\n",
        doc("A", "b").replace("</doc>", "</doc"),
    ],
)
def test_an_article_without_an_end_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="wiki_00, line 1: .*no </doc>"):
        articles(tmp_path, content)


def test_an_empty_article_and_a_byte_order_mark(tmp_path):
    marked = b"\xef\xbb\xbf" + doc("A", "first\r\nsecond").replace("\n", "\r\n").encode()
    assert articles(tmp_path, marked, '<doc id="1">\n</doc>\n' + doc("B", "")) == ["first second", "", ""]


ROWS = [
    {"id": "1", "revid": "2", "url": "u", "title": "A", "text": "M&amp;P.\nA &lt; B \n\nformula_1"},
    {"id": "3", "revid": "4", "url": "u", "title": "B", "text": "\u00e9t\u00e9"},
]
JSON = "".join(json.dumps(row) + "\n" for row in ROWS)


def test_json_of_wikiextractor_gives_the_articles_of_its_other_form(tmp_path):
    folder_of(tmp_path, JSON)
    assert guess([tmp_path]) == "wikipedia"
    assert through_source(tmp_path, "wikipedia") == ["M&P. A < B formula_1", "\u00e9t\u00e9"]
    assert through_source(tmp_path, "jsonl") == ["M&P.\nA < B \n\nformula_1", "\u00e9t\u00e9"], "line ends are JSON's"
    piece = next(iter(open_source("jsonl", [tmp_path])[0].pieces()))
    assert list(DocumentReader(piece, drop_placeholders=True))[0] == "M&P.\nA < B \n"


@pytest.mark.parametrize("kind", ["wikipedia", "jsonl"])
def test_a_bad_line_of_json_is_named(tmp_path, kind):
    folder_of(tmp_path, JSON + '\n{"id": "5", "title": "C"}\n')
    with pytest.raises(ValueError, match=r"wiki_00, line 4: no text under 'text' \(found 'id', 'title'\)"):
        through_source(tmp_path, kind)


def test_entities_of_other_json_lines_stay(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(JSON, encoding="utf-8")
    assert through_source(path, "jsonl")[0] == ROWS[0]["text"]


def test_placeholders(tmp_path):
    lines = [
        "the angle, formula_1, and the height (formula_2), as formula_3formula_4 says;",
        "formula_5",
        " codice_12,",
        "... and codice_1 again.",
        "--",
        "reformulate formulas: formula_x",
    ]
    kept = [
        "the angle, and the height (), as says;",
        "... and again.",
        "--",
        "reformulate formulas: formula_x",
    ]
    assert without_placeholders(lines) == kept
    assert articles(tmp_path, doc("A", "\n".join(lines)), drop_placeholders=True) == [" ".join(kept)]
