"""data.prepare as the published recipes prepare their text, against transformers' tokenizer on the same text."""

from __future__ import annotations

import pickle
import shlex
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import transformers

from corpora import pieces
from data import prepare
from data.building.parts import with_ends
from tokenizer import train_bpe

WIKITEXT = (
    " \n = A river = \n \n The river 's source flows ( to the sea ) . \n It is wet . \n \n = = Course = = \n \n"
    " Five towns . \n \n = A town = \n \n A market \n \n"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "small").mkdir()
    path = tmp_path / "small" / "tokenizer.json"
    path.write_text(train_bpe([WIKITEXT] * 3, 300).to_json(), encoding="utf-8")
    (tmp_path / "wiki.train.raw").write_text(WIKITEXT, encoding="utf-8")
    (tmp_path / "wiki.valid.raw").write_text(WIKITEXT[:40], encoding="utf-8")
    return tmp_path


def run(folder, *flags):
    words = ["--tokenizer", folder / "small" / "tokenizer.json", "--output", folder / "out", "--workers", 1, *flags]
    try:
        return prepare.main([str(word) for word in words])
    except SystemExit as error:
        return error.code


def written(folder, name="corpus.pkl"):
    with (folder / "out" / name).open("rb") as file:
        return [list(ids) for ids in pickle.load(file)]


def reference(folder):
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "small" / "tokenizer.json"))


def test_lines_by_themselves_with_nothing_between_them(folder, capsys):
    assert run(folder, "--input", folder, "--documents", "line", "--document-ends", "none") == 0
    lines = [line for line in WIKITEXT.split("\n") if line.strip()]
    assert written(folder) == [reference(folder).encode(line) for line in lines]
    assert len(written(folder, "corpus-valid.pkl")) == 2
    flags = "--train-path {0}/corpus.pkl --windows stream --validation-files {0}/corpus-valid.pkl".format(
        folder / "out"
    )
    train = f"train on it: {sys.executable} {Path(__file__).resolve().parents[2] / 'train_gpt2.py'}"
    assert capsys.readouterr().err.splitlines()[-1] == f"{train} {flags}"


@pytest.mark.parametrize("piece", [20, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
def test_the_text_as_it_is_with_its_newlines(folder, monkeypatch, piece, packed):
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece)
    source = folder / "wiki.train.raw"
    if packed:
        source = folder / "wikitext-2-raw-v1.zip"
        with zipfile.ZipFile(str(source), "w") as archive:
            archive.writestr("wikitext-2-raw/wiki.train.raw", WIKITEXT)
    assert run(folder, "--input", source, "--documents", "file", "--document-ends", "none") == 0
    parts = written(folder)
    assert sum(parts, []) == reference(folder).encode(WIKITEXT)
    assert len(parts) > 1 or piece > 1000


@pytest.mark.parametrize(("ends", "before", "behind"), [("end", 0, 1), ("both", 1, 1), ("none", 0, 0)])
def test_ends_of_documents(folder, ends, before, behind):
    (folder / "two.txt").write_text("A river flows\n\nThe sea\n", encoding="utf-8")
    assert run(folder, "--input", folder / "two.txt", "--document-ends", ends) == 0
    end = [reference(folder).convert_tokens_to_ids("<|endoftext|>")]
    texts = [reference(folder).encode(text) for text in ("A river flows", "The sea")]
    assert written(folder) == [end * before + ids + end * behind for ids in texts]


def test_ends_by_hand():
    ids, counts = np.array([5, 6, 0, 7, 0]), np.array([3, 2])
    assert [each.tolist() for each in with_ends(ids, counts, "both")] == [[0, 5, 6, 0, 0, 7, 0], [4, 3]]
    assert [each.tolist() for each in with_ends(ids, counts, "none")] == [[5, 6, 7], [2, 1]]


def test_a_whole_file_detokenized(folder):
    flags = ("--source", "text", "--documents", "file", "--document-ends", "none", "--detokenize")
    assert run(folder, "--input", folder / "wiki.train.raw", *flags) == 0
    (ids,) = written(folder)
    text = reference(folder).decode(ids)
    assert "\n= A town =\n" in text and "(to the sea)" in text and "river's" in text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--documents", "file"], "add --document-ends none"),
        (["--documents", "passage"], "--documents passage: of wikitext they are article, line or file"),
        (["--documents", "file", "--document-ends", "none", "--detokenize"], "--detokenize is about articles"),
        (["--documents", "file", "--document-ends", "none", "--deduplicate", "exact"], "--deduplicate is about"),
        (["--document-ends", "start"], "--document-ends: 'start' must be one of end, both, none"),
    ],
)
def test_flags_that_do_not_go_together(folder, capsys, flags, told):
    assert run(folder, "--input", folder, *flags) == 2
    assert told in capsys.readouterr().err and not (folder / "out").exists()


def test_articles_are_of_wikitext_only(folder, capsys):
    (folder / "two.txt").write_text("A river\n", encoding="utf-8")
    assert run(folder, "--input", folder / "two.txt", "--documents", "article") == 2
    assert "--documents article: of text they are line, passage or file" in capsys.readouterr().err


@pytest.mark.parametrize("piece", [40, 1 << 20])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_documents_are_held_out(folder, monkeypatch, capsys, piece, workers):
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece)
    texts = [f"the river {'flows ' * (n % 4 + 1)}" for n in range(20)]
    (folder / "t.txt").write_text("\n".join(texts), encoding="utf-8")
    assert run(folder, "--input", folder / "t.txt", "--validation-first", 7, "--workers", workers) == 0
    end = [reference(folder).convert_tokens_to_ids("<|endoftext|>")]
    ids = [reference(folder).encode(text) + end for text in texts]
    assert (written(folder, "corpus-valid.pkl"), written(folder)) == (ids[:7], ids[7:])
    assert "held out 7 documents" in capsys.readouterr().err
    for flags, told in (
        (["--validation-first", 20], "all held out for validation"),
        (["--validation-first", -1], "--validation-first must be 0 or more"),
        (["--validation-first", 2, "--validation-fraction", 0.5], "--validation-first contradicts"),
    ):
        assert run(folder, "--input", folder / "t.txt", *flags, "--overwrite") == 2
        assert told in capsys.readouterr().err


# What is downloaded, in small: path -> content. The commands are those of docs/data.md, word for word.
PUBLISHED = {
    "writingPrompts/train.wp_target": "A story <newline> of a river .\nAnother story .\n",
    "writingPrompts/valid.wp_target": "A third one .\n",
    "pg19/train/1.txt": "A book\n\nof two lines\n",
    "pg19/train/2.txt": "A book\n",
    "pg19/validation/3.txt": "The sea\n",
    "aclImdb/train/pos/0_9.txt": "It flows well .",
    "aclImdb/train/neg/0_1.txt": "It flows .",
    "cnn/stories/a.story": "The river flows .\n\n@highlight\n\nA river\n",
    "dailymail/stories/b.story": "The sea .\n\n@highlight\n\nA town\n",
    "imdb.jsonl": '{"text": "It is wet .", "label": 1}\n',
    "cnn_dailymail.jsonl": '{"article": "A market .", "highlights": "A", "id": "1"}\n',
}
DOCUMENTS = {
    "prompts/corpus": ["A story <newline> of a river .", "Another story ."],
    "prompts/valid": ["A third one ."],
    "books/corpus": ["A book\n\nof two lines\n", "A book\n"],
    "books/valid": ["The sea\n"],
    "reviews/corpus": ["It flows well .", "It flows ."],
    "news/corpus": ["The river flows .\n\n@highlight\n\nA river\n", "The sea .\n\n@highlight\n\nA town\n"],
    "reviews-jsonl/corpus": ["It is wet ."],
    "news-jsonl/corpus": ["A market ."],
}


def test_the_commands_for_published_corpora(folder, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.split("### WritingPrompts, PG-19, IMDB, CNN and the Daily Mail")[1].split("\n### ")[0]
    commands = [line for line in section.splitlines() if line.startswith("python3 -m data.prepare ")]
    assert len(commands) == 8
    for name, content in PUBLISHED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(folder)
    for command in commands:
        words = shlex.split(command)[3:]
        if "--validation-fraction" in words:  # two documents are too few for a share of a hundredth
            at = words.index("--validation-fraction")
            del words[at : at + 2]
        assert prepare.main([*words, "--tokenizer", "small", "--workers", "1"]) == 0, command
    end = [reference(folder).convert_tokens_to_ids("<|endoftext|>")]
    for name, texts in DOCUMENTS.items():
        found = [list(ids) for ids in pickle.loads((folder / f"{name}.pkl").read_bytes())]
        assert found == [reference(folder).encode(text) + end for text in texts], name
