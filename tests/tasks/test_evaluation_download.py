"""data/evaluation_download.sh against a server of our own: other files are refused, downloads go on."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "data" / "evaluation_download.sh"
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
def site(tmp_path):
    """(folder that is served, its URL, [(path, Range)] of the requests). With `cut` in it, a file ends after as many
    bytes as its content says, the connection with it."""
    folder = tmp_path / "site"
    folder.mkdir()
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers.get("Range")))
            file = folder / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            content, start = file.read_bytes(), 0
            if self.headers.get("Range"):
                start = int(self.headers["Range"].split("=")[1].rstrip("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            cut = folder / "cut"
            self.wfile.write(content[start : int(cut.read_text()) if cut.exists() else None])

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


def download(tmp_path, url, *words):
    environment = {**os.environ, "MIRROR": url, "PYTHON": sys.executable, "no_proxy": "127.0.0.1"}
    command = ["bash", str(SCRIPT), str(tmp_path / "data"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_files_of_no_published_checksum(tmp_path, site):
    folder, url, requests = site
    (folder / "ptb.test.txt").write_text(" a b \n", encoding="utf-8")
    with zipfile.ZipFile(folder / "text8.zip", "w") as archive:
        archive.writestr("text8", " some text")
    done = download(tmp_path, url, "ptb", "text8")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["ptb.test.txt", "text8"]
    assert (tmp_path / "data" / "text8").read_text(encoding="utf-8") == " some text"
    assert download(tmp_path, url, "ptb", "text8").returncode == 0 and len(requests) == 2, "what is there is kept"


def test_a_download_that_broke_off_goes_on(tmp_path, site):
    folder, url, requests = site
    (folder / "ptb.test.txt").write_bytes(bytes(range(65, 91)) * 100)
    (folder / "cut").write_text("1000", encoding="utf-8")
    done = download(tmp_path, url, "ptb")
    part = tmp_path / "data" / "ptb.test.txt.part"
    assert done.returncode == 1 and "goes on from there" in done.stderr and "MIRROR=URL" in done.stderr
    assert part.stat().st_size == 1000 and not part.with_suffix("").exists()
    (folder / "cut").unlink()
    done = download(tmp_path, url, "ptb")
    assert done.returncode == 0, done.stderr
    assert requests == [("/ptb.test.txt", None), ("/ptb.test.txt", "bytes=1000-")]
    assert part.with_suffix("").read_bytes() == (folder / "ptb.test.txt").read_bytes() and not part.exists()


def test_what_is_not_the_published_file_is_refused(tmp_path, site):
    folder, url, _ = site
    (folder / "lambada_test.jsonl").write_text('{"text": "not this"}\n', encoding="utf-8")
    done = download(tmp_path, url, "lambada")
    assert done.returncode == 1 and "was not the published file (sha256)" in done.stderr
    with zipfile.ZipFile(folder / "wikitext-103-v1.zip", "w") as archive:
        archive.writestr("wikitext-103/wiki.test.tokens", "not this")
    done = download(tmp_path, url, "wikitext")
    assert done.returncode == 1 and "wrong sha256" in done.stderr and "remove it and start again" in done.stderr
    (tmp_path / "data" / "wikitext-103-v1.zip").unlink()
    (folder / "wikitext-103-v1.zip").write_bytes(b"PK of no archive")
    done = download(tmp_path, url, "wikitext")
    assert done.returncode == 1 and "is not the published archive" in done.stderr
    assert not list((tmp_path / "data").rglob("*wiki.test*")) and not list((tmp_path / "data").glob("lambada*"))


def test_a_file_that_is_nowhere_and_words_that_are_no_set(tmp_path, site):
    _, url, _ = site
    done = download(tmp_path, url, "enwik8")
    assert done.returncode == 1 and f"none of these could be fetched: {url}/enwik8.zip" in done.stderr
    assert list((tmp_path / "data").iterdir()) == []
    done = download(tmp_path, url, "squad")
    assert done.returncode == 2 and "squad is no set of data" in done.stderr
