"""The Gaussian Markov chain as a ``torch.distributions.Distribution``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, overload

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal, constraints
from torch.distributions.constraint_registry import biject_to, transform_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import TanhTransform
from torch.distributions.utils import lazy_property

from rhovae.distributions.correlations import (
    bounded,
    cumulative_correlations,
    cumulative_logits,
    tanh,
    total,
)
from rhovae_ext import ar1_log_prob_with_logits, ar1_reparam_kl_with_logits, arguments
from rhovae_ext.arguments import Key
from rhovae_ext.correlation import inside, log_cosh
from rhovae_ext.shapes import arithmetic_dtype, widest_dtype

Self = TypeVar("Self", bound="AR1Normal")


class _Correlation(Constraint):
    """Numbers strictly between -1 and 1."""

    def check(self, value: Tensor) -> Tensor:
        return value.abs() < 1

    def __repr__(self) -> str:
        return "-1 < value < 1"


correlation = _Correlation()
"""Constraint ``-1 < value < 1``; unconstrained optimisers reach it through ``tanh``."""


@biject_to.register(correlation)
@transform_to.register(correlation)
def _tanh(_: Constraint) -> TanhTransform:
    return TanhTransform()


if TYPE_CHECKING:
    _derived = property
else:

    class _derived(lazy_property):
        """A property worked out at every use: parameters that an optimiser moves leave nothing stale behind.

        By its type a ``lazy_property``, which torch's own check of the parameters passes over.
        """

        def __get__(self, instance, owner=None):
            return super().__get__(None, owner) if instance is None else self.wrapped(instance)


class AR1Normal(Distribution):
    r"""A Gaussian Markov chain over the last axis.

    .. math::
        z_k = \mu_k + s_k x_k, \qquad x_1 = \epsilon_1, \qquad
        x_k = \rho_k x_{k-1} + \sqrt{1 - \rho_k^2}\, \epsilon_k

    ``scale`` holds the marginal standard deviations s and ``corr`` the lag-1 correlations rho, so that
    ``Cov(z_i, z_j) = s_i s_j prod(rho)`` over the steps between. With values per step this is every Gaussian
    with a tridiagonal precision matrix; ``corr=0`` is ``Independent(Normal(loc, scale), 1)``. Sampling,
    density, entropy and the registered KL divergences (``torch.distributions.kl_divergence``) cost O(d).

    Args:
        loc: means, ``(..., d)``.
        scale: a number, or what broadcasts with loc as in torch's distributions, from the right: ``(d,)`` or
            ``(..., d)`` per step, ``(..., 1)`` one per row, ``(C, 1)`` beside a loc of ``(B, C, d)`` one per
            channel.
        corr: the same, with ``d-1`` steps: ``corr[..., k]`` ties the steps k and k+1.
        backend: of ``rhovae_ext`` (default: the best available).
        validate_args: check values (``scale > 0``, ``-1 < corr < 1``); it reads them, as any distribution's.
            Unchecked, NaN and a ``corr`` outside give NaN in their row.

    Shape:
        ``batch_shape`` is what the leading axes broadcast to, ``event_shape`` is ``(d,)``. (The functions of
        ``rhovae_ext`` read a scale without the chain's axis as one value per row; here that is
        ``scale[..., None]``.)

    Raises:
        TypeError, ValueError: a wrong type, shape or, with ``validate_args``, value.

    It keeps the tensors that it was given and works out all else when asked: a module may hold one of its
    parameters, train them, and be copied or saved.

    Source:
        The posterior of the rho-VAE (arXiv 1909.06236), in its corrected form and with values per step.
    """

    arg_constraints = {  # noqa: RUF012  (torch's own form)
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "corr": constraints.independent(correlation, 1),
        "log_scale": constraints.real_vector,
        "corr_logit": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True

    backend: str | None

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor | float,
        corr: Tensor | float,
        *,
        backend: str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._assign(False, loc, scale, corr, backend, validate_args)

    @classmethod
    def from_logits(
        cls: type[Self],
        loc: Tensor,
        log_scale: Tensor | float,
        corr_logit: Tensor | float = 0.0,
        *,
        backend: str | None = None,
        validate_args: bool | None = None,
    ) -> Self:
        """The chain with ``scale = exp(log_scale)`` and ``corr = tanh(corr_logit)``: what a network gives.

        Nothing saturates: density, KL and gradients stay finite where ``corr`` itself rounds to 1.
        """
        chain = cls.__new__(cls)
        chain._assign(True, loc, log_scale, corr_logit, backend, validate_args)
        return chain

    def _assign(
        self,
        logits: bool,
        loc: Tensor,
        scale: Tensor | float,
        corr: Tensor | float,
        backend: str | None,
        validate: bool | None,
    ) -> None:
        names = ("log_scale", "corr_logit") if logits else ("scale", "corr")
        self._loc, self._logits, self.backend = loc, logits, backend
        self._scale, self._corr, batch_shape = _checked(loc, scale, corr, *names)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate)
        if self._validate_args:
            for name, value in zip(("loc", *names), (loc, *self._given()), strict=True):
                self._check_values(name, value)

    def _check_values(self, name: str, value: Tensor) -> None:
        vectors: Any = self.arg_constraints[name]
        constraint = vectors.base_constraint
        valid = constraint.check(value)
        if not torch._is_all_true(valid):
            raise ValueError(
                f"{type(self).__name__}: parameter {name} must satisfy {constraint}, but got "
                f"{value[~valid][0].item()}. With validate_args=False its row is NaN instead."
            )

    def expand(self: Self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """A view with this batch shape."""
        new: Self = self._get_checked_instance(AR1Normal, _instance)  # type: ignore[no-untyped-call]
        shape = torch.Size(batch_shape)
        self.loc.expand(*shape, -1)  # refuses a shape that cannot be
        new._loc, new._scale, new._corr = self._loc, self._scale, self._corr
        new._logits, new.backend = self._logits, self.backend
        super(AR1Normal, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    # Parameters

    def _given(self) -> tuple[Tensor, Tensor]:
        """scale and corr, or their logits, with the chain's axis: of 1 or as long as it needs to be."""
        scale, corr = (x.reshape(1) if x.dim() == 0 else x for x in (self._scale, self._corr))
        return scale, corr[..., : self._loc.shape[-1] - 1]

    def _over_batch(self, value: Tensor, steps: int = -1) -> Tensor:
        return value.expand(*self.batch_shape, steps)

    def _exact_logits(self) -> tuple[Tensor, Tensor]:
        """log s and atanh rho over the batch. One value for a row stays one: the kernels need not read d."""
        scale, corr = self._given()
        if not self._logits:
            # a logarithm rounded to float32 has lost what sets two nearly equal chains apart
            wide = widest_dtype(self._loc)
            scale, corr = scale.to(wide).log(), inside(corr.to(wide)).atanh()
        return self._over_batch(scale), self._over_batch(corr)

    def _rounded_logits(self) -> tuple[Tensor, Tensor]:
        """The same in the type of the arithmetic."""
        dtype = arithmetic_dtype(self._loc)
        log_scale, corr_logit = self._exact_logits()
        return log_scale.to(dtype), corr_logit.to(dtype)

    @_derived
    def loc(self) -> Tensor:
        """Means, ``(*batch_shape, d)``."""
        return self._over_batch(self._loc)

    @_derived
    def scale(self) -> Tensor:
        """Marginal standard deviations, ``(*batch_shape, d)``."""
        value = self._given()[0].to(arithmetic_dtype(self._loc))
        return self._over_batch(value.exp() if self._logits else value, self._loc.shape[-1])

    @_derived
    def corr(self) -> Tensor:
        """Lag-1 correlations, ``(*batch_shape, d-1)``."""
        value = self._given()[1].to(arithmetic_dtype(self._loc))
        return self._over_batch(tanh(value) if self._logits else value, self._loc.shape[-1] - 1)

    @_derived
    def log_scale(self) -> Tensor:
        """``log(scale)``, ``(*batch_shape, d)``."""
        return self._over_batch(self._rounded_logits()[0], self._loc.shape[-1])

    @_derived
    def corr_logit(self) -> Tensor:
        """``atanh(corr)``, ``(*batch_shape, d-1)``."""
        return self._over_batch(self._rounded_logits()[1], self._loc.shape[-1] - 1)

    # Sampling and density

    def rsample_kl(
        self,
        sample_shape: Sequence[int] = (),
        *,
        key: Key | None = None,
        row_offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A reparametrised sample and KL(self || N(0, I)), in one pass of the fused kernel.

        Args:
            sample_shape: axes of independent samples in front.
            key: fixes the noise, whatever the device, thread count or batch split: ``(seed, offset)``, or
                what ``rhovae_ext.fold_in`` derives from a seed and the number of a step, epoch or batch.
                ``(seed, step)`` is no such key: step 1 would draw step 0's noise moved on by four values.
            row_offset: the global index of row 0, so that parts of a batch draw the noise of the whole.
            generator: drawn from when no key is given (default: torch's own).

        Shape:
            ``(*sample_shape, *batch_shape, d)`` and ``batch_shape``.
        """
        if any(size < 0 for size in sample_shape):
            raise ValueError(f"AR1Normal: sample_shape must have no negative size, got {tuple(sample_shape)}")
        shape = self._extended_shape(torch.Size(sample_shape))
        count = math.prod(sample_shape)
        z, kl = ar1_reparam_kl_with_logits(
            self.loc,
            *self._rounded_logits(),
            num_samples=max(count, 1) if len(sample_shape) else None,
            key=key,
            row_offset=row_offset,
            generator=generator,
            backend=self.backend,
        )
        return (z[:0] if count == 0 else z).reshape(shape), kl

    def rsample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        key: Key | None = None,
        row_offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The sample of :meth:`rsample_kl` alone."""
        return self.rsample_kl(sample_shape, key=key, row_offset=row_offset, generator=generator)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """log-density in nats, O(d): the standardised innovations and the logs of the change of variables."""
        # torch's check of a vector's values fails on none at all
        if self._validate_args and value.numel():
            self._validate_sample(value)
        return ar1_log_prob_with_logits(value, self.loc, *self._rounded_logits(), backend=self.backend)

    def entropy(self) -> Tensor:
        """``d/2 (1 + log 2 pi) + sum log s_k + 1/2 sum log(1 - rho_k^2)`` in nats, ``batch_shape``."""
        d = self.loc.shape[-1]
        logs = total(self.log_scale) - total(log_cosh(self.corr_logit))
        return 0.5 * d * (1.0 + math.log(2.0 * math.pi)) + logs

    # Moments

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return self.scale

    @property
    def variance(self) -> Tensor:
        return self.scale.square()

    @_derived
    def covariance_matrix(self) -> Tensor:
        """``s_i s_j prod(rho)``, ``(*batch_shape, d, d)``."""
        lower = cumulative_correlations(self.corr)
        return self.scale.unsqueeze(-1) * (lower + lower.tril(-1).mT) * self.scale.unsqueeze(-2)

    @_derived
    def scale_tril(self) -> Tensor:
        """The Cholesky factor of the covariance, ``L_ij = s_i rho_{j+1} ... rho_i sqrt(1 - rho_j^2)``."""
        innovation = torch.nn.functional.pad(torch.exp(-log_cosh(self.corr_logit)), (1, 0), value=1.0)
        return self.scale.unsqueeze(-1) * cumulative_correlations(self.corr) * innovation.unsqueeze(-2)

    def precision_bands(self) -> tuple[Tensor, Tensor]:
        """Diagonal ``(*batch_shape, d)`` and first off-diagonal ``(*batch_shape, d-1)`` of the precision.

        ``P_kk = (1/(1-rho_k^2) + rho_{k+1}^2/(1-rho_{k+1}^2)) / s_k^2`` and
        ``P_{k,k+1} = -rho_{k+1}/(1-rho_{k+1}^2) / (s_k s_{k+1})``; all else is zero.
        """
        a = bounded(self.corr_logit)
        odds = a.sinh().square()  # rho^2 / (1 - rho^2)
        pad = torch.nn.functional.pad
        diagonal = (1.0 + pad(odds, (1, 0)) + pad(odds, (0, 1))) / self.variance
        return diagonal, -(a.sinh() * a.cosh()) / (self.scale[..., 1:] * self.scale[..., :-1])

    @_derived
    def precision_matrix(self) -> Tensor:
        """The inverse covariance written out, ``(*batch_shape, d, d)``; O(d) are :meth:`precision_bands`."""
        diagonal, beside = self.precision_bands()
        matrix: Tensor = torch.diag_embed(diagonal)
        if beside.shape[-1]:
            matrix = matrix + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
        return matrix

    def multivariate_normal(self) -> MultivariateNormal:
        """The same distribution in torch's dense form."""
        return MultivariateNormal(self.loc, scale_tril=self.scale_tril, validate_args=False)

    # Other chains in closed form

    @overload
    def marginal(self, k: int) -> Normal: ...

    @overload
    def marginal(self: Self, k: slice | Sequence[int]) -> Self: ...

    def marginal(self: Self, k: int | slice | Sequence[int]) -> Normal | Self:
        """The distribution of ``z[..., k]``: a ``Normal`` of one step, or the chain of several.

        Steps left out multiply their correlations, as in any Markov chain.

        Args:
            k: a step; or increasing steps, as a slice or a sequence.

        Raises:
            IndexError: no such step. ValueError: the steps do not increase.
        """
        if isinstance(k, int):
            return Normal(self.loc[..., k], self.scale[..., k], validate_args=False)
        steps = range(self.loc.shape[-1])
        kept = list(steps[k]) if isinstance(k, slice) else [steps[i] for i in k]
        pairs = list(itertools.pairwise(kept))
        if not kept or any(i >= j for i, j in pairs):
            raise ValueError(
                f"AR1Normal.marginal: k must be one or more increasing steps of the chain, but got {k!r}. "
                "Use reverse() for the other direction."
            )
        logits = self.corr_logit
        between = [cumulative_logits(logits[..., i:j])[..., -1:] for i, j in pairs] or [logits[..., :0]]
        return self._like(self.loc[..., kept], self.log_scale[..., kept], torch.cat(between, -1))

    def condition(self: Self, prefix: Tensor) -> Self:
        """The distribution of the steps after ``prefix``, given that the first ones are ``prefix``.

        With g the correlation of step k with the prefix's last step, ``mu_k + s_k g_k x_p`` is the mean and
        ``s_k sqrt(1 - g_k^2)`` the standard deviation; the chain stays Markov.

        Args:
            prefix: ``(..., p)`` with 1 <= p < d; leading axes broadcast with ``batch_shape``.

        Raises:
            ValueError: no step would be left, or none is given.
        """
        p, d = prefix.shape[-1] if prefix.dim() else 0, self.loc.shape[-1]
        if not 1 <= p < d:
            raise ValueError(
                f"AR1Normal.condition: prefix must be of shape (..., p) with 1 <= p < d = {d}, "
                f"but got shape {tuple(prefix.shape)}. The steps after the prefix are what is left."
            )
        last = (prefix[..., -1:] - self.loc[..., p - 1 : p]) / self.scale[..., p - 1 : p]
        a = self.corr_logit[..., p - 1 :]
        g = cumulative_logits(a)
        mean = self.loc[..., p:] + (self.scale[..., p:] * tanh(g) * last).to(self.loc.dtype)
        log_scale = self.log_scale[..., p:] - log_cosh(g)
        # sinh(a') = rho' / sqrt(1 - rho'^2) of the new chain
        logits = torch.asinh(bounded(a[..., 1:]).sinh() * torch.exp(-log_cosh(g[..., :-1])))
        return self._like(mean, log_scale, logits)

    def reverse(self: Self) -> Self:
        """The distribution of ``z.flip(-1)``: a chain read from its end has the same correlations."""
        log_scale, corr_logit = self._rounded_logits()
        return self._like(self.loc.flip(-1), log_scale.flip(-1), corr_logit.flip(-1))

    def _like(self: Self, loc: Tensor, log_scale: Tensor, corr_logit: Tensor) -> Self:
        chain = self.from_logits(loc, log_scale, corr_logit, backend=self.backend, validate_args=False)
        chain._validate_args = self._validate_args
        return chain

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)}, d={self.event_shape[0]})"


def _checked(
    loc: Tensor, scale: Tensor | float, corr: Tensor | float, scale_name: str, corr_name: str
) -> tuple[Tensor, Tensor, torch.Size]:
    """scale and corr as tensors, and the batch shape: what the leading axes broadcast to."""
    d = arguments.chain_length("AR1Normal", "loc", loc)
    batch_shape = loc.shape[:-1]
    for name, value, steps, per_step in ((scale_name, scale, d, "d"), (corr_name, corr, d - 1, "d-1")):
        if not _is_dense(value) or value.dim() == 0:
            continue
        try:
            batch_shape = torch.broadcast_shapes(batch_shape, value.shape[:-1])
            fits = value.shape[-1] in (1, steps)
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"AR1Normal: {name} must be a number or, from the right, (..., {per_step}) = (..., {steps}) "
                f"per step or (..., 1) per row, its leading axes broadcasting with {tuple(batch_shape)}, but "
                f"got shape {tuple(value.shape)} beside loc of shape {tuple(loc.shape)}. "
                f"For one value per row give {name}[..., None]."
            )
    # of equal rank the three are read by the functions of rhovae_ext as here; they check types and devices
    rank = len(batch_shape) + 1
    mu, *given = (_with_axes(x, rank) for x in (loc, scale, corr))
    tensors = arguments.parameters("AR1Normal", mu, given[0], given[1], scale_name, corr_name, "loc")
    return _kept(scale, tensors[0]), _kept(corr, tensors[1]), batch_shape


def _kept(given: Tensor | float, tensor: Tensor) -> Tensor:
    """What was given itself, where it is a tensor: a leaf stays one."""
    return given if isinstance(given, Tensor) else tensor


def _is_dense(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested


def _with_axes(value: Any, rank: int) -> Any:
    if not _is_dense(value) or value.dim() == 0:
        return value
    return value.reshape((1,) * (rank - value.dim()) + value.shape)
