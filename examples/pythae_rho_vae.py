"""A rho-VAE for pythae: trains in its pipelines, and saves, reloads and estimates likelihoods as it should.

python examples/pythae_rho_vae.py --epochs 10
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from torch import Tensor, nn

from rhovae.data import load_dataset
from rhovae.objectives import iwae
from rhovae.posteriors import Posterior, make_posterior


@dataclass
class RhoVAEConfig(VAEConfig):
    """VAEConfig with the name of the posterior: diag, iso, rho or ar1."""

    posterior: str = "rho"


class RhoEncoder(BaseEncoder):
    """A layer of 512 units and a posterior head.

    An encoder of your own gives the same three: `embedding` (the mean), `log_covariance` and `rho_logit`.
    """

    def __init__(self, config: RhoVAEConfig) -> None:
        super().__init__()
        assert config.input_dim is not None
        pixels = int(torch.Size(config.input_dim).numel())
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 512), nn.ReLU())
        self.head = make_posterior(config.posterior, 512, config.latent_dim)

    def forward(self, x: Tensor) -> ModelOutput:
        q = self.head(self.features(x))
        return ModelOutput(embedding=q.mu, log_covariance=2.0 * q.log_s, rho_logit=q.rho_logit)


class RhoVAE(VAE):
    """pythae's VAE with a Gaussian Markov chain as its posterior."""

    def __init__(
        self,
        model_config: RhoVAEConfig,
        encoder: BaseEncoder | None = None,
        decoder: BaseDecoder | None = None,
    ) -> None:
        super().__init__(model_config, encoder or RhoEncoder(model_config), decoder)
        self.model_name = "RhoVAE"
        # the default encoder is rebuilt from the configuration and needs no pickle
        self.model_config.uses_default_encoder = encoder is None

    @classmethod
    def _load_model_config_from_folder(cls, dir_path: str) -> RhoVAEConfig:
        # pythae's own table knows only its own configurations
        config: RhoVAEConfig = RhoVAEConfig.from_json_file(str(Path(dir_path) / "model_config.json"))
        return config

    def posterior(self, x: Tensor) -> Posterior:
        """q(z | x) of images ``(batch, *input_dim)``."""
        output = self.encoder(x)
        return Posterior(output.embedding, 0.5 * output.log_covariance, output.rho_logit)

    def forward(self, inputs: Any, **kwargs: Any) -> ModelOutput:
        x = inputs["data"]
        z, kl = self.posterior(x).rsample_kl()
        reconstruction = self.decoder(z)["reconstruction"]
        # its squared error or cross-entropy, whose constants depend on neither z nor the weights
        zeros = torch.zeros_like(z)
        _, error, _ = self.loss_function(reconstruction, x, zeros, zeros, z)
        return ModelOutput(
            loss=error + kl.mean(), recon_loss=error, reg_loss=kl.mean(), recon_x=reconstruction, z=z
        )

    @torch.no_grad()
    def get_nll(self, data: Tensor, n_samples: int = 1, batch_size: int = 100) -> float:
        """The importance-sampled log-likelihood, averaged over images, in nats.

        As pythae's own it is ``log p(x)``, not its negative. The proposal is the posterior with its
        correlations, and exactly ``n_samples`` are drawn, ``batch_size`` at once.
        """
        bounds = []
        for x in data.split(1):
            estimate = iwae(
                self.posterior(x),
                lambda z, x=x: self._log_likelihood(x, z),  # type: ignore[misc]
                n_samples,
                chunk=batch_size,
            )
            bounds.append(estimate.bound)
        return torch.cat(bounds).double().mean().item()

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) for z ``(k, batch, d)``: unit-variance Gaussian pixels, or Bernoulli ones."""
        mean = self.decoder(z.flatten(0, 1))["reconstruction"].reshape(*z.shape[:2], -1)
        pixels = x.flatten(1).expand_as(mean)
        if self.model_config.reconstruction_loss == "bce":
            log_likelihood = -nn.functional.binary_cross_entropy(mean, pixels, reduction="none")
        else:
            log_likelihood = torch.distributions.Normal(mean, 1.0, validate_args=False).log_prob(pixels)
        return log_likelihood.sum(-1)


def train(epochs: int, folder: Path) -> RhoVAE:
    """Train on the bundled digits with pythae's pipeline and read back what it saved."""
    data = load_dataset("digits")
    model = RhoVAE(RhoVAEConfig(input_dim=data.image_shape, latent_dim=8, reconstruction_loss="bce"))
    settings = BaseTrainerConfig(output_dir=str(folder), num_epochs=epochs, learning_rate=1e-3, no_cuda=True)
    pipeline = TrainingPipeline(training_config=settings, model=model)
    pipeline(train_data=data.train.pixels(slice(None)), eval_data=data.test.pixels(slice(None)))
    saved: RhoVAE = RhoVAE.load_from_folder(str(Path(pipeline.trainer.training_dir) / "final_model"))
    return saved


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(parser.parse_args().epochs, Path(folder)).eval()
    images = load_dataset("digits").test.pixels(slice(0, 50))
    print(f"log p(x), 50 test images, 200 samples each: {trained.get_nll(images, 200):.2f} nats")
