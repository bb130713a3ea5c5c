"""The runner of the GPU benchmark, with steps that crash and hang, and a rehearsal of its cheap steps.

The full rehearsal is `make gpu ARGS="--device cpu"`: up to 4 minutes. None of these tests measures time.
"""

import importlib
import json
import re
import signal
import subprocess
import sys
import tarfile
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from rich.console import Console

from benchmarks import gpu
from benchmarks.gpu import output as output_module
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.output import Output, OutputError
from benchmarks.gpu.plan import PLAN, plan
from benchmarks.gpu.runner import LEAST_SECONDS, Step, run_steps, step_environment
from benchmarks.gpu.search import idle_seconds
from benchmarks.gpu.table import number
from tests.conftest import ROOT

# Runs synthetic steps as `python -m benchmarks.gpu` runs the plan's.
RUNNER = """
import json, sys, time
from pathlib import Path
from benchmarks.gpu.__main__ import run
from benchmarks.gpu.output import Output
from benchmarks.gpu.runner import Step

output = Output(Path(sys.argv[1]))
codes = json.loads(sys.argv[2])
output.prepare(list(codes), keep=False)
programs = {name: [sys.executable, "-c", code] for name, code in codes.items()}
steps = [Step(name=name, command=program, limit_seconds=2) for name, program in programs.items()]
sys.exit(run(steps, output, device="cpu", deadline=time.monotonic() + 60))
"""
GOOD = """print('{"images": 1}'); print("some text"); print('{"seconds": 2.5}')"""
FAILS = """print('{"images": 2}', flush=True); raise RuntimeError("there is no [data]")"""
CRASHES = """
import os, signal
print('{"images": 3}', flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
# A daemon has its own session, and init as its parent.
LEAVES_A_DAEMON = """
import os, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(write, str(os.getpid()).encode())
        time.sleep(600)
    os._exit(0)
print('{"daemon": %s}' % os.read(read, 20).decode(), flush=True)
"""
HANGS = (
    LEAVES_A_DAEMON.replace(
        "import os, time", "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    )
    + "time.sleep(600)"
)


def start(folder: Path, codes: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUNNER, str(folder), json.dumps(codes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_steps_that_fail_crash_and_hang_leave_the_others_their_turn_and_their_rows(tmp_path: Path) -> None:
    codes = {
        "fails": FAILS,
        "crashes": CRASHES,
        "hangs": HANGS,
        "leaves-a-daemon": LEAVES_A_DAEMON,
        "good": GOOD,
    }
    process = start(tmp_path / "out", codes)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1, text
    output = Output(tmp_path / "out")
    rows = output.rows()
    assert [(row["what"], row["ok"], row["error"]) for row in rows] == [
        ("fails", False, "RuntimeError: there is no [data]"),
        ("crashes", False, "killed by SIGKILL"),
        ("hangs", False, "not done after 2 s"),
        ("leaves-a-daemon", True, ""),
        ("good", True, ""),
    ]
    daemons = [row["figures"].pop("daemon") for row in rows if "daemon" in row["figures"]]
    assert len(daemons) == 2 and not any(map(is_running, daemons))
    assert [row["figures"] for row in rows] == [
        {"images": 2},
        {"images": 3},
        {},
        {},
        {"images": 1, "seconds": 2.5},
    ]
    for shown in (text, output.table_file.read_text()):
        assert "there is no [data]" in shown and "not done after 2 s" in shown and "seconds 2.5" in shown
    with tarfile.open(output.archive_file) as archive:
        log = archive.extractfile("good/0/good.log")
        assert log is not None and b"some text" in log.read()
    written = pd.read_parquet(output.parquet_file)
    assert list(written["what"]) == list(codes) and {"gpu", "torch", "cores"} <= set(written)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("rows.jsonl", "table.txt", "rows.parquet", "logs.tar"),
    }
    for length in (1, len(written)):
        out = StringIO()
        gpu.show(Console(file=out, width=160), written[:length])
        assert "fails" in out.getvalue() and ("seconds 2.5" in out.getvalue()) == (length > 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_the_rows_and_stops_the_step(number: signal.Signals, tmp_path: Path) -> None:
    sleeps = "import os, time; print('{\"pid\": %d}' % os.getpid(), flush=True); time.sleep(600)"
    process = start(tmp_path / "out", {"good": GOOD, "sleeps": sleeps, "later": GOOD})
    log = Output(tmp_path / "out").log("sleeps")
    until = time.monotonic() + 60
    while not (log.exists() and log.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text
    output = Output(tmp_path / "out")
    good, sleeps_row = output.rows()
    assert good["ok"] and (sleeps_row["what"], sleeps_row["error"]) == ("sleeps", "interrupted")
    assert not is_running(sleeps_row["figures"]["pid"])
    assert output.table_file.exists() and output.parquet_file.exists() and output.archive_file.exists()


def test_the_deadline_stops_a_step_and_leaves_the_next_ones_without_time(tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    output.prepare([], keep=False)
    steps = [
        Step(name=name, command=[sys.executable, "-c", "import time; time.sleep(600)"], limit_seconds=600)
        for name in ("first", "second")
    ]
    rows = list(
        run_steps(
            steps,
            output,
            device="cpu",
            folder=ROOT,
            environment=step_environment(ROOT, "cpu"),
            deadline=time.monotonic() + LEAST_SECONDS + 1,
        )
    )
    assert rows == output.rows()
    first, second = rows
    assert re.fullmatch(r"not done after \d s", first["error"]) and not first["ok"]
    assert second["error"] == "no time left" and not second["ok"] and second["seconds"] == 0


def test_a_program_that_cannot_be_started_is_a_failed_step(tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    output.prepare([], keep=False)
    step = Step(name="absent", command=[str(tmp_path / "absent")], limit_seconds=5)
    (row,) = run_steps(
        [step], output, device="cpu", folder=ROOT, environment={}, deadline=time.monotonic() + 60
    )
    assert not row["ok"] and "cannot be started" in row["error"]


def test_the_cheap_steps_can_be_rehearsed_on_a_cpu(tmp_path: Path, mnist_dir: Path) -> None:
    cheap = ["probe", "tests", "loop", "memory", "mps"]
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--only", *cheap]
    done = subprocess.run(
        [*command, "--data-dir", str(mnist_dir), "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = Output(tmp_path / "out")
    rows = {row["what"]: row for row in output.rows()}
    assert list(rows) == cheap and all(row["ok"] for row in rows.values())
    assert {name: row["skipped"] for name, row in rows.items() if row["skipped"]} == dict.fromkeys(
        ("tests", "memory", "mps"), "no CUDA"
    )
    assert rows["loop"]["figures"]["fp32 adamw graph of 10 loss differs by"] == 0  # on a CPU both are eager
    assert "steps of batch 64" in output.profile_file.read_text()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--only", "serch"], "NAME is serch, but must be one of probe, warm-up"),
        (["--seconds", "0"], "--seconds is 0, but must be above 0"),
        (["--seconds", "nan"], "--seconds is nan, but must be above 0"),
        (["--seconds", "long"], "invalid float value: 'long'"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--device", "cuda"], "--device is cuda, but torch sees no GPU"),
        (["--out", "notes"], "--out is notes, which has mine.txt in it, but must be new"),
        (["--out", "notes/mine.txt"], "--out is notes/mine.txt, but must be a folder"),
    ],
)
def test_a_bad_flag_is_one_line(
    flags: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--device", "cpu", *flags])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"


def test_earlier_rows_stay_where_steps_are_repeated_and_go_where_all_are_run(tmp_path: Path) -> None:
    output = Output(tmp_path)
    output.prepare([], keep=False)
    output.add_row({"what": "probe"})
    output.rows_file.write_text(output.rows_file.read_text() + '{"what": "lo')  # killed while it wrote
    output.prepare([], keep=True)
    output.add_row({"what": "loop"})
    assert [row["what"] for row in output.rows()] == ["probe", "loop"]
    output.prepare([], keep=False)
    assert output.rows() == []


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"which has rows\.jsonl in it"):
        Output(tmp_path).prepare([], keep=True)


def test_of_a_failed_step_the_other_logs_are_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_module, "LOG_BYTES", 10)
    output = Output(tmp_path / "out")
    output.prepare([], keep=False)
    scratch = tmp_path / "scratch" / "logs"
    scratch.mkdir(parents=True)
    (scratch / "worker.err").write_text("why")
    (scratch / "model.pt").write_text("large")
    for failed in (False, True):
        output.log("loop").write_text("first " + "-" * 100 + " last")
        output.archive(output.log("loop"), tmp_path / "scratch" if failed else None)
    with tarfile.open(output.archive_file) as archive:
        contents = {member.name: archive.extractfile(member) for member in archive}
        texts = {name: file.read() for name, file in contents.items() if file}
    assert texts == {
        "loop/0/loop.log": b"first\n[...]\n last",
        "loop/1/loop.log": b"first\n[...]\n last",
        "loop/1/logs/worker.err": b"why",
    }
    assert not output.log("loop").exists()


def test_idle_time_is_that_between_two_trials_of_a_process() -> None:
    lines: list[dict[str, Any]] = [
        {"trial_id": "a", "pid": 1, "epoch_seconds": 2.0, "time": 102.0},
        {"trial_id": "a", "pid": 1, "epoch_seconds": 2.0, "time": 104.5},  # half a second within a trial
        {"trial_id": "b", "pid": 1, "epoch_seconds": 1.0, "time": 106.0},  # half a second between two trials
        {"trial_id": "c", "pid": 2, "epoch_seconds": 3.0, "time": 103.0},
        {"trial_id": "d", "pid": 2, "epoch_seconds": 2.0, "time": 106.5},  # a second and a half
    ]
    assert idle_seconds(lines) == {
        "idle seconds between trials, median": 1.0,
        "idle seconds between trials, most": 1.5,
        "idle seconds between trials, mean": 1.0,
        "busy fraction of the slots": 10 / (2 * 6.5),
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(25600, "25,600"), (2.456, "2.46"), (123.4, "123"), (None, "–"), (True, "True"), ("[x]", "\\[x]")],
)
def test_a_figure_has_three_digits(value: Any, text: str) -> None:
    assert number(value) == text


def test_every_step_has_its_module_and_its_row_in_the_docs() -> None:
    for planned in PLAN.values():
        assert callable(importlib.import_module(f"benchmarks.gpu.{planned.module}").run)
    rows = re.findall(
        r"^\| `([a-z0-9.-]+)` \|", (ROOT / "benchmarks" / "README.md").read_text(), re.MULTILINE
    )
    assert rows == list(PLAN)
    steps = plan(["blog", "probe"], device="cpu", data_dir=Path("data"), out=Path("out"))
    assert [step.name for step in steps] == ["probe", "blog"]
    assert str(Path("data").absolute()) in steps[0].command


def test_the_script_that_packs_is_sound_bash() -> None:
    script = ROOT / "benchmarks" / "gpu" / "pack.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert done.returncode == 1 and "where to write the archive" in done.stderr
