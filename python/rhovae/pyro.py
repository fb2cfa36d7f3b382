"""The chain for Pyro: ``pyro.sample("z", rhovae.pyro.AR1Normal(loc, scale, corr))``.

``TraceMeanField_ELBO`` takes its KL divergences to ``Normal(...).to_event(1)``, ``MultivariateNormal`` and
another ``AR1Normal`` in closed form. Needs ``pip install pyro-ppl``.
"""

from __future__ import annotations

from typing import Any

from pyro.distributions import Normal
from pyro.distributions.torch_distribution import TorchDistributionMixin

from rhovae import distributions

__all__ = ["AR1Normal"]


class AR1Normal(distributions.AR1Normal, TorchDistributionMixin):
    """:class:`rhovae.AR1Normal` with what Pyro asks of a distribution: ``mask``, ``to_event``, plates."""

    def marginal(self, k: Any) -> Any:
        """:meth:`rhovae.AR1Normal.marginal`; of one step Pyro's own ``Normal``."""
        found = super().marginal(k)
        return Normal(found.loc, found.scale) if isinstance(k, int) else found
