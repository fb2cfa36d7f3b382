"""A reproduction is resumable, never mixes settings, and ends in one report."""

from __future__ import annotations

import fcntl
import json
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from rhovae.commands import main
from rhovae.files import RunError
from rhovae.report import write_report
from rhovae.reproduction import finished, read_plan, sole_user
from rhovae.runs import Run

FLAGS = ["reproduce", "--dataset", "digits", "--models", "vanilla", "--posteriors", "diag", "published"]
FLAGS += ["--latent-dims", "3", "--seeds", "2", "--epochs", "2", "--hidden", "8", "--iwae-samples", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reproduce") / "out"
    assert main([*FLAGS, "--jobs", "2", "--out", str(out)]) == 0
    return out


def test_report_has_means_over_seeds_and_both_figures(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    results = json.loads((folder / "results.json").read_text())
    assert [(r["posterior"], r["seed"]) for r in results] == [
        ("diag", 0),
        ("published", 0),
        ("diag", 1),
        ("published", 1),
    ]
    losses = [r["negative_elbo"] for r in results if r["posterior"] == "diag"]
    error = statistics.stdev(losses) / 2**0.5
    assert f"| {statistics.fmean(losses):.2f} ± {error:.2f} |" in report
    for words in ("## vanilla, d = 3", "2 seeds, mean ± standard error", "IWAE-2", "`reported`", "Made by"):
        assert words in report
    for name in ("curves-vanilla-d3.png", "samples-vanilla-d3.png"):
        assert f"({name})" in report
        assert (folder / name).stat().st_size > 1000
    for result in results:
        reported = result["reported"]
        if result["posterior"] == "published":
            assert reported < result["negative_elbo"]
        else:
            assert reported == pytest.approx(result["negative_elbo"])


def test_again_trains_nothing_and_a_stopped_run_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = sorted((folder / "runs").glob("*/metrics.json"))
    before = [json.loads(path.read_text()) for path in runs]
    written = [path.stat().st_mtime_ns for path in runs]
    assert main([*FLAGS, "--out", str(folder)]) == 0
    assert "4 runs, 4 of them finished already" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in runs] == written

    # one stopped after its last checkpoint, one before it had any settings
    runs[0].unlink()
    shutil.rmtree(runs[1].parent)
    (runs[1].parent / "checkpoints").mkdir(parents=True)
    assert main([*FLAGS, "--out", str(folder)]) == 0
    assert "4 runs, 2 of them finished already" in capsys.readouterr().out
    after = [json.loads(path.read_text()) for path in runs]
    for old, new in zip(before, after, strict=True):
        assert {**new, "seconds_per_epoch": 0} == {**old, "seconds_per_epoch": 0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "3"], "begun with epochs = 2, now it is 3"),
        (["--seeds", "3"], "begun with seeds = 2, now it is 3"),
        (["--posteriors", "diag"], "begun with posteriors = ['diag', 'published']"),
        (["--posteriors", "diag", "diag"], "named twice"),
        (["--posteriors", "full"], "unknown posterior 'full'; known: diag, iso, rho, ar1"),
        (["--models", "info", "--hidden", "0"], "hidden must be at least 1"),
    ],
)
def test_a_report_never_mixes_settings(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main([*FLAGS, *flags, "--out", str(folder)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_other_folders_and_other_users_are_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").write_text("data")
    assert main([*FLAGS, "--out", str(tmp_path)]) == 2
    assert "holds no plan.yaml" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main([*FLAGS, "--out", str(folder)]) == 2
    assert "another process is at work" in capsys.readouterr().err


def test_the_lock_lasts_as_long_as_the_last_run(tmp_path: Path) -> None:
    with sole_user(tmp_path) as lock:
        orphan = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    with pytest.raises(RunError, match="at work"), sole_user(tmp_path):
        pass
    orphan.kill()
    orphan.wait()
    with sole_user(tmp_path):
        pass


def test_no_report_on_unfinished_or_foreign_runs(folder: Path) -> None:
    plan = read_plan(folder)
    run = folder / "runs" / "vanilla-d3-diag-seed0"
    metrics = (run / "metrics.json").read_text()
    (run / "metrics.json").unlink()
    with pytest.raises(RunError, match="vanilla-d3-diag-seed0 is not finished"):
        write_report(plan, folder, ["test"], print)
    (run / "metrics.json").write_text(metrics)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("batch_size: 128", "batch_size: 64"))
    with pytest.raises(Exception, match="with batch_size = 64, its report needs 128"):
        write_report(plan, folder, ["test"], print)
    (run / "config.yaml").write_text(config)


def test_a_run_that_was_resumed_on_its_own_is_not_mixed_in(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    run = copy / "runs" / "vanilla-d3-diag-seed0"
    before = json.loads((run / "fid.json").read_text())
    assert main(["train", "--resume", str(run), "--epochs", "3", "--iwae-samples", "4"]) == 0
    assert main([*FLAGS, "--out", str(copy)]) == 2
    assert "holds a run with epochs = 3, its report needs 2" in capsys.readouterr().err
    # figures of another length than the settings say count as none: the run is evaluated again
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("iwae_samples: 4", "iwae_samples: 2"))
    wanted = Run(run).config()
    assert not finished(copy, wanted)
    # the FID is that of the weights that are there
    plan = replace(read_plan(copy), posteriors=("diag",), seeds=1, settings=wanted)
    assert main(["train", "--resume", str(run)]) == 0
    write_report(plan, copy, ["test"], print)
    after = json.loads((run / "fid.json").read_text())
    assert after["weights"] != before["weights"]
    assert after["fid"] != before["fid"]


def test_a_config_file_says_what_is_not_said_by_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = "model: beta\nposterior: iso\nlatent_dim: 2\ndataset: digits\nhidden: 8\nepochs: 1\n"
    (tmp_path / "c.yaml").write_text(settings + "iwae_samples: 2\n")
    out = tmp_path / "out"
    command = ["reproduce", "--config", str(tmp_path / "c.yaml"), "--seeds", "1", "--out", str(out)]
    assert main(command) == 0
    plan = read_plan(out)
    assert (plan.models, plan.posteriors, plan.latent_dims) == (("beta",), ("iso",), (2,))
    (tmp_path / "c.yaml").write_text(settings + "seed: 3\n")
    assert main(command) == 2
    assert "seed is 3, but a report has the seeds 0 to --seeds" in capsys.readouterr().err


def test_a_failed_run_is_named_and_the_others_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # a file where a run's folder should be
    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    (out / "runs" / "vanilla-d3-diag-seed0").write_text("in the way")
    (out / "plan.yaml").touch()
    monkeypatch.setattr("rhovae.reproduction.keep_plan", lambda plan, folder: None)
    flags = [*FLAGS, "--seeds", "1", "--posteriors", "diag", "iso"]
    assert main([*flags, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "1 of 2 runs failed" in said.err
    assert "vanilla-d3-diag-seed0.log" in said.err
    assert (out / "runs" / "vanilla-d3-iso-seed0" / "metrics.json").is_file()
