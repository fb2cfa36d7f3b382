"""Objectives in training: weights, warm-up, free bits, MMD; and the end of a run that is no longer finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rhovae.checkpoints import read_checkpoint
from rhovae.commands import main
from rhovae.config import TrainConfig
from rhovae.data import load_dataset
from rhovae.files import RunError
from rhovae.runs import Run
from rhovae.training import VAETask, fit, read_history

CONFIG = TrainConfig(epochs=6, hidden=32, latent_dim=6, posterior="ar1", learning_rate=3e-3)


def last(folder: Path, **changes: Any) -> dict[str, float]:
    config = CONFIG.replace(**changes)
    run = Run.create(config, folder)
    fit(run, config, load_dataset("digits"))
    return read_history(run.history_file)[-1]


def test_beta_and_its_warm_up_are_used(tmp_path: Path) -> None:
    plain = last(tmp_path / "plain")
    strong = last(tmp_path / "strong", beta=8.0)
    model = last(tmp_path / "model", model="beta")
    late = last(tmp_path / "late", beta=8.0, kl_warmup=1e6)
    assert strong["test_kl"] < model["test_kl"] < plain["test_kl"] < late["test_kl"]
    # the log has the negative ELBO, whatever is minimised
    assert strong["test_loss"] == pytest.approx(strong["test_reconstruction"] + strong["test_kl"])


def test_free_bits_are_free(tmp_path: Path) -> None:
    # under a line above all dimensions the KL costs nothing; under one below all it costs itself
    free = last(tmp_path / "free", epochs=2, beta=20.0, free_bits=1e6)
    none = last(tmp_path / "none", epochs=2, beta=0.0)
    assert free["test_kl"] == pytest.approx(none["test_kl"], rel=1e-5)
    whole = last(tmp_path / "whole", epochs=2, beta=20.0)
    charged = last(tmp_path / "charged", epochs=2, beta=20.0, free_bits=1e-9)
    assert charged["test_kl"] == pytest.approx(whole["test_kl"], rel=1e-4)
    between = last(tmp_path / "between", epochs=2, beta=20.0, free_bits=0.7)
    assert whole["test_kl"] < between["test_kl"] < free["test_kl"]


def test_mmd_brings_the_aggregate_to_the_prior(tmp_path: Path) -> None:
    def mean_square(name: str, weight: float) -> float:
        config = CONFIG.replace(beta=0.0, mmd=weight)
        data = load_dataset("digits")
        model = fit(Run.create(config, tmp_path / name), config, data)
        with torch.no_grad():
            return model.encode(data.test.pixels(slice(None))).rsample(key=(1, 1)).square().mean().item()

    free, drawn = mean_square("free", 0.0), mean_square("drawn", 300.0)
    assert abs(drawn - 1.0) < 0.4 < abs(free - 1.0)


def test_two_processes_share_free_bits(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    flags = ["--precision", "64", "--hidden", "16", "--latent-dim", "4", "--batch-size", "100"]
    flags += ["--epochs", "1", "--free-bits", "0.3", "--kl-warmup", "2", "--beta", "2"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rhovae", "train"]
    done = run_python(*launch, *flags, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert main(["train", *flags, "--out", str(tmp_path / "one")]) == 0
    one, two = (read_checkpoint(Run.open(tmp_path / n).checkpoint)["state_dict"] for n in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-9, atol=1e-9)


def test_what_needs_the_whole_batch_is_refused_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for flags, words in ((["--mmd", "1"], "the MMD term"), (["--model", "info", "--mmd", "0"], "batch norm")):
        assert main(["train", *flags]) == 2
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("poison", "words"),
    [
        ("weight", "the parameter decoder.2.weight"),
        ("output", "the output of the layer encoder.2 (ReLU)"),
        ("scale", "the KL"),
        ("gradient", "the gradient of head.linear.bias"),
    ],
)
def test_nan_stops_with_the_batch_and_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: str, words: str
) -> None:
    step = VAETask.training_step

    def poisoned(self: VAETask, batch: Any, index: int) -> Any:
        if self.global_step == 3:
            if poison == "weight":
                self.model.decoder[2].weight.data[1, 1] = float("nan")  # type: ignore[index]
            elif poison == "output":
                self.model.encoder[2].register_forward_hook(lambda m, i, o: o / 0.0)  # type: ignore[index]
            elif poison == "scale":  # finite itself, but e^80 squared is not
                latent_dim = self.model.latent_dim
                self.model.head.linear.bias.data[latent_dim] = 80.0
            else:
                self.model.head.linear.bias.register_hook(lambda g: g * float("inf"))
        return step(self, batch, index)

    monkeypatch.setattr(VAETask, "training_step", poisoned)
    run = Run.create(CONFIG, tmp_path / "r")
    with pytest.raises(RunError) as caught:
        fit(run, CONFIG, load_dataset("digits"))
    assert f"training stopped at step 3: {words} is not finite" in str(caught.value)
    kept = torch.load(tmp_path / "r" / "not-finite-0.pt", weights_only=True)
    assert kept["images"].shape == (128, 1, 8, 8)
    assert kept["step"] == 3
    assert set(kept["state_dict"]) >= {"head.linear.weight"}
    # the weights on disk are those before the trouble, if any
    assert not run.checkpoint.exists()


def test_nan_of_the_last_update_stops_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "r")
    flags = ["--batch-size", "2000", "--learning-rate", "1e30", "--epochs", "1", "--hidden", "8"]
    assert main(["train", *flags, "--out", out]) == 2
    assert "training stopped at step 1: the " in capsys.readouterr().err
    assert (tmp_path / "r" / "not-finite-0.pt").is_file()
    assert not (tmp_path / "r" / "metrics.json").exists()


def test_settings_out_of_range(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--beta", "--kl-warmup", "--free-bits", "--mmd"):
        assert main(["train", flag, "-1"]) == 2
        assert "must be at least 0 and finite, got -1.0" in capsys.readouterr().err
