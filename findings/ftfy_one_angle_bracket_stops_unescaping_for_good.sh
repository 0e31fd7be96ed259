#!/usr/bin/env bash
# ftfy 6.3.1: fix_text takes a text line by line, and its documentation says that HTML entities are left alone where a
# literal < shows that the input is real HTML. One expects that of the line, or of the whole text. It holds from the
# first line with a < to the end: of one text the lines before are unescaped and all lines after are not, so the same
# line comes out differently in another order, and a corpus fixed as one string differs from one fixed document by
# document. unescape_html=True makes it uniform. Source: fix_text in ftfy/__init__.py and the documentation of
# TextFixerConfig. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet ftfy==6.3.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata
import ftfy

LINES = ["salt &amp; pepper", "3 < 4", "fish &amp; chips"]
whole = ftfy.fix_text("\n".join(LINES)).split("\n")
single = [ftfy.fix_text(line) for line in LINES]
turned = ftfy.fix_text("\n".join(LINES[::-1])).split("\n")[::-1]
always = ftfy.fix_text("\n".join(LINES), unescape_html=True).split("\n")
print("version: ftfy", importlib.metadata.version("ftfy"))
print("expected: the first and the last line are treated alike")
print(f"seen: {whole}; each line alone: {single}; in reverse order: {turned}")
assert whole == ["salt & pepper", "3 < 4", "fish &amp; chips"]
assert turned == ["salt &amp; pepper", "3 < 4", "fish & chips"]
assert single == always == ["salt & pepper", "3 < 4", "fish & chips"]
PY
