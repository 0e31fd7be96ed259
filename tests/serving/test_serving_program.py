"""`python -m serving` as a program: refusals, the line that says where, draining, and exit statuses."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from warm_process import PipedProcess

pytest.importorskip("starlette", reason="requirements-serving.txt is not installed")
pytest.importorskip("uvicorn", reason="requirements-serving.txt is not installed")

import tiny_server  # noqa: E402

from serving import __main__ as program  # noqa: E402
from serving.flags import KEY_VARIABLE, parse_serving_args  # noqa: E402

WORDS = ("-c", "from serving.__main__ import main; raise SystemExit(main())")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
    "OMP_NUM_THREADS": "1",
}


class Server:
    """One in a process of its own, at a free port."""

    def __init__(self, *flags, **environment):
        words = [*WORDS, "--model", tiny_server.folder(), "--served-name", tiny_server.NAME, "--port", "0", *flags]
        self.process = PipedProcess(list(map(str, words)), {**ENVIRONMENT, **environment})
        self.line = self.process.stdout.readline()
        assert self.line.startswith(f"serving {tiny_server.NAME} at http://127.0.0.1:"), self.process.communicate(60)
        self.port = int(self.line.split("http://127.0.0.1:")[1].split()[0])

    def begin(self, **fields):
        """Sends a request; its connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = json.dumps({"model": tiny_server.NAME, "prompt": "x", **fields})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        return connection

    def end(self, number):
        self.process.send_signal(number)
        out, err = self.process.communicate(60)
        return self.process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_lets_what_is_under_way_end(number):
    """Streams that have begun, and requests that wait for their turn, are whole; nothing further is taken."""
    server = Server("--slots", 1)
    streams = [server.begin(max_tokens=28, stream=True, temperature=0).getresponse() for _ in range(3)]
    first = [stream.readline() for stream in streams[:1]]
    server.process.send_signal(number)
    parts = [stream.read() for stream in streams]
    assert first[0].startswith(b"data: ") and all(part.endswith(b"data: [DONE]\n\n") for part in parts)
    assert len({part.count(b"data: ") for part in parts[1:]}) == 1
    out, err = server.process.communicate(60)
    assert server.process.returncode == 0 and "under way" in err and "Traceback" not in err
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port)).close()


def test_a_second_signal_ends_it_at_once():
    """With more texts under way than it would make in the time the test has."""
    server = Server("--slots", 1, "--queue-len", 20_000, "--body-size", 2**22)
    stream = server.begin(max_tokens=28, n=128, prompt=["x"] * 100, stream=True).getresponse()
    assert stream.readline().startswith(b"data: ")
    server.process.send_signal(signal.SIGTERM)
    assert "SIGTERM: " in server.process.stderr.readline()
    status, err = server.end(signal.SIGINT)
    assert status == 0 and "Traceback" not in err


def test_the_key_of_the_environment_is_asked_for():
    server = Server(**{KEY_VARIABLE: "a secret"})
    assert server.begin().getresponse().status == 401
    assert server.end(signal.SIGTERM)[0] == 0


def refused(capsys, *flags):
    with pytest.raises(SystemExit) as end:
        program.main([str(flag) for flag in flags])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "nothing was started" in said
    return said


def test_flags_that_cannot_be_are_all_told(capsys, tmp_path):
    said = refused(
        capsys, "--model", tmp_path / "gone/far", "--port", 70000, "--slots", 0, "--int8", "--fp16", "--prots", 1,
        "--context", 8, "--prompt-len", 9,
    )  # fmt: skip
    for part in (
        "--model",
        "--port: '70000'",
        "--slots: '0'",
        "contradicts --fp16",
        "did you mean --port?",
        "longer than",
    ):
        assert part in said, said
    assert "--model: no checkpoint given" in refused(capsys)


def test_what_the_checkpoint_and_the_machine_say_is_told(capsys, tmp_path, monkeypatch):
    model = ("--model", tiny_server.folder())
    assert "has 32 positions" in refused(capsys, *model, "--context", 33, "--port", 0)
    assert "--host nowhere.invalid: no such address" in refused(capsys, *model, "--host", "nowhere.invalid")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused(capsys, *model, "--port", taken.getsockname()[1])
        assert "cannot be listened at" in said and "--port 0" in said
    assert "config.json" in refused(capsys, "--model", tmp_path, "--port", 0)
    monkeypatch.setenv(KEY_VARIABLE, "")
    assert KEY_VARIABLE in refused(capsys, *model, "--port", 0)
    monkeypatch.delenv(KEY_VARIABLE)
    monkeypatch.setattr(program, "EXTRA", ("starlette", "no_such_library"))
    assert "pip install -r requirements-serving.txt" in refused(capsys, *model, "--port", 0)


def test_a_model_whose_scores_are_not_finite_is_not_served(capsys, tmp_path):
    import torch

    from model.checkpoint import load_pretrained, save_pretrained

    gpt2 = load_pretrained(tiny_server.folder())
    gpt2.transformer.ln_f.weight.data.fill_(torch.nan)
    save_pretrained(gpt2, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(open(f"{tiny_server.folder()}/tokenizer.json", "rb").read())
    assert "not finite" in refused(capsys, "--model", tmp_path, "--port", 0)


def test_the_name_is_the_folders_if_none_is_given(tmp_path):
    assert parse_serving_args(["--model", str(tmp_path) + "/"]).served_name == tmp_path.name
    assert parse_serving_args(["--model", str(tmp_path), "--served-name", "it"]).served_name == "it"


def test_it_is_a_module_that_can_be_run():
    done = subprocess.run([sys.executable, "-m", "serving"], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("python -m serving: 1 problem")


def test_a_profile_is_left_behind(tmp_path):
    assert parse_serving_args(["--model", str(tmp_path), "--profile", str(tmp_path)]).profile == str(
        tmp_path / "serving_profile"
    )
    server = Server("--profile", tmp_path / "x_profile")
    assert server.begin(max_tokens=3).getresponse().status == 200
    status, err = server.end(signal.SIGTERM)
    folder = tmp_path / "x_profile" / "inference"
    assert status == 0 and f"poptorch: report in {folder}" in err and (folder / "report.html").is_file()
    record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert record["kind"] == "inference" and record["ranks"][0]["calls"] >= 3


def test_the_servers_own_sampling_reaches_the_texts():
    """Of --typical-p next to nothing one token is left each time: seeds make no difference."""
    server = Server("--typical-p", 1e-9)
    texts = []
    for seed in (1, 2):
        answer = server.begin(max_tokens=12, seed=seed, temperature=2).getresponse()
        texts.append(json.loads(answer.read())["choices"][0]["text"])
    assert server.end(signal.SIGTERM)[0] == 0
    assert texts[0] == texts[1] != ""
