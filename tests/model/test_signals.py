"""A signal ends a command with 128 + its number, its children too, and says how to go on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rhovae.checkpoints import read_checkpoint
from rhovae.commands import main
from rhovae.signals import Children, Stopped, stoppable

SMALL = ["--hidden", "8", "--latent-dim", "3", "--iwae-samples", "2"]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Start an interpreter with these arguments, and leave nothing of it."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A shell's background job, as a CI may be, ignores Ctrl-C, and so would all that it starts.
        pipes["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        started.append(
            subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes)
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # what it left may hold its pipes
            process.communicate(timeout=10)


def wait_for(holds: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def goes_on(said: str) -> list[str]:
    """The arguments of the command that is printed."""
    words = shlex.split(said.partition("go on with: ")[2])
    assert words[:3] == ["python", "-m", "rhovae"], said
    return words[3:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_training(tmp_path: Path, start: Start, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start("-m", "rhovae", "train", *SMALL, "--epochs", "100000", "--out", "my run; it's")
    run = tmp_path / "my run; it's"
    wait_for((run / "history.csv").exists)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {signal.Signals(number).name}" in said
    assert "Traceback" not in said
    done = read_checkpoint(run / "checkpoints" / "last.ckpt")["rhovae"]["history"]
    assert not list(run.rglob("*.part"))
    monkeypatch.chdir(tmp_path)
    if number == signal.SIGTERM:
        assert main([*goes_on(said), "--epochs", str(len(done) + 1)]) == 0
        assert (run / "metrics.json").is_file()
    else:
        assert goes_on(said) == ["train", "--resume", run.name]


def test_compare_goes_on(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SMALL, "--epochs", "30", "--posteriors", "diag", "iso"]
    process = start("-m", "rhovae", "compare", *flags)
    folder = tmp_path / "runs" / "compare-digits-1"
    wait_for((folder / "iso" / "history.csv").exists)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    before = (folder / "diag" / "metrics.json").stat().st_mtime_ns
    monkeypatch.chdir(tmp_path)
    assert main(goes_on(said)) == 0
    assert "diag: finished already" in capsys.readouterr().out
    assert (folder / "diag" / "metrics.json").stat().st_mtime_ns == before
    assert "| iso " in (folder / "table.md").read_text()
    assert main(["compare", *flags, "--batch-size", "9", "--resume", str(folder)]) == 2
    assert "with batch_size = 128" in capsys.readouterr().err
    assert main(["compare", *flags, "--resume", "elsewhere"]) == 2
    assert not Path("elsewhere").exists()


def test_reproduce_ends_its_children(tmp_path: Path, start: Start) -> None:
    flags = [
        "reproduce",
        "--dataset",
        "digits",
        *SMALL[:2],
        *SMALL[4:],
        "--latent-dims",
        "3",
        "--epochs",
        "100000",
    ]
    process = start("-m", "rhovae", *flags, "--posteriors", "diag", "iso", "--jobs", "2", "--out", "out")
    checkpoints = [
        tmp_path / "out" / "runs" / f"vanilla-d3-{p}-seed0" / "checkpoints" / "last.ckpt"
        for p in ("diag", "iso")
    ]
    wait_for(lambda: all(path.exists() for path in checkpoints))
    # as a terminal does for Ctrl-C, to all of its process group
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert goes_on(said) == [*flags, "--posteriors", "diag", "iso", "--jobs", "2", "--out", "out"]
    for path in checkpoints:
        assert read_checkpoint(path)["rhovae"]["history"]
        log = path.parents[1].with_suffix(".log").read_text()
        assert "stopped by SIGTERM; go on with: python -m rhovae train --resume" in log
    with (tmp_path / "out" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_evaluation_says_its_own_command(tmp_path: Path, start: Start) -> None:
    script = (
        "import sys, time, rhovae.evaluation as e\n"
        "from rhovae.commands import main\n"
        "def evaluate(*_, **__):\n"
        "    print('now', flush=True)\n"
        "    time.sleep(60)\n"
        "e.evaluate = evaluate\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    assert main(["train", *SMALL, "--epochs", "1", "--out", str(tmp_path / "r")]) == 0
    process = start("-c", script, "evaluate", "r", "--split", "train")
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert goes_on(said) == ["evaluate", "r", "--split", "train"]


def test_while_a_checkpoint_is_written(tmp_path: Path, start: Start) -> None:
    script = (
        "import os, signal, sys\n"
        "from rhovae.commands import main\n"
        "fsync, written = os.fsync, 0\n"
        "def stopping(descriptor):\n"
        "    global written\n"
        "    if '/.last.ckpt.' in os.readlink(f'/proc/self/fd/{descriptor}'):\n"
        "        written += 1\n"
        "        if written == 2:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return fsync(descriptor)\n"
        "os.fsync = stopping\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = start("-c", script, "train", *SMALL, "--epochs", "9", "--out", "r")
    process.communicate(timeout=120)
    assert process.returncode == 143
    checkpoints = tmp_path / "r" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]
    assert len(read_checkpoint(checkpoints / "last.ckpt")["rhovae"]["history"]) == 1


def test_a_second_signal_ends_at_once(start: Start) -> None:
    script = (
        "import sys, time\n"
        "from rhovae.signals import Children, stoppable\n"
        "import threading\n"
        "with stoppable():\n"
        "    children = Children()\n"
        "    threading.Thread(target=children.run, args=(['sleep', '1000'],), daemon=True).start()\n"
        "    try:\n"
        "        print('now', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('still', flush=True)\n"
        "        time.sleep(60)\n"
    )
    process = start("-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "still\n"
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    # the pipe closes only with the last process that holds it
    assert process.stdout.read() == ""


def test_a_child_that_will_not_end_is_killed_and_reaped() -> None:
    children, pids = Children(), []
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(99)"
    reader, writer = os.pipe()

    def run() -> None:
        pids.append(children.run([sys.executable, "-c", stubborn], stdout=writer))

    thread = threading.Thread(target=run)
    thread.start()
    assert os.read(reader, 1) == b"1"
    began = time.monotonic()
    children.end(grace=0.2)
    thread.join(5)
    assert pids == [-signal.SIGKILL]
    assert time.monotonic() - began < 5
    # nothing is started any more
    assert children.run(["false"]) == -signal.SIGTERM
    os.close(reader)
    os.close(writer)


def test_handlers_are_put_back_and_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    mine = signal.getsignal(signal.SIGTERM)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Stopped, match="SIGTERM") as stopped, stoppable():
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.status == 143
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_reader_that_has_had_enough(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m rhovae doctor | true; echo ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""
