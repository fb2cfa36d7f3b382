"""Variational autoencoders with correlated Gaussian posteriors, on the fused kernels of ``rhovae_ext``.

:mod:`rhovae.distributions` has the chain as a ``torch.distributions.Distribution``,
:mod:`rhovae.posteriors` heads for a VAE of your own, :mod:`rhovae.objectives` what it is trained and
judged by, :mod:`rhovae.models` complete VAEs; ``python -m rhovae`` trains and evaluates them.
"""

from rhovae.distributions import AR1Normal, kl_per_dim
from rhovae.models import MODELS, VAE, make_model
from rhovae.objectives import active_units, iwae, negative_elbo
from rhovae.posteriors import POSTERIORS, Posterior, PosteriorHead, make_posterior
from rhovae_ext import __version__

__all__ = [
    "MODELS",
    "POSTERIORS",
    "VAE",
    "AR1Normal",
    "Posterior",
    "PosteriorHead",
    "__version__",
    "active_units",
    "iwae",
    "kl_per_dim",
    "make_model",
    "make_posterior",
    "negative_elbo",
]
