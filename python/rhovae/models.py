"""Variational autoencoders of images over any registered posterior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhovae.networks import Networks, convolutional, dcgan, dense, own_decoder, own_encoder
from rhovae.objectives import Objective, iwae
from rhovae.posteriors import Posterior, PosteriorHead, make_posterior
from rhovae.registry import Registry
from rhovae_ext.arguments import Key


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
        objective: what training minimises unless its settings say otherwise (default: the negative ELBO).
        latent_order: the order in which the decoder reads the latents, a permutation of 0 .. d-1 (default: as
            they come). It belongs to the state that is saved.

    Raises:
        ValueError: latent_order is no such permutation.
    """

    latent_order: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        head: PosteriorHead,
        decoder: nn.Module,
        image_shape: Sequence[int],
        objective: Objective | None = None,
        latent_order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if latent_order is not None and sorted(latent_order) != list(range(head.latent_dim)):
            raise ValueError(
                f"{type(self).__name__}: latent_order must have each of 0 .. {head.latent_dim - 1} once, got "
                f"{list(latent_order)}"
            )
        self.objective = objective or Objective()
        self.encoder = encoder
        self.head = head
        self.decoder = decoder
        self.image_shape = tuple(image_shape)
        self.register_buffer("latent_order", None if latent_order is None else torch.tensor(latent_order))

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
        rows = z.reshape(-1, z.shape[-1])
        if self.latent_order is not None:
            rows = rows[:, self.latent_order]
        logits: Tensor = self.decoder(rows)
        return logits.reshape(*z.shape[:-1], *self.image_shape)

    def forward(self, x: Tensor, *, key: Key | None = None, row_offset: int = 0) -> ELBOTerms:
        """One-sample ELBO terms of a batch; ``objectives.negative_elbo(*model(x))`` is the loss.

        ``key`` and ``row_offset`` are those of :meth:`rhovae.posteriors.Posterior.rsample_kl`.
        """
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
        z = torch.randn(count, self.latent_dim, generator=generator, device="cpu").to(weight)
        return torch.sigmoid(self.decode(z))

    @torch.no_grad()
    def interpolate(self, start: Tensor, end: Tensor, steps: int = 10) -> Tensor:
        """Pixel means along straight lines between the posterior means of two batches of images.

        Shape:
            start, end ``(batch, *image_shape)`` to ``(steps, batch, *image_shape)``.
        """
        if steps < 2:
            raise ValueError(f"{type(self).__name__}.interpolate: steps must be at least 2, got {steps}")
        a, b = self.encode(start).mean, self.encode(end).mean
        way = torch.linspace(0.0, 1.0, steps, dtype=a.dtype, device=a.device)[:, None, None]
        return torch.sigmoid(self.decode(torch.lerp(a, b, way)))

    @torch.no_grad()
    def log_likelihood(
        self,
        x: Tensor,
        num_samples: int = 100,
        *,
        chunk: int = 16,
        key: Key | None = None,
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


Builder = Callable[[Sequence[int], int, int], tuple[Networks, Objective]]

MODELS: Registry[Builder] = Registry("model")
"""What makes ``(networks, objective)`` from ``(image_shape, latent_dim, hidden)``, by name."""


@MODELS.register("vanilla")
def vanilla(image_shape: Sequence[int], latent_dim: int, hidden: int) -> tuple[Networks, Objective]:
    """The rho-VAE paper's vanilla network: pixels-hidden-d and back, ReLU, Bernoulli pixels."""
    return dense(image_shape, latent_dim, hidden), Objective()


@MODELS.register("beta")
def beta(image_shape: Sequence[int], latent_dim: int, hidden: int) -> tuple[Networks, Objective]:
    """The vanilla network with the KL weighted by 4 (Higgins et al. 2017)."""
    return dense(image_shape, latent_dim, hidden), Objective(beta=4.0)


@MODELS.register("cnn")
def cnn(image_shape: Sequence[int], latent_dim: int, hidden: int) -> tuple[Networks, Objective]:
    """Strided convolutions."""
    return convolutional(image_shape, latent_dim, hidden), Objective()


@MODELS.register("info")
def info(image_shape: Sequence[int], latent_dim: int, hidden: int) -> tuple[Networks, Objective]:
    """DCGAN networks and the MMD term of the InfoVAE (Zhao et al. 2019, arXiv 1706.02262)."""
    return dcgan(image_shape, latent_dim, hidden), Objective(mmd=1000.0)


def make_model(
    name: str,
    image_shape: Sequence[int],
    latent_dim: int,
    posterior: str,
    *,
    hidden: int = 400,
    backend: str | None = None,
    encoder: str | None = None,
    decoder: str | None = None,
    latent_order: int | None = None,
) -> VAE:
    """The model registered as ``name`` with the posterior of that name.

    Args:
        encoder: import path ``package.module:Name`` of a class, called with ``image_shape``, to use instead:
            images ``(batch, *image_shape)`` to features ``(batch, any)``.
        decoder: the same, called with ``latent_dim, image_shape``: z ``(n, d)`` to logits.
        latent_order: seed of a random order in which the decoder reads the latents (default: as they come).

    Raises:
        ValueError: an unknown name (the message lists the known), or networks that do not fit.
    """
    # where both halves are one's own, the model's would take memory for nothing
    with torch.device("meta") if encoder and decoder else nullcontext():
        networks, objective = MODELS[name](image_shape, latent_dim, hidden)
    if encoder is not None:
        own, features = own_encoder(encoder, image_shape)
        networks = networks._replace(encoder=own, features=features)
    if decoder is not None:
        networks = networks._replace(decoder=own_decoder(decoder, image_shape, latent_dim))
    head = make_posterior(posterior, networks.features, latent_dim, backend=backend)
    order = None if latent_order is None else random_order(latent_dim, latent_order)
    return VAE(networks.encoder, head, networks.decoder, image_shape, objective, order)


def random_order(d: int, seed: int) -> list[int]:
    """A permutation of 0 .. d-1, a function of the seed alone."""
    order: list[int] = torch.randperm(d, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
