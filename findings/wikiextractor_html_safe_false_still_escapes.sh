#!/usr/bin/env bash
# wikiextractor 3.1.0: --html-safe has a value and is on unless told otherwise, so "--html-safe False" looks like the
# way to plain text. argparse keeps the word as a string without a type, and every string but the empty one is true:
# False, no and 0 all escape & and < as HTML, in JSON and plain text output too. Only an empty value turns it off.
# Source: main() in WikiExtractor.py of the package, the end of clean() in extract.py. Date: 2026-11-29.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet wikiextractor==3.1.0
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import importlib.metadata, pathlib, subprocess, sys

pathlib.Path("dump.xml").write_text("""<mediawiki version="0.11" xml:lang="en">
  <siteinfo>
    <base>https://en.wikipedia.org/wiki/Main_Page</base>
    <namespaces>
      <namespace key="10" case="first-letter">Template</namespace>
    </namespaces>
  </siteinfo>
  <page>
    <title>Salt</title>
    <ns>0</ns>
    <id>12</id>
    <revision>
      <id>345</id>
      <text xml:space="preserve">Salt &amp;amp; pepper, and 3 &amp;lt; 4.</text>
    </revision>
  </page>
</mediawiki>
""")

def extract(*options):
    command = [sys.executable, "-m", "wikiextractor.WikiExtractor", "dump.xml", "-q", "--text", "--no-templates"]
    subprocess.run([*command, "--processes", "1", "-o", "out", *options], check=True)
    return pathlib.Path("out/AA/wiki_00").read_text().strip()

seen = {value: extract("--html-safe", value) for value in ("False", "no", "0", "")}
print("version: wikiextractor", importlib.metadata.version("wikiextractor"))
print("expected: --html-safe False gives: Salt & pepper, and 3 < 4.")
for value, text in seen.items():
    print(f"seen: --html-safe {value!r}: {text}")
assert seen[""] == "Salt & pepper, and 3 < 4."
assert all(seen[value] == "Salt &amp; pepper, and 3 &lt; 4." for value in ("False", "no", "0"))
PY
