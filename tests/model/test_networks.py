"""Every model with every posterior, and networks of one's own by import path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rhovae.commands import main
from rhovae.data import load_dataset
from rhovae.models import MODELS, make_model
from rhovae.objectives import Objective, negative_elbo
from rhovae.posteriors import POSTERIORS
from rhovae.runs import Run
from rhovae.training import read_history

OWN = """
from torch import nn

class Encoder(nn.Sequential):
    def __init__(self, image_shape):
        super().__init__(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], 9), nn.Tanh())

class Decoder(nn.Module):
    def __init__(self, latent_dim, image_shape):
        super().__init__()
        self.layer = nn.Linear(latent_dim, image_shape[1] * image_shape[2])
        self.shape = image_shape

    def forward(self, z):
        return self.layer(z).reshape(-1, *self.shape)

def images(image_shape):
    return nn.Identity()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return "my_networks"


@pytest.mark.parametrize("posterior", [*POSTERIORS.names(), "published"])
@pytest.mark.parametrize("name", MODELS.names())
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 4)])
def test_every_pair_learns_everything(shape: tuple[int, ...], name: str, posterior: str) -> None:
    torch.manual_seed(0)
    model = make_model(name, shape, 4, posterior, hidden=16)
    x = torch.rand(6, *shape)
    negative_elbo(*model(x)).backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        # batch normalisation takes away what a bias before a linear layer would add, never the weights
        if parameter.dim() > 1 and posterior != "published":
            assert parameter.grad.abs().sum() > 0, label
    model.eval()
    assert model.generate(2).shape == (2, *shape)
    assert model.reconstruct(x).shape == x.shape


def test_objectives_of_the_models() -> None:
    objectives = {name: make_model(name, (1, 8, 8), 2, "rho", hidden=4).objective for name in MODELS.names()}
    assert objectives == {
        "vanilla": Objective(),
        "beta": Objective(beta=4.0),
        "cnn": Objective(),
        "info": Objective(mmd=1000.0),
    }


def test_dcgan_layers_are_the_papers() -> None:
    model = make_model("info", (1, 28, 28), 10, "diag", hidden=1024)
    layers = [
        (tuple(m.weight.shape[:2]), m.kernel_size[0], m.stride[0])
        for m in model.encoder.modules()
        if isinstance(m, nn.Conv2d)
    ]
    assert layers == [((64, 1), 4, 2), ((64, 64), 3, 1), ((128, 64), 4, 2), ((128, 128), 3, 1)]
    dense = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)]
    assert dense == [(1024, 128 * 49), (20, 1024), (1024, 10), (128 * 49, 1024)]


@pytest.mark.parametrize("posterior", ["diag", "ar1"])
def test_dcgan_begins_with_small_steps(posterior: str) -> None:
    torch.manual_seed(0)
    digits = load_dataset("digits").train
    model = make_model("info", (1, 28, 28), 10, posterior)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(6):
        x = F.interpolate(digits.pixels(slice(32 * step, 32 * step + 32)), size=28)
        # beyond 44 its square overflows in float32; a step too large takes it to 10 at once, soon to 30
        assert model.encode(x).log_s.abs().max() < 6, step
        optimizer.zero_grad()
        negative_elbo(*model(x, key=(0, step << 32))).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["cnn", "info"])
def test_images_that_do_not_halve_twice_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"multiples of 4, got \(1, 6, 5\)"):
        make_model(name, (1, 6, 5), 4, "rho")


def test_own_networks_from_the_command_line(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--encoder", f"{own}:Encoder", "--decoder", f"{own}:Decoder", "--epochs", "1"]
    flags += ["--latent-dim", "3", "--iwae-samples", "2", "--posterior", "ar1"]
    assert main(["train", *flags, "--out", "r"]) == 0
    assert Run.open(Path("r")).config(trust_code=True).encoder == f"{own}:Encoder"
    assert len(read_history(Path("r/history.csv"))) == 1
    for command in (["evaluate", "r"], ["sample", "r"], ["sample", "--from", "r"]):
        assert main([*command, "--trust-code"]) == 0
    model = make_model("vanilla", (1, 8, 8), 3, "rho", encoder=f"{own}:Encoder", decoder=f"{own}:Decoder")
    assert model.head.linear.in_features == 9
    assert model(torch.rand(4, 1, 8, 8)).log_likelihood.shape == (4,)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoder", "Encoder"], "import path such as package.module:Name, got 'Encoder'"),
        (["--encoder", "nowhere_at_all:Encoder"], "cannot import 'nowhere_at_all:Encoder'"),
        (["--decoder", "{own}:Nothing"], "decoder: cannot import"),
        (["--encoder", "builtins:int"], "called as (image_shape), it raised TypeError"),
        (["--decoder", "builtins:slice"], "must give an nn.Module, got slice"),
        (["--decoder", "torch.nn:Linear"], "called as (latent_dim, image_shape), it raised TypeError"),
        (["--encoder", "{own}:images"], r"expected features (batch, features), got (1, 1, 8, 8)"),
    ],
)
def test_mistakes_with_own_networks_leave_nothing(
    own: str, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    flags = [flag.format(own=own) for flag in flags]
    assert main(["train", *flags, "--out", "r"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("r").exists()
