"""Variational autoencoders of images over any registered posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhovae.objectives import iwae
from rhovae.posteriors import Key, Posterior, PosteriorHead, make_posterior
from rhovae.registry import Registry


class ELBOTerms(NamedTuple):
    """The two terms of the ELBO, one value per row, in nats."""

    log_likelihood: Tensor
    """log p(x | z), ``(batch,)``."""
    kl: Tensor
    """KL(q(z | x) || p(z)), ``(batch,)``."""


class VAE(nn.Module):
    """An encoder, a posterior head and a decoder of Bernoulli logits.

    Pixels are in [0, 1]; grey values serve as the targets of the Bernoulli log-likelihood as they are
    (``x log p + (1 - x) log(1 - p)``), without binarisation.

    Args:
        encoder: images ``(batch, *image_shape)`` to features ``(batch, features)``.
        head: features to the posterior.
        decoder: z ``(n, d)`` to logits ``(n, *image_shape)``.
        image_shape: of one image, such as ``(1, 28, 28)``.
    """

    def __init__(
        self, encoder: nn.Module, head: PosteriorHead, decoder: nn.Module, image_shape: Sequence[int]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.decoder = decoder
        self.image_shape = tuple(image_shape)

    @property
    def latent_dim(self) -> int:
        return self.head.latent_dim

    def encode(self, x: Tensor) -> Posterior:
        """q(z | x) of images ``(batch, *image_shape)``."""
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"{type(self).__name__}.encode: expected images (batch, "
                f"{', '.join(map(str, self.image_shape))}), got {tuple(x.shape)}"
            )
        posterior: Posterior = self.head(self.encoder(x))
        return posterior

    def decode(self, z: Tensor) -> Tensor:
        """Logits of the pixels, ``(..., d)`` to ``(..., *image_shape)``."""
        logits: Tensor = self.decoder(z.reshape(-1, z.shape[-1]))
        return logits.reshape(*z.shape[:-1], *self.image_shape)

    def forward(self, x: Tensor, *, key: Key | None = None, row_offset: int = 0) -> ELBOTerms:
        """One-sample ELBO terms of a batch; ``objectives.negative_elbo(*model(x))`` is the loss."""
        z, kl = self.encode(x).rsample_kl(key=key, row_offset=row_offset)
        return ELBOTerms(bernoulli_log_likelihood(x, self.decode(z)), kl)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Pixel means decoded from the posterior mean, shaped as x."""
        return torch.sigmoid(self.decode(self.encode(x).mean))

    @torch.no_grad()
    def generate(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Pixel means of ``count`` draws from the prior, ``(count, *image_shape)``."""
        weight = self.head.linear.weight
        z = torch.randn(count, self.latent_dim, generator=generator).to(weight)
        return torch.sigmoid(self.decode(z))

    @torch.no_grad()
    def log_likelihood(
        self,
        x: Tensor,
        num_samples: int = 100,
        *,
        chunk: int = 16,
        key: tuple[int, int] | None = None,
        row_offset: int = 0,
    ) -> Tensor:
        """IWAE-K estimate (a lower bound in expectation) of log p(x) in nats, ``(batch,)``."""
        estimate = iwae(
            self.encode(x),
            lambda z: bernoulli_log_likelihood(x, self.decode(z)),
            num_samples,
            chunk=chunk,
            key=key,
            row_offset=row_offset,
        )
        return estimate.bound


def bernoulli_log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    """``sum over pixels of x l - log(1 + exp(l))``, in nats.

    Shape:
        x ``(batch, *image)`` in [0, 1]; logits ``(*lead, batch, *image)``; result ``(*lead, batch)``, in
        float32 or better, as sums of many pixels need.
    """
    pixels = x.dim() - 1
    if logits.dtype != torch.float64:
        logits = logits.float()
    logits = logits.flatten(-pixels)
    x = x.flatten(-pixels).to(logits)
    return (x * logits).sum(-1) + F.logsigmoid(-logits).sum(-1)


MODELS: Registry[Callable[..., VAE]] = Registry("model")
"""Builders ``(image_shape, latent_dim, posterior, hidden, backend) -> VAE`` by name."""


@MODELS.register("vanilla")
def vanilla(
    image_shape: Sequence[int],
    latent_dim: int,
    posterior: str,
    *,
    hidden: int = 400,
    backend: str | None = None,
) -> VAE:
    """The rho-VAE paper's vanilla network: pixels-hidden-d and back, ReLU, Bernoulli pixels."""
    pixels = math.prod(image_shape)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU())
    decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, pixels))
    return VAE(encoder, make_posterior(posterior, hidden, latent_dim, backend=backend), decoder, image_shape)


def make_model(
    name: str,
    image_shape: Sequence[int],
    latent_dim: int,
    posterior: str,
    *,
    hidden: int = 400,
    backend: str | None = None,
) -> VAE:
    """The model registered as ``name``; an unknown name raises ``ValueError`` with the known ones."""
    return MODELS[name](image_shape, latent_dim, posterior, hidden=hidden, backend=backend)
