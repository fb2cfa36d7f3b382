"""What is written is whole, where it should be, and not begun where it could not be ended."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from rhovae import memory
from rhovae.checkpoints import read_checkpoint
from rhovae.commands import main
from rhovae.config import TrainConfig
from rhovae.files import RunError, check_writable, write_atomically, write_json
from rhovae.footprint import check_training, outline
from rhovae.models import MODELS, make_model
from rhovae.posteriors import POSTERIORS
from rhovae.runs import Run
from rhovae.weights import load_vae

SMALL = ["--hidden", "8", "--latent-dim", "3", "--iwae-samples", "2", "--epochs", "1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_links_are_replaced_and_never_followed(here: Path) -> None:
    (here / "precious").write_text("data")
    for name in ("f", "f.part", ".f.part"):
        (here / name).symlink_to("precious")
    (here / ".f.0123456789abcdef.part").symlink_to("precious")
    write_atomically(Path("f"), b"new")
    assert (here / "precious").read_text() == "data"
    assert not (here / "f").is_symlink()
    assert (here / "f").read_bytes() == b"new"


def test_links_in_a_run_are_not_followed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--out", "r"]) == 0
    (here / "precious").write_text("data")
    written = [path for path in Path("r").rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    assert len(written) > 9
    for path in written:
        path.with_name(path.name + ".part").symlink_to(here / "precious")
        if path.suffix not in (".ckpt", ".yaml", ".json"):
            path.unlink()
            path.symlink_to(here / "precious")
    assert main(["train", "--resume", "r", "--epochs", "2"]) == 0
    assert (here / "precious").read_text() == "data"
    assert not any(path.is_symlink() for path in written)
    for part in ("checkpoints", "tensorboard"):
        Path("r", part).rename(part)
        Path("r", part).symlink_to(here / part)
        capsys.readouterr()
        assert main(["train", "--resume", "r", "--epochs", "3"]) == 2
        assert f"r/{part} is a link" in capsys.readouterr().err
        Path("r", part).unlink()
        Path(part).rename(Path("r", part))


def test_pipes_and_devices_are_no_place_for_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--out", "r"]) == 0
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    with pytest.raises(RunError, match="what has this name is no file"):
        write_atomically(Path("pipe"), b"x")
    for path in ("pipe", "link", ".", "nowhere/x"):
        capsys.readouterr()
        assert main(["evaluate", "r", "--output", path]) == 2
        assert f"--output {path} must be a file" in capsys.readouterr().err
    assert Path("pipe").is_fifo()
    assert Path("link").is_symlink()


def _write_often(path: str, letter: bytes) -> None:
    for _ in range(100):
        write_atomically(Path(path), letter * 5000)


def test_writers_of_one_file_leave_one_of_theirs(here: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=("f", letter)) for letter in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    content = Path("f").read_bytes()
    assert content == content[:1] * 5000
    assert os.listdir() == ["f"]


def test_what_a_killed_writer_left_is_removed(here: Path) -> None:
    left = Path(".last.ckpt.0123456789abcdef.part")
    left.write_bytes(b"half")
    Path(".other.0123456789abcdef.part").write_bytes(b"another's")
    write_atomically(Path("last.ckpt"), b"whole")
    assert sorted(os.listdir()) == [".other.0123456789abcdef.part", "last.ckpt"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "give another path"),
    ],
)
def test_a_full_disk_names_the_file_and_leaves_the_old(
    here: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    write_json([1], Path("x.json"))

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=rf"x\.json cannot be written: .*{words}"):
        write_json([2], Path("x.json"))
    assert Path("x.json").read_text() == "[\n  1\n]\n"
    assert os.listdir() == ["x.json"]


def test_a_disk_that_fills_in_training(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fsync, checkpoints = os.fsync, 0

    def filling(descriptor: int) -> None:
        nonlocal checkpoints
        if "/.last.ckpt." in os.readlink(f"/proc/self/fd/{descriptor}"):
            checkpoints += 1
            if checkpoints > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", filling)
    assert main(["train", *SMALL, "--epochs", "3", "--out", "a run"]) == 2
    said = capsys.readouterr().err
    assert "a run/checkpoints/last.ckpt cannot be written: No space left on device" in said
    assert "go on with: python -m rhovae train --resume 'a run'" in said
    assert said.count("\n") == 1
    assert [path.name for path in Path("a run/checkpoints").iterdir()] == ["last.ckpt"]
    assert len(read_checkpoint(Path("a run/checkpoints/last.ckpt"))["rhovae"]["history"]) == 1


def test_folders_that_cannot_be_written(here: Path) -> None:
    Path("file").touch()
    for folder in (Path("nowhere"), Path("file"), Path("/proc")):
        with pytest.raises(RunError, match=f"{folder} cannot be written"):
            check_writable(folder)


@pytest.mark.parametrize("package", ["matplotlib", "tensorboard", "safetensors"])
def test_what_is_needed_at_the_end_is_asked_for_at_the_beginning(
    here: Path, package: str, run_python: Any
) -> None:
    script = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"
        "from rhovae.commands import main\n"
        "sys.exit(main(['train', '--epochs', '1', '--out', 'r']))\n"
    )
    done = run_python("-c", script)
    assert done.returncode == 2, done.stderr
    assert f"{package} is not installed; pip install" in done.stderr
    assert not Path("r").exists()


def test_a_disk_too_small_is_found_out_first(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    for command in (["train"], ["compare"], ["reproduce", "--dataset", "digits", "--models", "vanilla"]):
        assert main([*command, "--epochs", "1", "--out", "r"]) == 2
        said = capsys.readouterr().err
        assert "r needs about" in said
        assert "1.0 MiB is free" in said
        assert os.listdir() == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--latent-dim", "100000000"],
        ["--latent-dim", "2000000000", "--latent-order", "1", "--posterior", "ar1"],
        ["--hidden", "77777777", "--model", "cnn"],
        ["--hidden", "2147483647", "--model", "info"],
        ["--latent-dim", "2147483647", "--hidden", "2147483647"],
        ["--iwae-samples", "1000000000"],
        ["--iwae-samples", "2147483647"],
    ],
)
def test_what_no_memory_holds_is_refused_with_what_it_would_take(
    here: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    for command in (["train"], ["compare", "--posteriors", "rho"], ["demo"]):
        if command != ["train"] and "--posterior" in flags:
            continue
        assert main([*command, *flags, "--out", "r"]) == 2
        said = capsys.readouterr().err
        assert (
            "of memory, and" in said and "iB is free" in said
        ) or "more memory than any machine has" in said
        assert said.count("\n") == 1
        assert os.listdir() == []


def test_counts_beyond_all_reason(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--out", "r"]) == 0
    capsys.readouterr()
    for command in (
        ["evaluate", "r", "--iwae-samples", "987654321"],
        ["sample", "r", "--count", "987654321"],
        ["sample", "--from", "r", "--count", "987654321"],
        ["train", "--resume", "r", "--iwae-samples", "987654321"],
    ):
        assert main(command) == 2
        assert "of memory, and" in capsys.readouterr().err
    for flag in ("--hidden", "--batch-size", "--epochs", "--iwae-samples", "--seed", "--checkpoint-every"):
        assert main(["train", flag, "1" + "0" * 30]) == 2
        assert "must be at most" in capsys.readouterr().err
    # a batch larger than the data is the data
    assert main(["train", *SMALL, "--batch-size", "2147483647", "--out", "s"]) == 0


@pytest.mark.parametrize("model", MODELS.names())
@pytest.mark.parametrize("posterior", POSTERIORS.names())
def test_the_outline_has_the_shapes_of_the_model(model: str, posterior: str) -> None:
    config = TrainConfig(model=model, posterior=posterior, hidden=16, latent_dim=5, latent_order=3)
    real = make_model(model, (1, 8, 8), 5, posterior, hidden=16, latent_order=3).state_dict()
    drawn = outline(config, (1, 8, 8)).state_dict()
    assert {name: value.shape for name, value in drawn.items()} == {n: v.shape for n, v in real.items()}
    assert all(value.is_meta for value in drawn.values())


def test_what_is_reckoned_is_about_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(hidden=1000, latent_dim=100)
    weights = 4 * sum(p.numel() for p in outline(config, (1, 28, 28)).parameters())
    monkeypatch.setattr(memory, "available", lambda: 8 * weights)
    assert check_training(config.replace(batch_size=1), (1, 28, 28), 1) > 4 * weights
    monkeypatch.setattr(memory, "available", lambda: 6 * weights)
    with pytest.raises(RunError, match="training a model"):
        check_training(config, (1, 28, 28), 1)


TIED = """
import torch
from torch import nn

class Decoder(nn.Module):
    def __init__(self, latent_dim, image_shape):
        super().__init__()
        self.inward = nn.Linear(latent_dim, 8)
        self.first = nn.Linear(8, 8)
        self.second = self.first
        self.third = nn.Linear(8, 8)
        self.third.weight = self.first.weight
        self.outward = nn.Linear(8, 64)

    def forward(self, z):
        return self.outward(self.third(self.second(self.first(self.inward(z)).relu()).relu()))

class Odd(Decoder):
    def get_extra_state(self):
        return {"when": "now"}

    def set_extra_state(self, state):
        pass
"""


@pytest.fixture
def tied(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (here / "tied.py").write_text(TIED)
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(sys.modules, "tied", raising=False)
    return [*SMALL, "--decoder", "tied:Decoder"]


@pytest.mark.parametrize("precision", ["32", "bf16-true"])
def test_tied_weights(tied: list[str], precision: str) -> None:
    assert main(["train", *tied, "--precision", precision, "--out", "r"]) == 0
    model: Any = load_vae("r", trust_code=True)
    assert model.decoder.second is model.decoder.first
    assert model.decoder.third.weight is model.decoder.first.weight
    before = model.decoder.first.weight.clone()
    assert main(["train", "--resume", "r", "--trust-code", "--epochs", "2"]) == 0
    model = load_vae("r", trust_code=True)
    assert not torch.equal(model.decoder.first.weight, before)
    assert model.decoder.third.weight is model.decoder.first.weight
    trained = read_checkpoint(Run(Path("r")).checkpoint)["state_dict"]
    assert torch.equal(trained["model.decoder.third.weight"], model.decoder.first.weight)
    assert main(["evaluate", "r", "--trust-code"]) == 0


def test_state_that_no_file_can_hold_is_refused_first(
    tied: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SMALL, "--decoder", "tied:Odd", "--out", "r"]) == 2
    said = capsys.readouterr().err
    assert "cannot be written as model.safetensors" in said
    assert not Path("r").exists()


def test_pictures_go_through_the_same_door(here: Path) -> None:
    assert main(["train", *SMALL, "--out", "r"]) == 0
    (here / "precious").write_text("data")
    Path("p").mkdir()
    Path("p/samples.png").symlink_to(here / "precious")
    Path("p/reconstructions.png").symlink_to(here / "nowhere")
    assert main(["sample", "r", "--out", "p"]) == 0
    assert (here / "precious").read_text() == "data"
    assert not (here / "nowhere").exists()
    assert matplotlib.image.imread("p/reconstructions.png").std() > 0
