"""The command line from end to end on the bundled digits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

import rhovae_ext
from rhovae.checkpoints import read_checkpoint
from rhovae.commands import main
from rhovae.data import load_dataset
from rhovae.evaluation import evaluate, standard_error
from rhovae.runs import Run
from rhovae.training import load_model, read_history

SMALL = ["--hidden", "16", "--latent-dim", "4", "--iwae-samples", "8", "--epochs", "1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_evaluate_sample(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--posterior", "ar1"]) == 0
    folder = here / "runs" / "digits-vanilla-ar1-1"
    said = capsys.readouterr().out
    assert "runs/digits-vanilla-ar1-1" in said
    pictures = {"samples.png", "reconstructions.png", "curves.png", "rho.png"}
    assert pictures <= {p.name for p in folder.iterdir()}
    for picture in pictures:
        pixels = matplotlib.image.imread(folder / picture)
        assert pixels.std() > 0.01
    assert list((folder / "tensorboard").glob("events*"))
    assert len(read_history(folder / "history.csv")) == 1
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["images"] == 360
    assert metrics["negative_elbo"] == pytest.approx(metrics["reconstruction"] + metrics["kl"])
    assert metrics["nll"] < metrics["negative_elbo"]
    assert 0 <= metrics["active_units"] <= metrics["latent_dim"] == 4

    assert main(["evaluate", str(folder), "--output", "again.json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == json.loads((here / "again.json").read_text())
    # the checkpoint holds what was evaluated at the end of training
    assert {k: again[k] for k in ("negative_elbo", "kl", "nll")} == {
        k: metrics[k] for k in ("negative_elbo", "kl", "nll")
    }
    assert main(["evaluate", str(folder), "--split", "train", "--iwae-samples", "2"]) == 0
    train = json.loads(capsys.readouterr().out)
    assert (train["images"], train["iwae_samples"]) == (1437, 2)

    assert main(["sample", str(folder), "--count", "10", "--out", "pics"]) == 0
    assert {p.name for p in (here / "pics").iterdir()} == {"samples.png", "reconstructions.png"}
    first = (here / "pics/samples.png").read_bytes()
    assert main(["sample", "--from", str(folder), "--seed", "1", "--out", "pics"]) == 0
    assert (here / "pics/samples.png").read_bytes() == first
    assert (here / "pics/samples-2.png").is_file()


def test_a_run_is_never_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL]) == 0
    assert main(["train", *SMALL]) == 0
    assert sorted(p.name for p in (here / "runs").iterdir()) == [
        "digits-vanilla-rho-1",
        "digits-vanilla-rho-2",
    ]
    before = (here / "runs/digits-vanilla-rho-1/metrics.json").read_bytes()
    capsys.readouterr()
    for command in (["train"], ["compare"], ["demo"]):
        assert main([*command, *SMALL, "--out", "runs/digits-vanilla-rho-1"]) == 2
        assert "never overwrites" in capsys.readouterr().err
    assert (here / "runs/digits-vanilla-rho-1/metrics.json").read_bytes() == before


def test_config_file_flags_and_resume(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "c.yaml").write_text("hidden: 12\nlatent_dim: 3\nepochs: 5\niwae_samples: 2\nposterior: iso\n")
    assert main(["train", "--config", "c.yaml", "--epochs", "1", "--out", "r"]) == 0
    run = Run.open(Path("r"))
    assert (run.config().hidden, run.config().epochs, run.config().posterior) == (12, 1, "iso")
    assert main(["train", "--resume", "r", "--epochs", "2"]) == 0
    assert len(read_history(run.history_file)) == 2
    assert json.loads(run.metrics_file.read_text())["epochs"] == 2
    assert len(json.loads(run.environment_file.read_text())) == 2
    capsys.readouterr()
    assert main(["train", "--resume", "r", "--hidden", "5"]) == 2
    assert "--hidden 5 differs from the 12" in capsys.readouterr().err
    assert main(["train", "--resume", "r", "--config", "c.yaml"]) == 2
    # what a resume changed stays
    assert run.config().epochs == 2
    assert main(["train", "--resume", "r"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "r", "--epochs", "1"]) == 2
    assert "r has 2 epochs behind it, more than --epochs 1" in capsys.readouterr().err
    assert run.config().epochs == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--posterior", "full"],
            "rhovae train: unknown posterior 'full'; known: diag, iso, rho, ar1",
        ),
        (["train", "--epochs", "0"], "epochs must be at least 1"),
        (["train", "--dataset", "mnist"], "--data-dir"),
        (
            ["train", "--dataset", "fashion-mnist", "--data-dir", "nowhere"],
            "apt-get install dataset-fashion-mnist",
        ),
        (["train", "--config", "none.yaml"], "cannot read the config file none.yaml"),
        (["train", "--resume", "none"], "not the folder of a run"),
        (["train", "--backend", "cpu"], "unknown backend 'cpu'; known: auto, native"),
        (["compare", "--posteriors", "rho", "full"], "unknown posterior 'full'"),
        (["compare", "--posteriors", "rho", "rho"], "a posterior is named twice"),
        (["train", "--threads", "100000"], "threads must be at most 4096"),
        (["train", "--epochs", "1", "--out", "/proc/foo"], "/proc/foo"),
        (["sample", "--from", "none"], "none does not exist"),
        (["evaluate", "none"], "not the folder of a run"),
        (["sample", "none"], "not the folder of a run"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("precision", ["64", "bf16-mixed", "bf16-true"])
def test_precisions(here: Path, precision: str) -> None:
    assert main(["train", *SMALL, "--precision", precision, "--out", "r", "--seed", "3"]) == 0
    state = read_checkpoint(Path("r/checkpoints/last.ckpt"))["state_dict"]
    dtype = {"64": torch.float64, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}[precision]
    assert {value.dtype for value in state.values()} == {dtype}
    assert main(["evaluate", "r"]) == 0
    loss = read_history(Path("r/history.csv"))[0]["test_loss"]
    assert loss < 50


def test_compare_prints_a_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *SMALL, "--posteriors", "diag", "ar1", "--out", "c"]) == 0
    said = capsys.readouterr().out
    table = (here / "c/table.md").read_text()
    assert table in said
    assert [line.split("|")[1].strip() for line in table.splitlines()] == [
        "posterior",
        "-----------",
        "diag",
        "ar1",
    ]
    results = json.loads((here / "c/results.json").read_text())
    assert [r["posterior"] for r in results] == ["diag", "ar1"]
    assert results[0]["mean_abs_rho"] == 0.0
    assert (here / "c/ar1/rho.png").is_file()
    assert not (here / "c/diag/rho.png").exists()


def test_threads_are_set_and_kept_with_the_run(here: Path) -> None:
    assert main(["train", *SMALL, "--threads", "2", "--out", "r"]) == 0
    assert torch.get_num_threads() == 2
    assert Run.open(Path("r")).config().threads == 2
    torch.set_num_threads(1)
    assert main(["evaluate", "r"]) == 0
    assert torch.get_num_threads() == 2


def test_demo_names_its_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *SMALL, "--out", "d"]) == 0
    said = capsys.readouterr().out
    for posterior in ("diag", "rho", "ar1"):
        assert f"d/{posterior}/samples.png" in said
        assert f"| {posterior} " in said


def test_doctor_lists_backends_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert torch.__version__ in said
    for name, reason in rhovae_ext.available_backends().items():
        line = next(line for line in said.splitlines() if line.split()[:1] == [name])
        assert (reason or "available") in line


@pytest.mark.parametrize(
    "command", ["", "train", "evaluate", "sample", "compare", "reproduce", "demo", "doctor"]
)
def test_help_teaches(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert f"python -m rhovae {command}" in said
    assert "example:" in said


def test_quiet_where_there_is_no_terminal(here: Path, run_python: Callable[..., Any]) -> None:
    done = run_python("-m", "rhovae", "train", *SMALL)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) < 10
    assert "Epoch" not in done.stdout + done.stderr
    unwelcome = [
        line for line in done.stderr.splitlines() if "rhovae_ext" not in line and "native" not in line
    ]
    assert not [line for line in unwelcome if "Warning" in line], done.stderr


def test_evaluation_does_not_depend_on_the_batch(here: Path) -> None:
    assert main(["train", *SMALL, "--out", "r", "--precision", "64"]) == 0
    data = load_dataset("digits")
    run = Run.open(Path("r"))
    model = load_model(run, run.config(), data).double()
    a, b = (evaluate(model, data.test, iwae_samples=9, batch_size=n, chunk=4, seed=1) for n in (360, 77))
    for name, value in a.as_dict().items():
        assert b.as_dict()[name] == pytest.approx(value, rel=1e-9)


def test_what_the_machine_lacks_is_said_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["train", "--precision", "16-mixed"]) == 2
    assert "needs a GPU" in capsys.readouterr().err
    missing = [name for name, reason in rhovae_ext.available_backends("cpu").items() if reason]
    for name in missing:
        assert main(["train", "--backend", name]) == 2
        assert f"backend {name!r} is not available" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_standard_error_is_that_of_the_mean() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    assert standard_error(values) == pytest.approx(np.std(values.numpy(), ddof=1) / 2)
    assert standard_error(values[:1]) == 0.0
