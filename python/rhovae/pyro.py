"""The chain for Pyro: ``pyro.sample("z", rhovae.pyro.AR1Normal(loc, scale, corr))``.

``TraceMeanField_ELBO`` takes its KL divergences to ``Normal(...).to_event(1)``, ``MultivariateNormal`` and
another ``AR1Normal`` in closed form. Needs ``pip install pyro-ppl``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import Delta, Normal
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import register_kl

from rhovae import distributions

__all__ = ["AR1Normal"]


class AR1Normal(distributions.AR1Normal, TorchDistributionMixin):
    """:class:`rhovae.AR1Normal` with what Pyro asks of a distribution: ``mask``, ``to_event``, plates."""

    @classmethod
    def infer_shapes(cls, **arg_shapes: Sequence[int]) -> tuple[torch.Size, torch.Size]:
        """Batch and event shape of a chain whose arguments have these shapes, ``()`` for a number."""
        leading = (shape[:-1] for shape in arg_shapes.values())
        return torch.broadcast_shapes(*leading), torch.Size(arg_shapes["loc"][-1:])

    def marginal(self, k: Any) -> Any:
        """:meth:`rhovae.AR1Normal.marginal`; of one step Pyro's own ``Normal``."""
        found = super().marginal(k)
        return Normal(found.loc, found.scale) if isinstance(k, int) else found


@register_kl(Delta, AR1Normal)
def _(q: Any, p: AR1Normal) -> Tensor:
    """As Pyro has it for every p; its own rule and that of the chain would be at odds over who answers."""
    return -p.log_prob(q.v)
