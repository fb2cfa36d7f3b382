"""A VAE in Pyro with a correlated posterior: handwritten digits, the KL in closed form.

python examples/pyro_vae.py --epochs 30
"""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import Tensor, nn

from rhovae.data import load_dataset
from rhovae.posteriors import make_posterior
from rhovae.pyro import AR1Normal


class PyroVAE(nn.Module):
    """``z ~ N(0, I)``, binary pixels given z; the guide is a Gaussian Markov chain over z."""

    def __init__(self, pixels: int, latent_dim: int, hidden: int = 200) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU())
        self.head = make_posterior("ar1", hidden, latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, pixels))

    def model(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            q = self.head(self.encoder(x))
            pyro.sample("z", AR1Normal.from_logits(q.mu, q.log_s, q.rho_logit))


def train(epochs: int, batch_size: int = 128) -> list[float]:
    """The negative ELBO per image after every epoch, in nats."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    images = load_dataset("digits").train
    x = images.pixels(slice(None)).flatten(1)
    vae = PyroVAE(x.shape[1], latent_dim=10)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), TraceMeanField_ELBO())
    losses = []
    for _ in range(epochs):
        losses.append(sum(svi.step(batch) for batch in x[torch.randperm(len(x))].split(batch_size)) / len(x))
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    for epoch, loss in enumerate(train(parser.parse_args().epochs), start=1):
        print(f"epoch {epoch:3d}  negative ELBO {loss:.2f} nats an image")
