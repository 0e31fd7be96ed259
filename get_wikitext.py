#!/usr/bin/env python3
"""WikiText for tfchat's benchmark: fetched into the current folder, and prepared as token ids for train_gpt2.py.

    python get_wikitext.py 103_raw

leaves wikitext-103-raw/wiki.train.raw, wiki.valid.raw and wiki.test.raw, and wikitext-103-raw/prepared/ with corpus.pkl
and corpus-valid.pkl: each line by itself, nothing between them (data/prepare.py). What is there already is kept.
Without a network put the archive, under its published name, into the current folder, or name with MIRROR=URL where it
is (http://, https:// or file://).
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from corpora.atomic import atomic_file, folder_made
from corpora.program import ProgramParser, add_overwrite_flag, reported
from data import prepare

# Name on the command line -> folder in the archive, which is called <folder>-v1.zip. CC BY-SA.
SETS = {name: f"wikitext-{name.replace('_', '-')}" for name in ("103_raw", "103", "2_raw", "2")}
SOURCES = ("https://s3.amazonaws.com/research.metamind.io/wikitext", "https://wikitext.smerity.com")
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20


def members(folder: str) -> list[str]:
    """The names of the three files of a set."""
    ending = "raw" if folder.endswith("-raw") else "tokens"
    return [f"wiki.{part}.{ending}" for part in ("train", "valid", "test")]


def fetch(archive: Path) -> None:
    """The archive, from the first source that has it. Raises RuntimeError if none does."""
    sources = (os.environ["MIRROR"],) if os.environ.get("MIRROR") else SOURCES
    failed = []
    for url in (f"{source.rstrip('/')}/{archive}" for source in sources):
        print(f"fetching {url}", flush=True)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, atomic_file(archive) as file:
                size, done = answer.headers.get("Content-Length"), 0
                for block in iter(lambda answer=answer: answer.read(BLOCK), b""):
                    done += file.write(block)
                if size is not None and done != int(size):
                    raise urllib.error.URLError(f"{done:,} of {int(size):,} bytes came")
            return
        except (urllib.error.URLError, http.client.HTTPException, socket.timeout, ConnectionError, ValueError) as error:
            failed.append(f"{url} ({getattr(error, 'reason', error)})")
    raise RuntimeError(
        f"could not be fetched: {', '.join(failed)}\nHINT: fetch {archive} elsewhere and put it into {Path.cwd()}, or "
        "set MIRROR=URL to a folder that has it (file:///… too), and start the same command again"
    )


def unpack(archive: Path, folder: Path) -> None:
    """Take the files that are missing out of the archive. Raises ValueError naming archive and member."""
    try:
        with zipfile.ZipFile(str(archive)) as packed, folder_made(folder):
            for name in members(folder.name):
                if not (folder / name).is_file():
                    with packed.open(f"{folder.name}/{name}") as source, atomic_file(folder / name) as file:
                        for block in iter(lambda source=source: source.read(BLOCK), b""):
                            file.write(block)
                    print(f"wrote {folder / name}", flush=True)
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ValueError(f"{archive}: not the published archive ({error}); remove it and start again") from error


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = ProgramParser("get_wikitext.py", __doc__)
    parser.add_argument("set", nargs="?", choices=tuple(SETS), help="which WikiText")
    parser.add_argument("--download-only", action="store_true", help="leave the token ids to python3 -m data.prepare")
    add_overwrite_flag(parser)
    args = parser.parse_args(argv)
    if args.set is None:
        parser.refuse([f"set: is needed, one of {', '.join(SETS)}"])
    folder = Path(SETS[args.set])

    def get() -> None:
        if not all((folder / name).is_file() for name in members(folder.name)):
            archive = Path(f"{folder.name}-v1.zip")
            brought = archive.is_file()  # and then kept
            if not brought:
                fetch(archive)
            unpack(archive, folder)
            if not brought:
                archive.unlink()

    status = reported("get_wikitext.py", get)
    if status or args.download_only:
        return status
    flags = ["--documents", "line", "--document-ends", "none", *(["--overwrite"] if args.overwrite else [])]
    return prepare.main(["--input", str(folder), *flags, "--output", str(folder / "prepared")])


if __name__ == "__main__":
    sys.exit(main())
