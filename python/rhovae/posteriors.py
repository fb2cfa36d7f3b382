"""Gaussian posteriors q(z | x) for variational autoencoders, as heads to put on any encoder.

Every one is a Gaussian Markov chain over the latent axis, ``z_k = mu_k + s_k x_k`` with
``x_k = rho_k x_{k-1} + sqrt(1 - rho_k^2) eps_k``; they differ only in how many ``s`` and ``rho`` they learn:

========  =====================  ======================  ==========================================
name      standard deviation     lag-1 correlation       note
========  =====================  ======================  ==========================================
``diag``  one per dimension      none                    the ordinary mean-field posterior
``iso``   one per row            none                    spherical
``rho``   one per row            one per row             the rho-VAE (arXiv 1909.06236)
``ar1``   one per dimension      one per step            every Gaussian with a tridiagonal precision
========  =====================  ======================  ==========================================

In a VAE of your own::

    self.head = make_posterior("rho", features=400, latent_dim=10)   # in __init__
    z, kl = self.head(hidden).rsample_kl()                           # in forward
    loss = (reconstruction + kl).mean()                              # both of shape (batch,)

Noise that a resumed run draws again takes a key of its own for every batch, from ``rhovae_ext.fold_in``::

    rsample_kl(key=fold_in(fold_in(seed, epoch), batch))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rhovae.distributions import AR1Normal
from rhovae.registry import Registry
from rhovae_ext import ar1_kl_with_logits, ar1_log_prob_with_logits, ar1_reparam_kl_with_logits
from rhovae_ext.arguments import Key
from rhovae_ext.shapes import arithmetic_dtype

Self = TypeVar("Self", bound="Posterior")


class Posterior(tuple[Tensor, Tensor, Tensor, "str | None"]):
    """The Gaussian Markov chain q(z | x), one per row, given by ``mu``, ``log_s`` and ``rho_logit``.

    ``s = exp(log_s)`` is the marginal standard deviation and ``rho = tanh(rho_logit)`` the lag-1 correlation,
    so that no value of the parameters leaves the family: every method stays finite where float32 can hold
    the answer.

    A tuple of its four arguments, and a pytree whose leaves are its tensors, so that DDP, FSDP2, hooks,
    ``torch.func``, ``torch.compile`` and ``torch.export`` find them in what a module returns. A reentrant
    checkpoint gives back a bare tuple: ``Posterior(*checkpoint(head, x, use_reentrant=True))``. Subclasses
    keep to the four arguments.

    Shape:
        mu ``(..., d)``; log_s ``(..., 1)`` or ``(..., d)``; rho_logit ``(..., 1)``, ``(..., d-1)`` or a
        number. Samples are ``(..., d)``, or ``(K, ..., d)`` with ``num_samples=K``; the KL and the entropy
        are ``(...)``, in nats.
    """

    __slots__ = ()

    # FSDP and Lightning put what has these two together again as type(x)(*parts). A list: a tuple of names
    # would have pytrees see the backend as a leaf, which vmap and others refuse.
    _fields = ["mu", "log_s", "rho_logit", "backend"]  # noqa: RUF012

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def __new__(
        cls: type[Self],
        mu: Tensor,
        log_s: Tensor,
        rho_logit: Tensor | float = 0.0,
        backend: str | None = None,
    ) -> Self:
        if not isinstance(rho_logit, Tensor):
            dtype = arithmetic_dtype(mu)
            largest = torch.finfo(dtype).max
            number = min(max(float(rho_logit), -largest), largest)
            # as many axes as mu, one for the chain among them: vmap puts its own in front
            rho_logit = torch.full((1,) * mu.dim(), number, dtype=dtype, device=mu.device)
        return super().__new__(cls, (mu, log_s, rho_logit, backend))

    @classmethod
    def _make(cls: type[Self], parts: Iterable[Any]) -> Self:
        """From the four parts: what a compiled function calls to return one."""
        return cls(*parts)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _register(cls)

    @property
    def mu(self) -> Tensor:
        """Means, ``(..., d)``."""
        return self[0]

    @property
    def log_s(self) -> Tensor:
        """Logarithms of the standard deviations, as given."""
        return self[1]

    @property
    def rho_logit(self) -> Tensor:
        """Inverse hyperbolic tangents of the correlations, as given; of a number, ``(1, ..., 1)``."""
        return self[2]

    @property
    def backend(self) -> str | None:
        """Which ``rhovae_ext`` backend computes it; None: the best available."""
        return self[3]

    def _chain(self) -> tuple[Tensor, Tensor, Tensor]:
        """mu, log_s and rho_logit of the chain that every method is about."""
        return self[:3]

    def rsample_kl(
        self,
        num_samples: int | None = None,
        *,
        key: Key | None = None,
        row_offset: int = 0,
        generator: torch.Generator | None = None,
        per_dim: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """A reparametrised sample and KL(q || N(0, I)), in one pass of the fused kernel.

        Args:
            num_samples: ``K`` puts an axis of ``K`` samples in front of z; the KL keeps its shape.
            key: fixes the noise, whatever the device, thread count or batch split: ``(seed, offset)``, or
                what ``rhovae_ext.fold_in`` derives from a seed and the number of a step, epoch or batch.
                ``(seed, step)`` is no such key: step 1 would draw step 0's noise moved on by four values.
            row_offset: the global index of row 0, so that parts of a batch draw the noise of the whole.
            generator: drawn from when no key is given (default: torch's own).
            per_dim: the terms of the KL instead of their sum.
        """
        z, kl = ar1_reparam_kl_with_logits(
            *self._chain(),
            num_samples=num_samples,
            key=key,
            row_offset=row_offset,
            generator=generator,
            per_dim=per_dim,
            backend=self.backend,
        )
        return z, kl

    def rsample(
        self,
        num_samples: int | None = None,
        *,
        key: Key | None = None,
        row_offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The sample of :meth:`rsample_kl` alone."""
        return self.rsample_kl(num_samples, key=key, row_offset=row_offset, generator=generator)[0]

    def kl(self, per_dim: bool = False) -> Tensor:
        """KL(q || N(0, I)) in nats, ``(...)``; with ``per_dim`` its exact chain-rule terms, ``(..., d)``.

        ``KL_k = 1/2 (s_k^2 + mu_k^2 - 1 - log s_k^2 - log(1 - rho_k^2))``; the first has no rho term.
        """
        kl: Tensor = ar1_kl_with_logits(*self._chain(), per_dim=per_dim, backend=self.backend)
        return kl

    def training_kl(self, kl: Tensor, batch_size: int) -> Tensor:
        """What stands for the KL of each row, ``kl``, in the training objective: the KL itself."""
        return kl

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z | x) in nats. z is ``(..., d)`` with any leading axes that broadcast with mu's."""
        log_q: Tensor = ar1_log_prob_with_logits(z, *self._chain(), backend=self.backend)
        return log_q

    def entropy(self) -> Tensor:
        """Differential entropy ``d/2 (1 + log 2 pi) + sum log s_k + 1/2 sum log(1 - rho_k^2)``, in nats."""
        return self.distribution().entropy()

    def distribution(self) -> AR1Normal:
        """The same chain as a ``torch.distributions.Distribution``."""
        mu, *parameters = self._chain()
        log_s, rho_logit = (_along_the_chain(x, mu) for x in parameters)
        return AR1Normal.from_logits(mu, log_s, rho_logit, backend=self.backend, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """``mu``, ``(..., d)``."""
        return self.mu

    @property
    def stddev(self) -> Tensor:
        """Marginal standard deviations ``exp(log_s)``, ``(..., d)``, in float32 or better."""
        return self.distribution().stddev

    @property
    def rho(self) -> Tensor:
        """Lag-1 correlations ``tanh(rho_logit)``, ``(..., d-1)``: ``rho[..., k]`` ties k and k+1."""
        return self.distribution().corr

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rows={tuple(self.mu.shape[:-1])}, d={self.mu.shape[-1]})"


def _along_the_chain(value: Tensor, mu: Tensor) -> Tensor:
    """One value per row without an axis for the chain, as the kernels take it, in the distribution's way."""
    return value.unsqueeze(-1) if 0 < value.dim() == mu.dim() - 1 else value


def _register(kind: type[Posterior]) -> None:
    """Make it a pytree whose structure holds the backend."""

    def leaves(q: Posterior) -> tuple[list[Any], str | None]:
        return list(q[:3]), q.backend

    def named_leaves(q: Posterior) -> tuple[list[tuple[pytree.KeyEntry, Any]], str | None]:
        names = (pytree.GetAttrKey(name) for name in q._fields)
        return list(zip(names, q[:3], strict=False)), q.backend

    def rebuilt(leaves: Iterable[Any], backend: str | None) -> Posterior:
        return tuple.__new__(kind, (*leaves, backend))  # leaves of any type, such as vmap's axes

    pytree.register_pytree_node(
        kind,
        leaves,
        rebuilt,
        serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
        flatten_with_keys_fn=named_leaves,
    )


_register(Posterior)


class PublishedPosterior(Posterior):
    """What the rho-VAE authors' published code samples and minimises, for comparison only.

    The code draws ``z_k = mu_k + x_k`` with ``x_k = x_{k-1} + s eps_k``: a random walk, in which rho never
    enters. This class is that walk, a Gaussian Markov chain like any other (``Var x_k = k s^2``, lag-1
    correlations ``sqrt((k-1)/k)``), so that its KL, density and ELBO are the true ones. Only
    :meth:`training_kl` is the code's: the paper's closed form, another distribution's, with its s and rho
    part divided by the batch size once more. docs/audit.md has the equations.
    """

    __slots__ = ()

    def _chain(self) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_s = self.mu, self.log_s
        steps = torch.arange(1, mu.shape[-1] + 1, dtype=torch.float64, device=mu.device)
        walk = torch.atanh(torch.sqrt(steps[:-1] / steps[1:])).to(log_s.dtype).expand(*mu.shape[:-1], -1)
        return mu, log_s + 0.5 * steps.log().to(log_s.dtype), walk

    def training_kl(self, kl: Tensor, batch_size: int) -> Tensor:
        """``1/2 |mu|^2`` and, over the batch size, the rest of the closed form."""
        means = 0.5 * self.mu.to(kl.dtype).square().sum(-1)
        centred = Posterior(torch.zeros_like(self.mu), self.log_s, self.rho_logit, self.backend)
        return means + centred.kl() / batch_size


class PosteriorHead(nn.Module):
    """One linear layer from encoder features to the parameters of a :class:`Posterior`.

    Subclasses say how many standard deviations and correlations they learn; the layer's single output
    is handed to the kernel as views, without a copy.

    Args:
        features: width of the encoder's output.
        latent_dim: d, at least 1.
        backend: which ``rhovae_ext`` backend computes it (default: the best available).

    Shape: features ``(..., features)`` to a posterior over ``(..., latent_dim)``.
    """

    posterior: type[Posterior] = Posterior

    def __init__(self, features: int, latent_dim: int, *, backend: str | None = None) -> None:
        super().__init__()
        if features < 1 or latent_dim < 1:
            raise ValueError(
                f"{type(self).__name__}: features and latent_dim must be at least 1, "
                f"got features={features}, latent_dim={latent_dim}"
            )
        self.latent_dim = latent_dim
        self.backend = backend
        self.linear = nn.Linear(
            features, latent_dim + self.num_scales(latent_dim) + self.num_rhos(latent_dim)
        )

    @staticmethod
    def num_scales(latent_dim: int) -> int:
        """How many standard deviations a row has."""
        raise NotImplementedError

    @staticmethod
    def num_rhos(latent_dim: int) -> int:
        """How many correlations a row has."""
        return 0

    def forward(self, features: Tensor) -> Posterior:
        """The posterior that these features stand for."""
        d = self.latent_dim
        parameters = self.linear(features)
        scales = self.num_scales(d)
        mu = parameters[..., :d]
        log_s = parameters[..., d : d + scales]
        rho_logit = parameters[..., d + scales :] if self.num_rhos(d) else 0.0
        return self.posterior(mu, log_s, rho_logit, backend=self.backend)

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}"


POSTERIORS: Registry[Callable[..., PosteriorHead]] = Registry("posterior")
"""Heads by name; ``@POSTERIORS.register("name")`` adds one."""


@POSTERIORS.register("diag")
class DiagHead(PosteriorHead):
    """Independent dimensions, each with its own mean and standard deviation."""

    @staticmethod
    def num_scales(latent_dim: int) -> int:
        return latent_dim


@POSTERIORS.register("iso")
class IsoHead(PosteriorHead):
    """Independent dimensions that share one standard deviation per row."""

    @staticmethod
    def num_scales(latent_dim: int) -> int:
        return 1


@POSTERIORS.register("rho")
class RhoHead(PosteriorHead):
    """One standard deviation and one correlation per row (arXiv 1909.06236, section 3)."""

    @staticmethod
    def num_scales(latent_dim: int) -> int:
        return 1

    @staticmethod
    def num_rhos(latent_dim: int) -> int:
        return 1


@POSTERIORS.register("ar1")
class AR1Head(PosteriorHead):
    """A standard deviation per dimension and a correlation per step: any tridiagonal precision."""

    @staticmethod
    def num_scales(latent_dim: int) -> int:
        return latent_dim

    @staticmethod
    def num_rhos(latent_dim: int) -> int:
        return latent_dim - 1


@POSTERIORS.register("published", listed=False)
class PublishedHead(RhoHead):
    """The random walk of the authors' published code, with its objective; see docs/audit.md."""

    posterior = PublishedPosterior


def make_posterior(name: str, features: int, latent_dim: int, *, backend: str | None = None) -> PosteriorHead:
    """The head registered as ``name``; an unknown name raises ``ValueError`` with the known ones."""
    return POSTERIORS[name](features, latent_dim, backend=backend)
