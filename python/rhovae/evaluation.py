"""A trained model judged on held-out images."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from rhovae.data import ImageSet
from rhovae.models import VAE, bernoulli_log_likelihood
from rhovae.objectives import active_units, iwae


@dataclass(frozen=True)
class Metrics:
    """Figures over a data set, in nats per image, each with its standard error over the images."""

    images: int
    iwae_samples: int
    negative_elbo: float
    negative_elbo_se: float
    reported: float
    """What the training objective's formula says in its place: another value for ``published`` alone."""
    reconstruction: float
    reconstruction_se: float
    kl: float
    kl_se: float
    nll: float
    """IWAE-K negative log-likelihood, the posterior with its correlations as proposal."""
    nll_se: float
    active_units: int
    latent_dim: int
    mean_abs_rho: float
    """Mean of the absolute correlation over images and steps; 0 where rho is not learnt."""

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


@torch.no_grad()
def evaluate(
    model: VAE,
    images: ImageSet,
    *,
    iwae_samples: int = 64,
    seed: int = 0,
    batch_size: int = 25,
    chunk: int = 16,
    training_batch: int = 128,
) -> Metrics:
    """ELBO, its terms, the IWAE-K likelihood and the active units of a model on a data set.

    The KL is exact; the reconstruction is the mean over the K samples that the likelihood uses. The figures
    depend on ``seed`` and ``chunk`` alone, not on ``batch_size``.

    Args:
        iwae_samples: K, importance samples an image.
        batch_size, chunk: images and samples decoded at once: what the memory is made of.
        training_batch: rows of a training step, which the ``reported`` objective may depend on.
    """
    training = model.training
    model.eval()
    weight = model.head.linear.weight
    log_likelihoods, kls, costs, bounds, means, rhos = [], [], [], [], [], []
    for first in range(0, len(images), batch_size):
        x = images.pixels(slice(first, first + batch_size), weight.dtype).to(weight.device)
        posterior = model.encode(x)
        estimate = iwae(
            posterior,
            lambda z, x=x: bernoulli_log_likelihood(x, model.decode(z)),  # type: ignore[misc]
            iwae_samples,
            chunk=chunk,
            key=(seed, 0),
            row_offset=first,
        )
        log_likelihoods.append(estimate.log_likelihood)
        bounds.append(estimate.bound)
        kls.append(posterior.kl())
        costs.append(posterior.training_kl(kls[-1], training_batch))
        means.append(posterior.mean)
        rhos.append(posterior.rho.abs().sum(-1))
    model.train(training)
    reconstruction, kl = -torch.cat(log_likelihoods).double(), torch.cat(kls).double()
    cost = torch.cat(costs).double()
    nll = -torch.cat(bounds).double()
    steps = max(1, model.latent_dim - 1)
    return Metrics(
        images=len(images),
        iwae_samples=iwae_samples,
        negative_elbo=(reconstruction + kl).mean().item(),
        negative_elbo_se=standard_error(reconstruction + kl),
        reported=(reconstruction + cost).mean().item(),
        reconstruction=reconstruction.mean().item(),
        reconstruction_se=standard_error(reconstruction),
        kl=kl.mean().item(),
        kl_se=standard_error(kl),
        nll=nll.mean().item(),
        nll_se=standard_error(nll),
        active_units=active_units(torch.cat(means)),
        latent_dim=model.latent_dim,
        mean_abs_rho=torch.cat(rhos).mean().item() / steps,
    )


def standard_error(values: Tensor) -> float:
    """Of the mean of independent values; 0 for a single one."""
    n = values.numel()
    return 0.0 if n < 2 else values.std().item() / math.sqrt(n)
