"""Safetensors, model cards, and checkpoints that do not fit."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest
import torch

from rhovae.checkpoints import load_weights
from rhovae.commands import main
from rhovae.data import load_dataset
from rhovae.files import RunError
from rhovae.models import make_model, random_order
from rhovae.runs import Run
from rhovae.training import load_model
from rhovae.weights import load_vae

SMALL = ["--hidden", "16", "--latent-dim", "4", "--iwae-samples", "2", "--epochs", "1"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--model", "cnn", "--posterior", "ar1", "--out", "r"]) == 0
    return Run.open(Path("r"))


def test_round_trip_without_the_data(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_model(run, run.config(), load_dataset("digits"))
    for path in (run.folder, run.folder / "model.safetensors"):
        again = load_vae(path)
        assert not again.training
        assert again.image_shape == (1, 8, 8)
        for name, value in trained.state_dict().items():
            assert torch.equal(again.state_dict()[name], value)

    def no_data(*_: object) -> None:
        raise AssertionError("samples need no data")

    monkeypatch.setattr("rhovae.data.load_dataset", no_data)
    assert main(["sample", "--from", "r", "--count", "9", "--out", "pictures"]) == 0
    assert [p.name for p in Path("pictures").iterdir()] == ["samples.png"]
    assert matplotlib.image.imread("pictures/samples.png").std() > 0.01


def test_the_order_of_the_latents_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--latent-order", "7", "--out", "r"]) == 0
    again = load_vae("r")
    assert again.latent_order is not None
    assert again.latent_order.tolist() == random_order(4, 7)
    trained = load_model(Run.open(Path("r")), Run.open(Path("r")).config(), load_dataset("digits"))
    z = torch.randn(3, 4)
    assert torch.equal(trained.decode(z), again.decode(z))
    assert "latent_order: 7" in Path("r/README.md").read_text()
    # without it, neither the file nor the card knows of one
    assert main(["train", *SMALL, "--out", "plain"]) == 0
    assert "latent_order" not in Path("plain/README.md").read_text()
    assert "latent_order" not in load_vae("plain").state_dict()


def test_card_says_what_it_is(run: Run) -> None:
    card = (run.folder / "README.md").read_text()
    assert card.startswith("---\n")
    for words in (
        "cnn VAE with posterior ar1 on digits",
        "negative ELBO",
        "360 images",
        "load_vae",
        "seed: 0",
    ):
        assert words in card


def test_precision_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--precision", "bf16-true", "--out", "r"]) == 0
    model = load_vae("r")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.generate(2).isfinite().all()


def test_missing_damaged_and_foreign_files_are_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    file = run.folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    assert main(["sample", "--from", "r"]) == 2
    assert "damaged" in capsys.readouterr().err
    save_file({"w": torch.zeros(2)}, file)
    with pytest.raises(RunError, match="does not say which model"):
        load_vae(file)
    file.unlink()
    with pytest.raises(RunError, match=r"model\.safetensors is missing.*--resume"):
        load_vae(run.folder)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    model, other = (make_model("vanilla", (1, 4, 4), d, "rho", hidden=8) for d in (3, 4))
    weights = other.state_dict()
    weights["extra.weight"] = weights.pop("encoder.1.bias")
    with pytest.raises(RunError) as caught:
        load_weights(model, weights, tmp_path / "last.ckpt")
    message = str(caught.value)
    for words in (
        "last.ckpt does not fit",
        "encoder.1.bias is missing",
        "extra.weight is not in the model",
        "head.linear.weight is (6, 8) where the model has (5, 8)",
    ):
        assert words in message


def test_resume_with_a_foreign_checkpoint_says_which_keys(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = run.config_file.read_text()
    run.config_file.write_text(settings.replace("posterior: ar1", "posterior: diag"))
    for command in (["evaluate", "r"], ["train", "--resume", "r", "--epochs", "2"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "head.linear.weight is (11, 16) where the model has (8, 16)" in said
        assert said.count("\n") == 1
