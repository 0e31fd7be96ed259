"""--train-path FILE.txt: prepared once beside the text, with the right tokenizer, and trained on."""

from __future__ import annotations

import pickle

import pytest
from tiny_run import flags, run_here, write_config

from data.loading.text_file import prepared
from tokenizer import Tokenizer, train_bpe

TEXT = "".join(f"Line {n} of a poem about the sea,\nand the rivers that run there.\n\n" for n in range(900))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    (tmp_path / "tokenizer.json").write_text(train_bpe([TEXT], 300).to_json(), encoding="utf-8")
    return path


def test_it_is_prepared_once_beside_the_text(text, capsys):
    made = prepared(str(text))
    said = capsys.readouterr().out
    assert f"preparing {text}" in said and f"{text} is read from {made}" in said and "python3 -m data.prepare" in said
    tokenizer = Tokenizer.from_folder(text.parent)
    with open(made, "rb") as file:
        articles = pickle.load(file)
    assert "".join(tokenizer.decode(ids[:-1]) for ids in articles) == TEXT and len(articles) > 2
    assert all(ids[-1] == tokenizer.eot_id for ids in articles)
    assert prepared(str(text)) == made
    assert "preparing" not in capsys.readouterr().out
    text.write_text(TEXT + "More.", encoding="utf-8")
    other = prepared(str(text))
    assert other != made and "preparing" in capsys.readouterr().out
    assert len(list(text.parent.glob("poem.txt.prepared-*"))) == 1, "what was made of an earlier text is removed"


def test_the_checkpoint_s_tokenizer_comes_first(tmp_path, text):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    beside = prepared(str(text))
    of_checkpoint = train_bpe(["another text"], 270)
    (folder / "tokenizer.json").write_text(of_checkpoint.to_json(), encoding="utf-8")
    made = prepared(str(text), str(folder))
    assert made != beside and prepared(str(text)) == beside, "one of each tokenizer is kept"
    with open(made, "rb") as file:
        assert max(map(max, pickle.load(file))) < of_checkpoint.vocab_size
    assert Tokenizer.from_folder(made.rpartition("/")[0]).to_json() == of_checkpoint.to_json()


def test_other_paths_stay_as_they_are():
    for path in ("generated", "corpus.pkl", "tfrecord", "dynamic"):
        assert prepared(path) == path


def test_a_text_without_words_is_refused(tmp_path):
    marked = "\ufefftext".encode("utf-16-le")
    for content, message in ((b"", "empty"), (b" \n\n", "there is no text in it"), (marked, "UTF-16 or")):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(ValueError, match=f"^--train-path [^ ]*a.txt: {message}"):
            prepared(str(tmp_path / "a.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_text_shorter_than_half_a_sample_is_refused_by_its_name_and_leaves_nothing(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("only four words here", encoding="utf-8")  # and an end: 5 ids
    write_config(tmp_path)
    done = run_here(flags(tmp_path, train_path=path, max_len=16))
    assert done.status == 2 and "nothing was started or written" in done.err
    assert f"--train-path {path}: 5 ids, where half a sample of --max-len 16 + 1 has 9; give a longer text" in done.err
    assert not list(tmp_path.glob("words.txt.*"))
    prepared(str(path), max_len=8)
    with pytest.raises(ValueError, match=r"words.txt: 5 ids, "):
        prepared(str(path), max_len=16)


def test_of_passages_shorter_than_half_a_sample_the_longest_is_told_beside_the_whole(tmp_path):
    """Its ids were told as if they were the text's, with the advice to give a longer one."""
    path = tmp_path / "long.txt"
    path.write_text("\n\n".join(["a few words of it " * 1000] * 3), encoding="utf-8")
    told = r"the longest of its 3 passages, of 16 KB or more up to a blank line, has 5,003 of 15,008 ids, where half a"
    for _ in range(2):  # before what is made has its name, and once it has been made for less
        with pytest.raises(ValueError, match=rf"long.txt: {told} .* lower --max-len, or add --windows stream"):
            prepared(str(path), max_len=12_000)
        prepared(str(path), max_len=9_000)


def test_bytes_that_are_no_text_are_refused_and_single_ones_told(tmp_path, capsys):
    noise, letter = tmp_path / "noise.txt", tmp_path / "letter.txt"
    noise.write_bytes("привет, мир\n".encode("koi8-r") * 200)
    with pytest.raises(ValueError, match=r"^--train-path [^ ]*noise.txt: \d\d% of its characters are not UTF-8; is it"):
        prepared(str(noise))
    assert not list(tmp_path.glob("noise.txt.*"))
    letter.write_bytes(("Grüße aus dem Norden.\n" * 50).encode("latin1"))
    prepared(str(letter))
    assert "1 lines or documents were not UTF-8: bad bytes became U+FFFD" in capsys.readouterr().out


def test_a_run_trains_on_it_and_goes_on(tmp_path, text):
    write_config(tmp_path, vocab_size=304, real_vocab_size=300)
    save = tmp_path / "save"
    asked = {
        "train_path": text,
        "save_model_path": save,
        "device_iterations": 1,
        "gradient_accumulation": 2,
        "val_num": 2,
    }
    done = run_here(flags(tmp_path, **asked, training_steps=1))
    assert done.status == 0, done.err
    assert f"preparing {text}" in done.out and (save / "step_1" / "tokenizer.json").is_file()
    resume = {"pretrained_checkpoint": save / "step_1", "resume_training_from_checkpoint": True}
    again = run_here(flags(tmp_path, **asked, **resume, training_steps=2))
    assert again.status == 0, again.err
    assert "preparing" not in again.out and (save / "step_2").is_dir()
