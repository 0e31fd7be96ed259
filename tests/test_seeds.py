"""benchmarks/seeds.py: a run is made once, an interrupted one goes on, the sentence below a table is what it shows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import seeds, seeds_runs
from benchmarks.seeds_parts import PARTS
from benchmarks.seeds_runs import Diverged, Refused, Runs, Settings

SETTINGS = Settings(80, [1, 2])
WHERE = {"date": "2000-01-01", "hardware": "a CPU, 2 cores", "load": 0.5, "seconds": 60.0}


class Known:
    """In place of Runs: losses by what is in the name of a run."""

    def __init__(self, losses: dict[str, float], by_length: dict[str, list[float | None]] | None = None) -> None:
        self.losses, self.by_length, self.flags = losses, by_length or {}, {}
        self.config = Runs(Path("unused"), 1).config

    def train(self, name, config, flags, keep=False):
        self.flags[name] = flags
        loss = next(value for part, value in self.losses.items() if part in name)
        steps = int(flags[flags.index("--training-steps") + 1])
        return {"held_out_loss": loss, "steps": steps, "tokens": 0, "samples_per_second": loss, **WHERE}

    def evaluate(self, name, length):
        values = next(value for part, value in self.by_length.items() if part in name)
        value = values[(128, 256, 512).index(length)]
        return {"refused": f"no {length}"} if value is None else {"perplexity": value}

    def unigram(self, seed):
        return 7.0


def section(name: str, runs: Known) -> list[str]:
    found = PARTS[name].measure(runs, SETTINGS)
    return PARTS[name].lines(json.loads(json.dumps(found)))


ORDER = {"/gpt2-": 5.0, "/algpt2-unfactorised": 5.5, "/algpt2-512": 5.5, "/algpt2-256": 5.6, "/algpt2-": 5.7}


def test_the_order_of_shared_blocks():
    assert section("sharing", Known(ORDER))[-1].endswith("shows in the means.")
    table = section("sharing", Known(ORDER))
    assert any(line.startswith("| ALGPT2, E 1/6 | 32 |") for line in table)
    told = section("sharing", Known({**ORDER, "/algpt2-256": 5.4}))[-1]
    first, second = f"{math.exp(5.5):.2f}", f"{math.exp(5.4):.2f}"
    assert told.endswith(f"does not show: ALGPT2, E 2/3 ({first}) is not below ALGPT2, E 1/3 ({second}).")


def test_the_rate_at_which_postln_fails():
    told = section("postln", Known({"preln": 6.0, "postln-0.0003": 6.5, "postln": 7.2}))[-1]
    assert told.startswith("At 0.001 and 0.003 PreLN learns and PostLN fails")
    assert told.endswith("; at 0.0003 both learn.")
    assert section("postln", Known({"": 6.0}))[-1].startswith("There is no rate here")
    assert "not finite" in "\n".join(section("postln", Known({"preln": 6.0, "postln": math.inf})))


def test_alibi_beyond_its_length():
    worse = {"gpt-127-star": [90.0, 91.0, 89.0], "gpt-star-124m": [80.0, None, None]}
    told = section("alibi", Known({"": 6.0}, worse))
    assert told[-1] == "ALiBi is worse at 256 than at 128. With learned positions the program says: `no 256`"
    assert "| learned positions | 80.00 | refused | refused |" in told
    fine = {"gpt-127-star": [90.0, 88.0, 87.0], "gpt-star-124m": [80.0, 81.0, 82.0]}
    assert section("alibi", Known({"": 6.0}, fine))[-1].startswith("ALiBi gets no worse with length. With learned")


def test_speed_is_compared_within_a_round():
    told = section("speed", Known({"/1-": 11.0, "/3-": 12.0, "": 10.0}))
    assert told[-1] == ("Measured here: parallel residual +10.0%, fewer, wider heads in half the layers +20.0%.")
    assert any(line.startswith("| plain | 2,560 | 1.000 | 1.000 to 1.000 | 1.000 |") for line in told)


@pytest.mark.parametrize("name", PARTS)
def test_the_page_says_when_and_where_the_runs_of_a_part_were_made(name):
    found = PARTS[name].measure(Known({"": 6.0}, {"": [90.0, 88.0, 87.0]}), SETTINGS)
    told = " ".join(seeds.page({name: json.loads(json.dumps(found))}).split())
    assert "minutes, 2000-01-01, a CPU, 2 cores, load average 0.5 to 0.5." in told


@pytest.mark.parametrize("steps", [16, 80, 300])
def test_warm_up_and_fixed_length_take_equally_many_tokens(steps):
    runs = Known({"warmup/": 4.0, "": 5.0})
    told = PARTS["warmup"].lines(PARTS["warmup"].measure(runs, Settings(steps, [1])))
    flags = runs.flags["warmup/gpt-127-star-1"]
    stage, calls = (int(flags[flags.index(name) + 1]) for name in ("--sequence-warmup-steps", "--training-steps"))
    assert stage * (32 + 48 + 64 + 96) + (calls - 4 * stage) * 128 == steps * 128 and calls > 4 * stage
    assert told[-1].startswith("By the means it is lower with warm-up")


@pytest.fixture()
def made(tmp_path, monkeypatch):
    """Runs whose programs write what a run of train_gpt2.py leaves; the commands are kept."""
    runs, commands = Runs(tmp_path / "seeds", 1), []

    def program(command, log):
        commands.append(command)
        if "fail" in commands[-1]:
            raise KeyboardInterrupt
        folder = Path(command[command.index("--save-model-path") + 1])
        (folder / "epoch_0").mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "training_state.pt"):
            (folder / "epoch_0" / name).touch()
        columns = "step,epoch,tokens,loss,accuracy,learning_rate,samples_per_second,validation_loss"
        (folder / "curves.csv").write_text(f"{columns}\n10,0,800,5,0,1,2,\n20,0,1600,4,0,1,6,\n20,,1600,,,,,4.5\n")
        return ""

    monkeypatch.setattr(runs, "_run", program)
    return runs, commands


def test_a_run_is_made_once_and_an_interrupted_one_goes_on(made):
    runs, commands = made
    config = runs.config("gpt2", 2, 64, 2)
    with pytest.raises(KeyboardInterrupt):
        runs.train("x/y", config, ["--seed", "1", "fail"])
    with pytest.raises(KeyboardInterrupt):
        runs.train("x/y", config, ["--seed", "1", "fail"])
    assert [command[-1] for command in commands] == ["--overwrite", "latest"]
    first = runs.train("x/y", config, ["--seed", "1"])
    assert runs.train("x/y", config, ["--seed", "1"]) == first and len(commands) == 3
    assert {key: first[key] for key in ("steps", "tokens", "held_out_loss", "samples_per_second")} == {
        "steps": 20, "tokens": 1600, "held_out_loss": 4.5, "samples_per_second": 6.0
    }  # fmt: skip
    assert commands[2][-1] == "--overwrite" and not (runs.folder / "runs" / "x" / "y" / "epoch_0").exists()
    runs.train("x/y", config, ["--seed", "2"], keep=True)
    assert len(commands) == 4 and (runs.folder / "runs" / "x" / "y" / "epoch_0").is_dir()


def test_another_configuration_is_another_run(made):
    runs, commands = made
    runs.train("x/y", runs.config("gpt2", 2, 64, 2), ["--seed", "1"])
    runs.train("x/y", runs.config("gpt2", 3, 64, 2), ["--seed", "1"])
    assert len(commands) == 2


def test_a_run_that_diverges_has_no_loss(made, monkeypatch):
    runs, commands = made
    program = runs._run

    def diverging(command, log):
        program(command, log)
        raise Diverged("no longer finite")

    monkeypatch.setattr(runs, "_run", diverging)
    config = runs.config("gpt2", 2, 64, 2)
    assert runs.train("x/y", config, [])["held_out_loss"] is None
    assert runs.train("x/y", config, [])["held_out_loss"] is None and len(commands) == 1
    table = section("sharing", Known({**ORDER, "/algpt2-": None}))
    assert any(line.endswith("| inf | inf | inf |") for line in table) and table[-1].endswith("shows in the means.")


def test_programs_that_end_badly(tmp_path):
    runs = Runs(tmp_path, 1)
    with pytest.raises(Diverged):
        runs._run(["sh", "-c", "echo the loss is no longer finite; exit 1"], "b")
    assert runs._run(["sh", "-c", "echo fine"], "a/log") == "fine\n"
    with pytest.raises(Refused, match="^no such length$"):
        runs._run(["sh", "-c", "echo more; echo no such length >&2; exit 2"], "b")
    with pytest.raises(RuntimeError, match="(?s)exit status 3.*b.txt.*broken"):
        runs._run(["sh", "-c", "echo broken; exit 3"], "b")


def test_the_page_keeps_what_was_not_measured_now(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seeds_runs.Runs, "prepare", lambda self: None)
    monkeypatch.setattr(seeds, "Runs", lambda *_: Known({"tfchat-postln": 7.2, "": 6.0}))
    words = ["--page", str(tmp_path / "page.md"), "--json", str(tmp_path / "seeds.json"), "--steps", "80"]
    monkeypatch.setattr(Known, "prepare", lambda self: None, raising=False)
    assert seeds.main([*words, "--parts", "postln"]) == 0
    page = (tmp_path / "page.md").read_text()
    assert "PostLN fails" in page and page.count("Not measured yet: `make seeds PARTS=") == 4
    assert "6 runs, 6 minutes, 2000-01-01, a CPU, 2 cores, load average 0.5 to 0.5." in page
    assert seeds.main([*words, "--parts", "warmup"]) == 0
    page = (tmp_path / "page.md").read_text()
    assert (
        "PostLN fails" in page
        and "By the means it is the same with warm-up" in page
        and page.count("Not measured") == 3
    )


def test_the_page_says_what_all_parts_take():
    known = Known({"": 6.0}, {"": [90.0, 88.0, 87.0]})
    results = {name: part.measure(known, SETTINGS) for name, part in PARTS.items()}
    for number, run in enumerate(seeds.made(results)):
        run.update(seconds=60.0, processor_seconds=90.0 + number / 100)  # no two are alike
    both = results["warmup"]["rows"][0]["runs"][0]  # of alibi too, as with the real Runs
    results["alibi"]["rows"][0]["run"] = json.loads(json.dumps(both))
    told = " ".join(seeds.page(results).split())
    count = len(list(seeds.made(results)))
    assert f"All parts: {count - 1} runs, {count - 1} minutes, " in told, told[-200:]
    assert "10 runs, 10 minutes, 15 minutes of processor time, 2000-01-01" in told
    del both["processor_seconds"]
    told = " ".join(seeds.page(results).split())
    assert "4 runs, 4 minutes, 2000-01-01" in told, "a record of an earlier version has none"


def test_too_few_steps_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        seeds.main(["--steps", "15", "--threads", "0"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "--steps must be at least 16" in told and "--threads must be at least 1" in told
