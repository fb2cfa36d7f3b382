"""Gaussian Markov chains as ``torch.distributions``, with exact KL divergences in O(d)."""

from rhovae.distributions.ar1_normal import AR1Normal, correlation
from rhovae.distributions.kl import kl_per_dim

__all__ = ["AR1Normal", "correlation", "kl_per_dim"]
