"""What a VAE is trained and judged by. Everything is in nats; ``log_likelihood`` is log p(x | z) per row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rhovae.posteriors import Posterior
from rhovae_ext import fold_in
from rhovae_ext.arguments import Key
from rhovae_ext.shapes import widest_dtype

_LOG_2_PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class Objective:
    """What is added to ``-log p(x | z)`` to train a VAE; by default the KL, for the negative ELBO.

    ``beta * sum_k max(KL_k, free_bits) + mmd * MMD``, where KL_k is the exact chain-rule term of a dimension,
    averaged over the batch (Higgins et al. 2017; Kingma et al. 2016, arXiv 1606.04934, appendix C.8; Zhao et
    al. 2019, arXiv 1706.02262, equation 6, whose ``1 - alpha`` is beta and ``alpha + lambda - 1`` mmd).
    """

    beta: float = 1.0
    """Weight of the KL."""
    warmup: float = 0.0
    """Epochs over which that weight grows from 0."""
    free_bits: float = 0.0
    """Nats of each dimension that cost nothing more."""
    mmd: float = 0.0
    """Weight of the maximum mean discrepancy between the batch's z and the prior."""

    def kl_weight(self, epochs: float) -> float:
        """The weight after this many epochs, fractions included."""
        return self.beta if self.warmup == 0 else self.beta * min(1.0, epochs / self.warmup)


def free_bits(kl: Tensor, nats: float, mean: Tensor | None = None) -> Tensor:
    """``sum_k max(mean KL_k, nats)`` as a value for each row: a dimension below the line has no gradient.

    Args:
        kl: the terms KL_k, ``(batch, d)``.
        nats: the line.
        mean: of each KL_k over the whole batch, ``(d,)``, if these rows are a part of it.

    Shape:
        ``(batch,)``, whose mean over the batch is the sum above.
    """
    mean = kl.detach().mean(0) if mean is None else mean
    # a mean that is NaN is above no line, and must not pass for one below
    return torch.where(mean <= nats, nats, kl).sum(-1)


def mmd(z: Tensor, prior: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two samples, unbiased (Gretton et al. 2012, equation 3).

    The kernel is ``exp(-|a - b|^2 / (2 d))``: two draws of N(0, I) lie sqrt(2 d) apart.

    Args:
        z, prior: ``(n, d)`` and ``(m, d)`` with at least two rows each.

    Raises:
        ValueError: fewer rows.
    """
    if min(len(z), len(prior)) < 2:
        raise ValueError(f"mmd: expected at least two rows of each sample, got {len(z)} and {len(prior)}")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        # not torch.cdist, whose gradient is not finite where two rows are one
        squares = a.square().sum(-1)[:, None] + b.square().sum(-1) - 2.0 * a @ b.mT
        return torch.exp(squares / (-2.0 * a.shape[-1]))

    def within(a: Tensor) -> Tensor:
        n = len(a)
        return (kernel(a, a).sum() - n) / (n * (n - 1))

    # squares of what a runaway scale draws would leave float32, and infinity less infinity is NaN
    dtype, wide = torch.promote_types(z.dtype, torch.float32), widest_dtype(z)
    z, prior = z.to(wide), prior.to(z.device, wide)
    return (within(z) + within(prior) - 2.0 * kernel(z, prior).mean()).to(dtype)


class ImportanceEstimate(NamedTuple):
    """What K importance samples say about each row of a batch."""

    bound: Tensor
    """The IWAE-K lower bound on log p(x), ``(batch,)``."""
    log_likelihood: Tensor
    """log p(x | z) averaged over the K samples, ``(batch,)``: the ELBO's reconstruction term."""


def negative_elbo(log_likelihood: Tensor, kl: Tensor, *, batch_size: float | None = None) -> Tensor:
    """``mean over the batch of (KL - log p(x | z))``, a scalar: the loss of a VAE.

    Both terms are sums over their own dimensions and are divided by the same number of rows.

    Args:
        log_likelihood: log p(x | z), ``(batch,)`` or ``(K, batch)`` (K samples are averaged).
        kl: KL(q || p), ``(batch,)``.
        batch_size: divide by this count in place of the rows given, when these are a part of a larger batch.

    Raises:
        ValueError: the two do not end in the same ``(batch,)`` axis.
    """
    if kl.dim() != 1 or log_likelihood.dim() not in (1, 2) or log_likelihood.shape[-1] != kl.shape[0]:
        raise ValueError(
            "negative_elbo: expected log_likelihood (batch,) or (K, batch) and kl (batch,), "
            f"got {tuple(log_likelihood.shape)} and {tuple(kl.shape)}; sum over pixels and dimensions first"
        )
    if log_likelihood.dim() == 2:
        log_likelihood = log_likelihood.mean(0)
    rows = kl.shape[0] if batch_size is None else batch_size
    return (kl - log_likelihood).sum() / rows


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) over the last axis, ``(..., d)`` to ``(...)``."""
    z = z if z.dtype == torch.float64 else z.float()
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * _LOG_2_PI)


def iwae(
    posterior: Posterior,
    log_likelihood: Callable[[Tensor], Tensor],
    num_samples: int,
    *,
    chunk: int = 16,
    key: Key | None = None,
    row_offset: int = 0,
) -> ImportanceEstimate:
    """The importance-weighted bound of Burda et al. (2016, arXiv 1509.00519, equation 8).

    ``log 1/K sum_i p(x | z_i) p(z_i) / q(z_i | x)`` with ``z_i`` from the posterior itself, correlations
    included, accumulated by log-sum-exp over chunks of samples: memory is that of one chunk (without
    gradients). ``K = 1`` is a one-sample ELBO.

    Args:
        posterior: q(z | x) with leading shape ``(batch,)``.
        log_likelihood: maps z ``(k, batch, d)`` to log p(x | z) ``(k, batch)``.
        num_samples: K, at least 1.
        chunk: how many samples to decode at once; with a key, the samples drawn depend on it.
        key: fixes the samples whatever the split of the batch: ``(seed, offset)``, or what
            ``rhovae_ext.fold_in`` derives.
        row_offset: global index of the batch's first row.

    Raises:
        ValueError: ``num_samples`` or ``chunk`` below 1.
    """
    if num_samples < 1 or chunk < 1:
        raise ValueError(f"iwae: num_samples and chunk must be at least 1, got {num_samples} and {chunk}")
    log_sum: Tensor | None = None
    total: Tensor | None = None
    for first in range(0, num_samples, chunk):
        chunk_key = None if key is None else fold_in(key, first)
        z = posterior.rsample(min(chunk, num_samples - first), key=chunk_key, row_offset=row_offset)
        log_p = log_likelihood(z)
        log_weight = log_p + standard_normal_log_prob(z) - posterior.log_prob(z)
        part, likelihood = log_weight.logsumexp(0), log_p.sum(0)
        log_sum = part if log_sum is None else torch.logaddexp(log_sum, part)
        total = likelihood if total is None else total + likelihood
    assert log_sum is not None
    assert total is not None
    return ImportanceEstimate(log_sum - math.log(num_samples), total / num_samples)


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """How many latent dimensions carry information (Burda et al. 2016, section 5.2).

    A dimension is active when the variance over the data of its posterior mean exceeds ``threshold``.

    Args:
        means: posterior means over a data set, ``(n, d)`` with n at least 2.
    """
    if means.dim() != 2 or means.shape[0] < 2:
        raise ValueError(
            f"active_units: expected means (n, d) with n at least 2, got {tuple(means.shape)}; "
            "stack the posterior means of a data set"
        )
    return int((means.double().var(0) > threshold).sum())
