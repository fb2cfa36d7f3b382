"""The public functions: check the arguments, choose the backend, call it.

All of them describe a Gaussian Markov chain over the last axis, one per row:

    z_k = mu_k + s_k x_k,    x_1 = eps_1,    x_k = rho_k x_{k-1} + sqrt(1 - rho_k^2) eps_k

with marginal standard deviation `s`, lag-1 correlation `rho` and independent standard normals `eps`, so that
`Cov(z_i, z_j) = s_i s_j prod(rho)` over the steps between i and j. One `s` and one `rho` per row is the
posterior of the rho-VAE (arXiv 1909.06236, whose scale is s^2 here); per-step values reach every Gaussian
with a tridiagonal precision matrix. The form with logits takes `log_s = log(s)` and
`rho_logit = atanh(rho)`; nothing in it saturates.

Shapes, wherever these names appear (ranks decide, never sizes):
    mu: (..., d), d >= 1
    s, log_s: a number; one per row, exactly mu.shape[:-1] or (..., 1); one per step, (..., d)
    rho, rho_logit: the same, with (..., d-1) per step: rho[..., k] ties the steps k and k+1
    Leading axes of the three, where s and rho have mu's rank, broadcast together, to *lead below.
Types: mu float32, float64, bfloat16 or float16; s and rho in mu's type or float32. The arithmetic, the KL and
the log-density are in float32 (float64 for a float64 mu). In an autocast region types that are mixed
otherwise are promoted to float32. Every tensor may have any strides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import arguments, backends, reference
from .arguments import Key, Parameter
from .keys import draw_key

_NO_KL, _KL_PER_ROW, _KL_PER_DIM = 0, 1, 2


def _ar1(
    operation: str,
    mu: Tensor,
    scale: Parameter,
    rho: Parameter,
    num_samples: int | None,
    generator: torch.Generator | None,
    key: Key | None,
    row_offset: int,
    eps: Tensor | None,
    backend: str | None,
    logits: bool,
    kl: int,
) -> tuple[Tensor, Tensor]:
    names = ("log_s", "rho_logit") if logits else ("s", "rho")
    scale, rho = arguments.parameters(operation, mu, scale, rho, *names)
    if num_samples is not None:
        num_samples = arguments.samples(operation, num_samples, mu)
    key, eps, row_offset = arguments.sampling(
        operation, mu, scale, rho, num_samples, generator, key, row_offset, eps
    )
    chosen = backends.choose(operation, backend, mu)
    if key is None and eps is None:
        key = draw_key(mu, generator)
    return chosen.ar1(mu, scale, rho, key, eps, num_samples, row_offset, logits, True, kl)


def ar1_reparam(
    mu: Tensor,
    s: Parameter,
    rho: Parameter,
    *,
    num_samples: int | None = None,
    generator: torch.Generator | None = None,
    key: Key | None = None,
    row_offset: int = 0,
    eps: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""A reparametrised sample of the chain, differentiable by mu, s, rho and eps.

    .. math::
        z_k = \mu_k + s_k x_k, \qquad x_1 = \epsilon_1, \qquad
        x_k = \rho_k x_{k-1} + \sqrt{1 - \rho_k^2}\, \epsilon_k

    Args:
        mu, s, rho: mean, marginal standard deviation and lag-1 correlation; shapes and types as this module
            says. A row with |rho| >= 1 becomes NaN, alone; values are not inspected.
        num_samples: K draws K samples of every row, on a new axis in front. None: one sample, no such axis.
        generator: where the key of the noise is drawn from, on mu's device type; torch's default generator if
            neither key nor eps is given. It is advanced: two calls never share noise, and torch.manual_seed
            reproduces them. (torch.compile takes no generator objects: give a key there.)
        key: a seed, the pair (seed, offset) of ints in [0, 2^64), or a uint64 tensor (2,). The same key gives
            the same noise on every device and backend, for every thread count and split of the batch. For
            the steps of a loop derive keys, `fold_in(seed, step)`: (seed, step) is a trap, as the offset
            counts blocks of four values and step 1 would draw step 0's noise moved on. A tensor of shape
            (*lead, 2) is a key per row, which keeps its noise wherever it stands in a batch: rows are then
            numbered over the axes that are 1 in it (a key per item of (B, C, d): (B, 1, 2)). Under
            torch.compile a key that changes is best given as a tensor.
        row_offset: the number of the first row, in [0, 2^64): rows [a, b) of a batch drawn with row_offset=a
            are the rows that the whole batch would have.
        eps: standard normals of z's shape to use instead; no noise is drawn.
        backend: "auto" (None), "native", "triton" or "reference"; see :func:`rhovae_ext.available_backends`.

    Returns:
        z, in mu's type.

    Shape:
        z: (*lead, d), or (K, *lead, d) with num_samples=K.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, number or backend name.
        RuntimeError: the backend asked for is not available.

    Source:
        The reparametrisation of the rho-VAE (arXiv 1909.06236), in its corrected form. Noise: Philox4x32-10
        (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and the Box-Muller transform.
    """
    return _ar1(
        "ar1_reparam",
        mu,
        s,
        rho,
        num_samples,
        generator,
        key,
        row_offset,
        eps,
        backend,
        False,
        _NO_KL,
    )[0]


def ar1_reparam_kl(
    mu: Tensor,
    s: Parameter,
    rho: Parameter,
    *,
    num_samples: int | None = None,
    generator: torch.Generator | None = None,
    key: Key | None = None,
    row_offset: int = 0,
    eps: Tensor | None = None,
    per_dim: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`ar1_reparam` and :func:`ar1_kl` in one pass over mu.

    Args:
        per_dim: the KL of every step instead of their sum.
        The others are those of :func:`ar1_reparam`.

    Returns:
        (z, kl), kl in nats.

    Shape:
        z: (*lead, d), or (K, *lead, d) with num_samples=K. kl: (*lead), or (*lead, d) with per_dim; it has no
        sample axis.

    Raises:
        As :func:`ar1_reparam`.

    Source:
        As :func:`ar1_reparam` and :func:`ar1_kl`.
    """
    return _ar1(
        "ar1_reparam_kl",
        mu,
        s,
        rho,
        num_samples,
        generator,
        key,
        row_offset,
        eps,
        backend,
        False,
        _KL_PER_DIM if per_dim else _KL_PER_ROW,
    )


def ar1_reparam_kl_with_logits(
    mu: Tensor,
    log_s: Parameter,
    rho_logit: Parameter,
    *,
    num_samples: int | None = None,
    generator: torch.Generator | None = None,
    key: Key | None = None,
    row_offset: int = 0,
    eps: Tensor | None = None,
    per_dim: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`ar1_reparam_kl` from unconstrained parameters: what a model calls.

    `s = exp(log_s)`, `rho = tanh(rho_logit)`, `sqrt(1 - rho^2) = 1/cosh(rho_logit)`, taken together with
    their logarithms where rounding cannot hurt: z, kl and all gradients stay finite at any logit.

    Args:
        log_s, rho_logit: logarithm of s, inverse hyperbolic tangent of rho.
        The others are those of :func:`ar1_reparam_kl`, shapes, returns and errors too.

    Returns:
        (z, kl), kl in nats.

    Shape:
        z: (*lead, d), or (K, *lead, d) with num_samples=K. kl: (*lead), or (*lead, d) with per_dim.

    Raises:
        As :func:`ar1_reparam`.

    Source:
        As :func:`ar1_reparam` and :func:`ar1_kl`.
    """
    return _ar1(
        "ar1_reparam_kl_with_logits",
        mu,
        log_s,
        rho_logit,
        num_samples,
        generator,
        key,
        row_offset,
        eps,
        backend,
        True,
        _KL_PER_DIM if per_dim else _KL_PER_ROW,
    )


def _kl(
    operation: str,
    mu: Tensor,
    scale: Parameter,
    rho: Parameter,
    per_dim: bool,
    backend: str | None,
    logits: bool,
) -> Tensor:
    names = ("log_s", "rho_logit") if logits else ("s", "rho")
    scale, rho = arguments.parameters(operation, mu, scale, rho, *names)
    chosen = backends.choose(operation, backend, mu)
    kind = _KL_PER_DIM if per_dim else _KL_PER_ROW
    return chosen.ar1(mu, scale, rho, None, None, None, 0, logits, False, kind)[1]


def ar1_kl(
    mu: Tensor, s: Parameter, rho: Parameter, *, per_dim: bool = False, backend: str | None = None
) -> Tensor:
    r"""The KL divergence of the chain to the standard normal N(0, I), exact.

    .. math::
        \mathrm{KL}_k = \tfrac12 \left(s_k^2 + \mu_k^2 - 1 - \log s_k^2 - \log(1 - \rho_k^2)\right)

    with no rho term at k = 1; per row, the sum over k.

    Args:
        mu, s, rho: as in :func:`ar1_reparam`.
        per_dim: every KL_k instead of their sum.
        backend: as in :func:`ar1_reparam`.

    Returns:
        The KL in nats, float32 (float64 for a float64 mu). NaN in the rows with |rho| >= 1.

    Shape:
        (*lead), or (*lead, d) with per_dim.

    Raises:
        As :func:`ar1_reparam`.

    Source:
        The chain rule of the KL divergence on the Markov factorisation q(z_1) prod q(z_k | z_{k-1}) of the
        rho-VAE's posterior (arXiv 1909.06236).
    """
    return _kl("ar1_kl", mu, s, rho, per_dim, backend, False)


def ar1_kl_with_logits(
    mu: Tensor,
    log_s: Parameter,
    rho_logit: Parameter,
    *,
    per_dim: bool = False,
    backend: str | None = None,
) -> Tensor:
    """:func:`ar1_kl` from `log_s = log(s)` and `rho_logit = atanh(rho)`.

    `-log(1 - rho^2) = 2 (|a| + log1p(exp(-2 |a|)) - log 2)` for a = rho_logit: finite at any logit, as are
    its gradients.

    Returns:
        The KL in nats, float32 (float64 for a float64 mu).

    Shape:
        (*lead), or (*lead, d) with per_dim.

    Raises:
        As :func:`ar1_reparam`.

    Source:
        As :func:`ar1_kl`.
    """
    return _kl("ar1_kl_with_logits", mu, log_s, rho_logit, per_dim, backend, True)


def _log_prob(
    operation: str,
    z: Tensor,
    mu: Tensor,
    scale: Parameter,
    rho: Parameter,
    backend: str | None,
    logits: bool,
) -> Tensor:
    if isinstance(z, Tensor) and isinstance(mu, Tensor) and z.dtype is not mu.dtype:
        z, mu = arguments.promoted(z, mu), arguments.promoted(mu, z)
    names = ("log_s", "rho_logit") if logits else ("s", "rho")
    scale, rho = arguments.parameters(operation, mu, scale, rho, *names)
    arguments.density(operation, z, mu, scale, rho)
    return backends.choose(operation, backend, mu).ar1_log_prob(z, mu, scale, rho, logits)


def ar1_log_prob(
    z: Tensor, mu: Tensor, s: Parameter, rho: Parameter, *, backend: str | None = None
) -> Tensor:
    r"""The log-density of the chain at z, in O(d).

    .. math::
        x_k = (z_k - \mu_k)/s_k, \qquad \epsilon_k = (x_k - \rho_k x_{k-1})/\sqrt{1 - \rho_k^2}, \qquad
        \log q(z) = -\sum_k \left(\tfrac12 \epsilon_k^2 + \tfrac12\log 2\pi + \log s_k
        + \tfrac12\log(1 - \rho_k^2)\right)

    with epsilon_1 = x_1 and no rho term at k = 1.

    Args:
        z: the points, in mu's type; their leading axes broadcast with the others, samples in front.
        mu, s, rho, backend: as in :func:`ar1_reparam`.

    Returns:
        log q(z) in nats, float32 (float64 for a float64 mu). NaN in the rows with |rho| >= 1.

    Shape:
        z: (..., d). Returns the leading axes of z and *lead, broadcast.

    Raises:
        As :func:`ar1_reparam`.

    Source:
        Change of variables through the factorisation of the rho-VAE's posterior (arXiv 1909.06236).
    """
    return _log_prob("ar1_log_prob", z, mu, s, rho, backend, False)


def ar1_log_prob_with_logits(
    z: Tensor, mu: Tensor, log_s: Parameter, rho_logit: Parameter, *, backend: str | None = None
) -> Tensor:
    """:func:`ar1_log_prob` from `log_s = log(s)` and `rho_logit = atanh(rho)`, safe where rho rounds to 1.

    Returns:
        log q(z) in nats, float32 (float64 for a float64 mu).

    Shape:
        z: (..., d). Returns the leading axes of z and *lead, broadcast.

    Raises:
        As :func:`ar1_reparam`.

    Source:
        As :func:`ar1_log_prob`.
    """
    return _log_prob("ar1_log_prob_with_logits", z, mu, log_s, rho_logit, backend, True)


def ar1_entropy(s: Tensor, rho: Parameter) -> Tensor:
    r"""The differential entropy of the chain.

    .. math::
        H = \tfrac{d}{2} \log(2 \pi e) + \sum_k \log s_k + \tfrac12 \sum_{k \ge 2} \log(1 - \rho_k^2)

    Args:
        s: one value per step, (..., d): its last axis says how long the chain is.
        rho: a number; one per row, s.shape[:-1] or (..., 1); one per step, (..., d-1).

    Returns:
        The entropy in nats, float32 (float64 for a float64 s). NaN in the rows with |rho| >= 1.

    Shape:
        The leading axes of s and rho, broadcast.

    Raises:
        TypeError, ValueError: as :func:`ar1_reparam`.

    Source:
        The log-determinant of the covariance s_i s_j prod(rho), by the chain rule.
    """
    return reference.ar1_entropy(s, arguments.correlation("ar1_entropy", s, rho))
