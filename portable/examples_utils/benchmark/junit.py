"""A session as JUnit XML, which continuous integration shows: a test case for each variant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from .result import Result

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def document(results: Sequence[Result], started: str) -> str:
    """The XML text: the spec is the class, the figures are properties, the problems are the failure's text."""
    failed = [result for result in results if result.status != "success"]
    counts = {"tests": str(len(results)), "failures": str(len(failed)), "errors": "0", "skipped": "0"}
    seconds = f"{sum(result.seconds for result in results):.3f}"
    root = ElementTree.Element("testsuites", {**counts, "time": seconds})
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": "examples_utils benchmark", **counts, "time": seconds, "timestamp": started}
    )
    for result in results:
        about = {"classname": result.spec, "name": result.variant, "time": f"{result.seconds:.3f}"}
        case = ElementTree.SubElement(suite, "testcase", {key: _plain(value) for key, value in about.items()})
        properties = ElementTree.SubElement(case, "properties")
        for name, value in result.metrics.items():
            ElementTree.SubElement(properties, "property", {"name": _plain(name), "value": _plain(str(value))})
        if result.status != "success":
            first = {"type": result.status, "message": _plain(result.problems[0])}
            ElementTree.SubElement(case, "failure", first).text = _plain("\n".join(result.problems))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _plain(text: str) -> str:
    """A text without the characters that XML forbids."""
    return _NOT_XML.sub("?", text)
