"""Fused AR(1) Gaussian sampling, KL divergence and log-density for PyTorch, with gradients."""

from .backends import available_backends
from .functional import (
    ar1_entropy,
    ar1_kl,
    ar1_kl_with_logits,
    ar1_log_prob,
    ar1_log_prob_with_logits,
    ar1_reparam,
    ar1_reparam_kl,
    ar1_reparam_kl_with_logits,
)
from .keys import fold_in, split
from .transforms import decompositions
from .version import __version__

__all__ = [
    "__version__",
    "ar1_entropy",
    "ar1_kl",
    "ar1_kl_with_logits",
    "ar1_log_prob",
    "ar1_log_prob_with_logits",
    "ar1_reparam",
    "ar1_reparam_kl",
    "ar1_reparam_kl_with_logits",
    "available_backends",
    "decompositions",
    "fold_in",
    "split",
]
