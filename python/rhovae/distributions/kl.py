"""Exact KL divergences of Gaussian Markov chains, registered with ``torch.distributions``.

To a chain of independent steps or another chain they cost O(d), by the chain rule over
``q(z_k | z_{k-1})``; to a ``MultivariateNormal``, low-rank or not, and from it they are dense.
``Independent`` may stand around both, with different numbers of axes.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)
from torch.nn.functional import pad

from rhovae.distributions.ar1_normal import AR1Normal
from rhovae.distributions.correlations import LARGEST_LOGIT, total
from rhovae.distributions.terms import divergence, terms
from rhovae_ext import ar1_kl_with_logits
from rhovae_ext.correlation import innovation, log_cosh
from rhovae_ext.shapes import arithmetic_dtype, widest_dtype

Chain: TypeAlias = "AR1Normal | Independent[Normal]"
Dense: TypeAlias = "MultivariateNormal | LowRankMultivariateNormal"


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
    raise _unknown(q, p)


@register_kl(AR1Normal, Independent)
def _(q: AR1Normal, p: Independent[Normal]) -> Tensor:
    return _to_independent(q, p, per_dim=False)


@register_kl(Independent, AR1Normal)
def _(q: Independent[Normal], p: AR1Normal) -> Tensor:
    return total(_to_chain(_chain(q), p))


@register_kl(AR1Normal, AR1Normal)
def _(q: AR1Normal, p: AR1Normal) -> Tensor:
    return total(_to_chain(q, p))


@register_kl(AR1Normal, MultivariateNormal)
@register_kl(AR1Normal, LowRankMultivariateNormal)
def _(q: AR1Normal, p: Dense) -> Tensor:
    _check_event(type(p).__name__, q, p.loc.shape[-1])
    dtype, q = _result_dtype(q.loc, p.loc), _widened(q)
    factor = p.scale_tril.to(q.loc.dtype)
    ratio = torch.linalg.solve_triangular(factor, _squarable(q).scale_tril, upper=False)
    shift = torch.linalg.solve_triangular(factor, (q.loc - p.loc).unsqueeze(-1), upper=False)
    return _dense(_log_diagonal(q) - factor.diagonal(0, -2, -1).log(), ratio, shift.squeeze(-1)).to(dtype)


@register_kl(MultivariateNormal, AR1Normal)
@register_kl(LowRankMultivariateNormal, AR1Normal)
def _(q: Dense, p: AR1Normal) -> Tensor:
    _check_event(type(q).__name__, p, q.loc.shape[-1])
    dtype, p = _result_dtype(q.loc, p.loc), _widened(p)
    factor, units = q.scale_tril.to(p.loc.dtype), _squarable(p)
    ratio, shift = _whitened(factor.mT, units).mT, _whitened(q.loc - p.loc, units, 0)
    return _dense(factor.diagonal(0, -2, -1).log() - _log_diagonal(p), ratio, shift).to(dtype)


@register_kl(Independent, Independent)
def _(q: Independent[Distribution], p: Independent[Distribution]) -> Tensor:
    """The axes that both have made events are summed over: torch's own rule, for any number of them.

    A batch of channels, ``Independent(AR1Normal, 1)``, has for its prior ``Independent(Normal, 2)``.
    """
    shared = min(q.reinterpreted_batch_ndims, p.reinterpreted_batch_ndims)
    kl = kl_divergence(_without(shared, q), _without(shared, p))
    return kl.flatten(-shared).sum(-1) if shared else kl


def _without(axes: int, q: Independent[Distribution]) -> Distribution:
    rest = q.reinterpreted_batch_ndims - axes
    return Independent(q.base_dist, rest) if rest else q.base_dist


@register_kl(AR1Normal, Distribution)
@register_kl(Distribution, AR1Normal)
def _(q: Distribution, p: Distribution) -> Tensor:
    raise _unknown(q, p)


def _dense(log_diagonal: Tensor, ratio: Tensor, shift: Tensor) -> Tensor:
    """The KL from ``ratio = L^-1 L_q``, L of p, the logs of its diagonal and ``L^-1 (m_q - m_p)``."""
    rest = ratio.tril(-1).square().sum((-1, -2)) + shift.square().sum(-1)
    return divergence(log_diagonal).sum(-1) + 0.5 * rest


def _log_diagonal(q: AR1Normal) -> Tensor:
    """Of the Cholesky factor: log s_1, then log s_k - log cosh a_k."""
    return q.log_scale - pad(log_cosh(q.corr_logit), (1, 0))


def _whitened(values: Tensor, p: AR1Normal, rows: int = 1) -> Tensor:
    """The innovations that make p's deviations from its mean these values, over as many more axes of rows."""
    scale, logit = (x.reshape(*x.shape[:-1], *[1] * rows, x.shape[-1]) for x in (p.scale, p.corr_logit))
    x = values / scale
    return torch.cat((x[..., :1], innovation(x[..., 1:], x[..., :-1], logit, LARGEST_LOGIT[x.dtype])), -1)


def _widened(q: AR1Normal) -> AR1Normal:
    """The same chain in the type whose sums of squares keep their digits."""
    loc = q.loc.to(widest_dtype(q.loc))
    logs = (x.to(loc.dtype) for x in q._exact_logits())
    return AR1Normal.from_logits(loc, *logs, validate_args=False)


def _squarable(q: AR1Normal) -> AR1Normal:
    """The same chain, but for scales whose squares would leave the type."""
    largest = 0.25 * math.log(torch.finfo(q.loc.dtype).max)
    log_scale, corr_logit = q._rounded_logits()
    return AR1Normal.from_logits(q.loc, log_scale.clamp(-largest, largest), corr_logit, validate_args=False)


def _result_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.promote_types(arithmetic_dtype(a), arithmetic_dtype(b))


def _to_independent(q: AR1Normal, p: Independent[Normal] | None, *, per_dim: bool) -> Tensor:
    """The KL is that of the two chains seen in p's units, where p is N(0, I)."""
    loc, log_scale, logit = q.loc, *q._rounded_logits()
    if p is not None:
        base = _normal(p)
        if per_dim:
            return _to_chain(q, _chain(p))
        _check_event("Independent(Normal)", q, base.loc.shape[-1])
        dtype, wide = _result_dtype(loc, base.loc), widest_dtype(loc)
        loc = ((loc.to(wide) - base.loc) / base.scale).to(dtype)
        log_scale = (q._exact_logits()[0].to(wide) - base.scale.to(wide).log()).to(dtype)
        # ranks decide what a parameter is: the three need equally many axes
        logit = logit.to(dtype).expand(*loc.shape[:-1], logit.shape[-1])
    return ar1_kl_with_logits(loc, log_scale, logit, per_dim=per_dim, backend=q.backend)


def _to_chain(q: AR1Normal, p: AR1Normal) -> Tensor:
    _check_event("AR1Normal", q, p.loc.shape[-1])
    return terms(q.loc, *q._exact_logits(), p.loc, *p._exact_logits(), _result_dtype(q.loc, p.loc))


def _chain(q: Independent[Normal]) -> AR1Normal:
    base = _normal(q)
    return AR1Normal(base.loc, base.scale, 0.0, validate_args=False)


def _normal(p: Independent[Normal]) -> Normal:
    if not isinstance(p, Independent) or not isinstance(p.base_dist, Normal) or len(p.event_shape) != 1:
        raise _unknown(p)
    return p.base_dist


def _unknown(*pair: object) -> NotImplementedError:
    return NotImplementedError(
        "the KL divergence of an AR1Normal is known to and from Independent(Normal, 1), AR1Normal and, not "
        "per dimension, MultivariateNormal and LowRankMultivariateNormal, and with Independent around both, "
        f"but got {' and '.join(map(repr, pair))}. Independent(p, 1) makes a Normal's last axis the chain's; "
        "else average q.log_prob(z) - p.log_prob(z) over z = q.rsample((n,))."
    )


def _check_event(name: str, q: AR1Normal, d: int) -> None:
    if q.loc.shape[-1] != d:
        raise ValueError(
            f"kl_divergence: AR1Normal and {name} must have as many steps, but got d = {q.loc.shape[-1]} "
            f"and {d}"
        )
