"""data/write_into_tfrecord.py: the commands of docs/data.md, records and indexes, and what is left when it fails."""

from __future__ import annotations

import os
import pickle
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_datasets import slow_windows
from tfrecord.reader import tfrecord_loader
from tfrecord.tools.tfrecord2idx import create_index
from tiny_run import ROOT, flags, run_here, write_config, write_corpus

from data.loading.datasets import ResumableSampler, open_dataset
from data.tfrecord import writer as tfrecord_writer
from data.wikipedia_preprocess import link_tfrecord_writer
from data.write_into_tfrecord import main

NAME = "wikicorpus_en_one_article_per_line"
SCRIPT = ROOT / "data" / "write_into_tfrecord.py"


def records_of(path):
    return [row["input_ids"].tolist() for row in tfrecord_loader(str(path), None, {"input_ids": "int"})]


def corpus(folder: Path, articles) -> Path:
    path = folder / "c.pkl"
    path.write_bytes(pickle.dumps(articles))
    return path


def written(source: Path, folder: Path, **changes) -> list[Path]:
    values = {"seq_length": 9, "stride": 4, "num_output": 1, **changes}
    words = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["--input-file-path", str(source), "--output-file-path", str(folder), *words]) == 0
    return sorted(folder.glob("*.tfrecord"))


@settings(max_examples=60, deadline=None)
@given(
    articles=st.lists(st.lists(st.integers(0, 60_000), max_size=40), min_size=1, max_size=8),
    window=st.integers(3, 12),
    stride=st.integers(1, 15),
    shards=st.integers(1, 3),
)
def test_records_are_the_windows(tmp_path_factory, articles, window, stride, shards):
    """Against the window rule word for word, read by the tfrecord package; indexes against tfrecord2idx."""
    folder = tmp_path_factory.mktemp("written")
    articles += [[1] * 40, [2] * 40, [3] * 40]
    paths = written(corpus(folder, articles), folder / "out", seq_length=window, stride=stride, num_output=shards)
    assert [path.name for path in paths] == [f"c-{i:05d}-of-{shards:05d}.tfrecord" for i in range(shards)]
    pairs = slow_windows(articles, window - 1, stride)[0]
    expected = [[inputs[0], *labels] for inputs, labels in pairs]
    records = [row for path in paths for row in records_of(path)]
    assert sorted(records) == sorted(expected)
    if shards == 1:
        assert records == expected
    for path in paths:
        create_index(str(path), str(folder / "theirs"))
        assert path.with_suffix(".index").read_bytes() == (folder / "theirs").read_bytes()
    assert len(os.listdir(folder / "out")) == 2 * shards + 1
    dataset, _ = open_dataset(
        "tfrecord", max_len=window - 1, stride=1, seed=1, val_num=0, real_vocab_size=60_001, num_samples=1,
        tfrecord_path=[str(folder / "out")],
    )  # fmt: skip
    assert [dataset[i].tolist() for i in range(len(dataset))] == records


def test_shards_are_about_equal_and_in_order(tmp_path):
    sizes = np.random.default_rng(0).integers(9, 60, 300)
    articles = [[number] * int(size) for number, size in enumerate(sizes)]
    paths = written(corpus(tmp_path, articles), tmp_path / "out", num_output=7)
    shards = [[row[0] for row in records_of(path)] for path in paths]
    assert max(map(len, shards)) - min(map(len, shards)) <= 14  # records of the longest article
    for shard in shards:
        assert shard == sorted(shard)
    assert sorted(sum(shards, [])) == [number for number, a in enumerate(articles) for _ in slow_windows([a], 8, 4)[0]]
    assert len({number for shard in shards for number in set(shard)}) == sum(len(set(shard)) for shard in shards)


def test_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord_writer, "_CHUNK", 100)
    monkeypatch.setattr(tfrecord_writer, "_BUFFER", 200)
    articles = [list(range(i, i + 7 * i)) for i in range(1, 40)]
    (path,) = written(corpus(tmp_path, articles), tmp_path / "out")
    assert [row[1:] for row in records_of(path)] == [labels for _, labels in slow_windows(articles, 8, 4)[0]]
    create_index(str(path), str(tmp_path / "theirs"))
    assert path.with_suffix(".index").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_commands_of_the_readme(tmp_path):
    """From the folder of preprocessed files, without a flag; the indexes made again; then a training run."""
    write_corpus(tmp_path / f"{NAME}.pkl", articles=8, length=1200)
    (tmp_path / SCRIPT.name).symlink_to("where the repository was")
    link_tfrecord_writer(tmp_path)  # as wikipedia_preprocess.py does
    environment = {**os.environ, "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}
    script = """set -e; mkdir tfrecords; python write_into_tfrecord.py 2>log; cd tfrecords; cp -r . ../before
        for f in *-00000-*.tfrecord; do python3 -m tfrecord.tools.tfrecord2idx $f `basename $f .tfrecord`.index; done"""
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, capture_output=True, env=environment)
    for path in sorted((tmp_path / "tfrecords").glob("*.tfrecord"))[1:]:  # as that program does, in this process
        create_index(str(path), str(path.with_suffix(".index")))
    (tmp_path / "before" / f"{NAME}.tfrecord.made-from").unlink()
    names = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert names == sorted(f"{NAME}-0000{i}-of-00004.{kind}" for i in range(4) for kind in ("tfrecord", "index"))
    for name in names:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "tfrecords" / name).read_bytes()
    log = (tmp_path / "log").read_text()
    assert "24 of 24 records" in log and "8 articles in records; 0 of them padded" in log


def test_trains_and_goes_on_where_it_was(tmp_path):
    write_config(tmp_path)
    source = write_corpus(tmp_path / "corpus.pkl", articles=12, length=40)
    written(source, tmp_path / "records", seq_length=17, stride=16, num_output=3)
    words = {
        "train_path": "tfrecord", "tfrecord_path": tmp_path / "records/*.tfrecord", "val_num": 4, "epochs": 2,
        "gradient_accumulation": 4, "save_model_path": tmp_path / "whole", "save_per_steps": 3, "num_workers": 2,
    }  # fmt: skip
    whole = run_here(flags(tmp_path, **words))
    assert whole.status == 0, whole.err
    assert "samples of 17 ids from 3 TFRecord files" in whole.out and "validation after step 0" in whole.out
    steps = [line.split(", throughput")[0] for line in whole.out.splitlines() if line.startswith("step ")]
    assert len(steps) == 14  # 2 x (36 - 6) // 4
    words.update(save_model_path=tmp_path / "resumed", pretrained_checkpoint=tmp_path / "whole" / "step_9")
    rest = run_here(flags(tmp_path, **words) + ["--resume-training-from-checkpoint"])
    assert rest.status == 0, rest.err
    assert [line.split(", throughput")[0] for line in rest.out.splitlines() if line.startswith("step ")] == steps[9:]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_ends_the_run_with_a_checkpoint(tmp_path, workers):
    """It is found when its turn comes. With the file in order again the run goes on as if nothing had been."""
    write_config(tmp_path)
    (path,) = written(write_corpus(tmp_path / "c.pkl", articles=100), tmp_path / "records", seq_length=17, stride=16)
    good = path.read_bytes()
    looked_at_first = {300 * i // 64 for i in range(64)} | {299}  # to tell this corpus from others
    damaged = next(i for i in list(ResumableSampler(300, 1234))[8:] if i not in looked_at_first)
    place = int(path.with_suffix(".index").read_text().splitlines()[damaged].split()[0]) + 20
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    words = {"train_path": "tfrecord", "tfrecord_path": path, "num_workers": workers, "training_steps": 12}
    broken = run_here(flags(tmp_path, save_model_path=tmp_path / "a", **words))
    assert broken.status == 2 and "Traceback" not in broken.err
    problem, stopped, command = broken.err.splitlines()[-3:]
    assert problem.startswith(f"train_gpt2.py: {path}, record {damaged}, byte ") and "CRC does not match" in problem
    step = int(stopped.split()[3].rstrip(";"))
    assert stopped.endswith(f"the last checkpoint is {tmp_path}/a/step_{step}, lost: nothing. To go on:")
    path.write_bytes(good)
    whole = run_here(flags(tmp_path, save_model_path=tmp_path / "b", **words))
    rest = run_here(shlex.split(command)[2:])
    assert rest.status == whole.status == 0
    steps = [line.split(", throughput")[0] for line in whole.out.splitlines() if line.startswith("step ")]
    assert [line.split(", throughput")[0] for line in rest.out.splitlines() if line.startswith("step ")] == steps[step:]
    path.write_bytes(good[:12] + bytes([good[12] ^ 1]) + good[13:])
    assert run_here(flags(tmp_path, **words)).err.splitlines()[-1].startswith(f"  {path}, record 0, byte 0: ")


# ---- When it fails -----------------------------------------------------------------------------------------------


def refused(capsys, *words) -> str:
    assert main(list(map(str, words))) == 2
    message = capsys.readouterr().err
    assert message.startswith("write_into_tfrecord.py: ") and "Traceback" not in message
    return message


def test_bad_input_is_refused_and_nothing_written(tmp_path, capsys):
    source = corpus(tmp_path, [[1] * 20, [2] * 30])
    out = tmp_path / "out"
    to = ("--output-file-path", out, "--seq-length", 9)
    for words, message in (
        ((), "--input-file-path wikicorpus_en_one_article_per_line.pkl: No such file"),
        (("--input-file-path", tmp_path / "no.pkl"), "no.pkl: No such file"),
        (
            ("--input-file-path", source, "--seq-length", 100),
            "none of the 2 articles has 50 ids, half of --seq-length 100",
        ),
        (("--input-file-path", source, "--num-output", 3), "--num-output 3: only 2 articles"),
        (("--input-file-path", corpus(tmp_path / "..", [])), "no token"),
    ):
        assert message in refused(capsys, *to, *words)
        assert not out.exists() or not list(out.iterdir())
    for words in (("--seq-length", "2"), ("--stride", "0"), ("--num-output", "0"), ("--output-file-path", source)):
        with pytest.raises(SystemExit) as end:
            main(list(map(str, words)))
        assert end.value.code == 2 and words[0] in capsys.readouterr().err


def test_other_tfrecords_in_the_folder_are_not_mixed(tmp_path, capsys):
    source = corpus(tmp_path, [[1] * 20, [2] * 30])
    written(source, tmp_path / "out", num_output=2)
    written(source, tmp_path / "out", num_output=2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    words = ("--input-file-path", source, "--output-file-path", tmp_path / "out", "--seq-length", 9, "--stride", 4)
    told = "c-00000-of-00002.index: is there already, made with --num-output 2 (now 1); name another --output-file-path"
    assert told in refused(capsys, *words, "--num-output", 1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    other = source.rename(tmp_path / "d.pkl")
    assert "out has other TFRecord files (c-00000-of-00002.tfrecord, …)" in refused(
        capsys, words[0], other, *words[2:], "--num-output", 1, "--overwrite"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert main([*map(str, (words[0], other.rename(source), *words[2:])), "--num-output", "1", "--overwrite"]) == 0
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"c-00000-of-00001.index", "c-00000-of-00001.tfrecord", "c.tfrecord.made-from"}


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """A limit on the size of a file stands for the disk; the second shard is the one that meets it."""
    source = corpus(tmp_path, [[1] * 30, [2] * 30, *([30_000 + i] * 4000 for i in range(3))])
    out = tmp_path / "out"
    out.mkdir()
    (out / "c-00000-of-00002.index").write_text("earlier")
    command = [sys.executable, SCRIPT, "--input-file-path", source, "--output-file-path", out]
    subprocess.run([*command[:2], "--help"], check=True, capture_output=True)
    written(source, tmp_path / "cache")  # the corpus's own cache is not what is tried here

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        list(map(str, [*command, "--seq-length", "9", "--stride", "1", "--num-output", "2", "--overwrite"])),
        capture_output=True, text=True, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 2 and "File too large; nothing written" in done.stderr, done.stderr
    assert [path.name for path in out.iterdir()] == ["c-00000-of-00002.index"]
    assert (out / "c-00000-of-00002.index").read_text() == "earlier"


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, capsys):
    source = corpus(tmp_path, [[1] * 20, [2] * 30])

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tfrecord_writer._Shard, "add", interrupted)
    words = ["--input-file-path", source, "--output-file-path", tmp_path / "out", "--seq-length", "9"]
    assert main([*map(str, words), "--num-output", "1"]) == 130
    assert "interrupted, nothing written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_a_killed_process_left_is_removed(tmp_path):
    """And what one that is still at it has written is not."""
    source, out = corpus(tmp_path, [[1] * 20, [2] * 30]), tmp_path / "out"
    command = f"""import os, sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from data.tfrecord.writer import TFRecordWriter
def documents():
    yield range(100)
    print("begun", flush=True)
    sys.stdin.read()
    yield range(100)
TFRecordWriter(Path({str(out)!r}), "other", 9, 1, 1).write(documents())"""
    left = []
    for killed in (True, False):
        process = subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"begun\n"
        (work,) = set(out.iterdir()) - set(left)
        left.append(work)
        if killed:
            process.kill()
            process.wait()
    (path,) = written(source, out)
    assert not left[0].exists() and left[1].exists()
    path.unlink()
    process.communicate(b"")
    assert process.returncode == 0 and (out / "other-00000-of-00001.tfrecord").exists() and not left[1].exists()
