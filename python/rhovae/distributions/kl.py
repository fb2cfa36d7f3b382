"""Exact KL divergences of Gaussian Markov chains, registered with ``torch.distributions``.

To a chain of independent steps or another chain they cost O(d), by the chain rule over
``q(z_k | z_{k-1})``; to a ``MultivariateNormal`` and from it they are dense.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence, register_kl

from rhovae.distributions.ar1_normal import AR1Normal
from rhovae.distributions.correlations import bounded, log_cosh, magnitude
from rhovae_ext import ar1_kl_with_logits

Chain: TypeAlias = "AR1Normal | Independent[Normal]"


def kl_per_dim(q: Chain, p: Chain | None = None) -> Tensor:
    r"""The terms of KL(q || p) along the chain, in nats: their sum over the last axis is the divergence.

    .. math::
        \mathrm{KL}_k = \mathbb{E}_q\left[\log q(z_k \mid z_{k-1}) - \log p(z_k \mid z_{k-1})\right]

    Args:
        q, p: an :class:`AR1Normal`, or ``Independent(Normal, 1)``; p is N(0, I) by default.

    Shape:
        ``(*batch_shape, d)``, the batch shapes of the two broadcast.

    Raises:
        NotImplementedError: another distribution, whose KL has no such terms.
    """
    chain = q if isinstance(q, AR1Normal) else _chain(q)
    if p is None or isinstance(p, Independent):
        return _to_independent(chain, p, per_dim=True)
    if isinstance(p, AR1Normal):
        return _to_chain(chain, p)
    raise _no_terms(p)


@register_kl(AR1Normal, Independent)
def _(q: AR1Normal, p: Independent[Normal]) -> Tensor:
    return _to_independent(q, p, per_dim=False)


@register_kl(Independent, AR1Normal)
def _(q: Independent[Normal], p: AR1Normal) -> Tensor:
    return _to_chain(_chain(q), p).sum(-1)


@register_kl(AR1Normal, AR1Normal)
def _(q: AR1Normal, p: AR1Normal) -> Tensor:
    return _to_chain(q, p).sum(-1)


@register_kl(AR1Normal, MultivariateNormal)
def _(q: AR1Normal, p: MultivariateNormal) -> Tensor:
    return kl_divergence(q.multivariate_normal(), p)


@register_kl(MultivariateNormal, AR1Normal)
def _(q: MultivariateNormal, p: AR1Normal) -> Tensor:
    return kl_divergence(q, p.multivariate_normal())


def _to_independent(q: AR1Normal, p: Independent[Normal] | None, *, per_dim: bool) -> Tensor:
    """The KL is that of the two chains seen in p's units, where p is N(0, I)."""
    loc, log_scale, logit = q.loc, q._log_scale, q._corr_logit
    if p is not None:
        base = _normal(p)
        _check_event("Independent(Normal)", q, base.loc.shape[-1])
        loc = (loc.to(log_scale.dtype) - base.loc) / base.scale
        log_scale = log_scale - base.scale.log()
        # ranks decide what a parameter is: the three need equally many axes
        logit = logit.expand(*loc.shape[:-1], logit.shape[-1])
    return ar1_kl_with_logits(loc, log_scale, logit, per_dim=per_dim, backend=q.backend)


def _to_chain(q: AR1Normal, p: AR1Normal) -> Tensor:
    r"""The terms, with m, s for q's mean and scale in p's units, rho = tanh(a) of q and r = tanh(b) of p:

    ``E_q[(x_k - r x_{k-1})^2] = s_k^2 (1 - rho^2) + (rho s_k - r s_{k-1})^2 + (m_k - r m_{k-1})^2``, over
    ``1 - r^2 = 1/cosh(b)^2``.
    """
    _check_event("AR1Normal", q, p.loc.shape[-1])
    # what one value says for a whole row is computed once for it
    m = (q.loc - p.loc) * torch.exp(-p._log_scale)
    m, log_s = torch.broadcast_tensors(m, q._log_scale - p._log_scale)
    s = log_s.exp()
    a = q._corr_logit
    gain = log_cosh(a) - log_cosh(p._corr_logit)  # 1/2 log((1 - r^2) / (1 - rho^2))
    b = bounded(p._corr_logit)  # these two grow like cosh(b)
    fresh = torch.exp(2.0 * (log_s[..., 1:] - gain))
    carried = _innovation(a.tanh() * s[..., 1:], s[..., :-1], b)
    drift = _innovation(m[..., 1:], m[..., :-1], b)
    later = 0.5 * (fresh + carried.square() + drift.square() - 1.0) + gain - log_s[..., 1:]
    first = 0.5 * (s[..., :1].square() + m[..., :1].square() - 1.0) - log_s[..., :1]
    lead = torch.broadcast_shapes(first.shape[:-1], later.shape[:-1])
    return torch.cat((first.expand(*lead, -1), later.expand(*lead, -1)), dim=-1)


def _innovation(now: Tensor, before: Tensor, logit: Tensor) -> Tensor:
    """``(now - r before) / sqrt(1 - r^2)`` with r = tanh(logit), keeping 1 - |r| exact."""
    q = torch.exp(-2.0 * magnitude(logit))
    aligned = torch.where(logit >= 0, before, -before)
    return ((now - aligned) + aligned * (2.0 * q / (1.0 + q))) * logit.cosh()


def _chain(q: Independent[Normal]) -> AR1Normal:
    base = _normal(q)
    return AR1Normal.from_logits(base.loc, base.scale.log(), 0.0, validate_args=False)


def _normal(p: Independent[Normal]) -> Normal:
    if not isinstance(p, Independent) or not isinstance(p.base_dist, Normal) or len(p.event_shape) != 1:
        raise _no_terms(p)
    return p.base_dist


def _no_terms(p: object) -> NotImplementedError:
    return NotImplementedError(
        "the KL divergence of an AR1Normal is known to and from Independent(Normal, 1), AR1Normal and "
        f"MultivariateNormal (the last not per dimension), but got {p!r}"
    )


def _check_event(name: str, q: AR1Normal, d: int) -> None:
    if q.loc.shape[-1] != d:
        raise ValueError(
            f"kl_divergence: AR1Normal and {name} must have as many steps, but got d = {q.loc.shape[-1]} "
            f"and {d}"
        )
