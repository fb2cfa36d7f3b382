"""Where correlation pays: the volatility of the S&P 500, with three posteriors over the same latent path.

    h_1 ~ N(0, sigma^2 / (1 - phi^2)),   h_t = phi h_{t-1} + sigma eta_t,   y_t ~ N(0, exp(m + h_t))

y are the last 2,000 daily returns of the series that the package `arch` carries, in percent, their mean
removed. h is a latent path of 2,000 steps; phi, sigma and m are learnt together with a Gaussian posterior
over it: independent steps (mean-field), one rho for the path, or a rho per step. The KL to the AR(1) prior is
exact, and so is the ELBO in the table.

    python examples/stochastic_volatility.py --picture volatility.png

Model: Kim, Shephard and Chib, "Stochastic volatility: likelihood inference and comparison with ARCH models"
(1998), section 1.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from rhovae import AR1Normal

POSTERIORS = {"mean-field": 0, "one rho": 1, "rho per step": -1}
"""How many correlations the posterior learns; -1: as many as there are steps."""


def returns(count: int = 2000) -> Tensor:
    """The last daily returns of the S&P 500 that `arch` carries, in percent, mean removed: ``(count,)``."""
    from arch.data import sp500

    change = 100.0 * sp500.load()["Adj Close"].pct_change().to_numpy()[-count:]
    y = torch.from_numpy(change.copy()).float()
    return y - y.mean()


class StochasticVolatility(nn.Module):
    """The model of returns ``y`` and a posterior over their log-variances h."""

    y: Tensor

    def __init__(self, y: Tensor, rhos: int) -> None:
        super().__init__()
        steps = len(y)
        self.register_buffer("y", y)
        self.m = nn.Parameter(y.var().log())
        self.phi_logit = nn.Parameter(torch.tensor(1.0))
        self.log_sigma = nn.Parameter(torch.tensor(0.3).log())
        self.loc = nn.Parameter(torch.zeros(steps))
        self.log_scale = nn.Parameter(torch.full((steps,), 0.5).log())
        self.rho_logit = nn.Parameter(torch.zeros(steps - 1 if rhos < 0 else rhos)) if rhos else None

    @property
    def phi(self) -> Tensor:
        return self.phi_logit.tanh()

    def prior(self) -> AR1Normal:
        """The stationary AR(1) process: ``Var(h_t) = sigma^2 / (1 - phi^2)``."""
        log_scale = self.log_sigma - 0.5 * torch.log1p(-self.phi.square())
        return AR1Normal.from_logits(torch.zeros_like(self.y), log_scale, self.phi_logit, validate_args=False)

    def posterior(self) -> AR1Normal:
        logits = 0.0 if self.rho_logit is None else self.rho_logit
        return AR1Normal.from_logits(self.loc, self.log_scale, logits, validate_args=False)

    def elbo(self, samples: int) -> Tensor:
        """One estimate, from draws of h for the likelihood and the exact KL, in nats."""
        q = self.posterior()
        h = q.rsample((samples,))
        log_likelihood = self._log_likelihood(h, torch.exp(-h))
        return log_likelihood.mean(0) - kl_divergence(q, self.prior())

    @torch.no_grad()
    def exact_elbo(self) -> float:
        """The ELBO without sampling: the likelihood is linear in h and exp(-h), whose means are known."""
        q = self.posterior()
        log_likelihood = self._log_likelihood(q.mean, torch.exp(0.5 * q.variance - q.mean))
        return (log_likelihood - kl_divergence(q, self.prior())).item()

    def _log_likelihood(self, h: Tensor, exp_minus_h: Tensor) -> Tensor:
        """``sum_t log N(y_t; 0, exp(m + h_t))``."""
        squares = self.y.square() * torch.exp(-self.m)
        return -0.5 * (math.log(2.0 * math.pi) + self.m + h + squares * exp_minus_h).sum(-1)


@dataclass(frozen=True)
class Fit:
    model: StochasticVolatility
    elbo: float
    seconds: float


def fit(y: Tensor, rhos: int, steps: int = 4000, samples: int = 8, seed: int = 0) -> Fit:
    """Maximise the ELBO with Adam, 0.02 with cosine decay."""
    torch.manual_seed(seed)
    model = StochasticVolatility(y, rhos)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        (-model.elbo(samples)).backward()
        optimizer.step()
        decay.step()
    return Fit(model, model.exact_elbo(), time.perf_counter() - began)


def table(fits: dict[str, Fit]) -> str:
    lines = ["| posterior | ELBO, nats | phi | sigma | s |", "|---|--:|--:|--:|--:|"]
    for name, fitted in fits.items():
        model = fitted.model
        sigma = model.log_sigma.exp().item()
        lines.append(
            f"| {name} | {fitted.elbo:.1f} | {model.phi.item():.2f} | {sigma:.2f} | {fitted.seconds:.0f} |"
        )
    return "\n".join(lines)


def draw(fits: dict[str, Fit], path: Path) -> None:
    """Returns above; below, the daily volatility exp((m + h)/2) of each posterior with its 95% band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 2.0 * (len(fits) + 1)), layout="constrained")
    panels = figure.subplots(len(fits) + 1, 1, sharex=True)
    y = next(iter(fits.values())).model.y.numpy()
    days = range(len(y))
    panels[0].bar(days, y, width=1.0, color="0.3")
    panels[0].set(ylabel="return, %", xlim=(0, len(y)))
    for axes, (name, fitted) in zip(panels[1:], fits.items(), strict=True):
        model = fitted.model
        with torch.no_grad():
            q = model.posterior()
            low, middle, high = (
                torch.exp(0.5 * (model.m + q.mean + k * q.stddev)).numpy() for k in (-1.96, 0.0, 1.96)
            )
        axes.fill_between(days, low, high, color="tab:blue", alpha=0.3, linewidth=0)
        axes.plot(days, middle, color="tab:blue", linewidth=0.6)
        axes.set(ylabel="volatility, %", yscale="log", ylim=(0.15, 6.0))
        axes.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
        axes.minorticks_off()
        axes.set_title(f"{name}: ELBO {fitted.elbo:.1f}, phi {model.phi.item():.2f}", loc="left", fontsize=9)
    panels[-1].set_xlabel("trading day")
    figure.savefig(path, dpi=72)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000, help="of Adam for each posterior (default: 4000)")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads (default: 1; 2,000 steps need no more)"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where to draw returns and volatility")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    y = returns()
    fits = {name: fit(y, rhos, arguments.steps) for name, rhos in POSTERIORS.items()}
    print(table(fits))
    if arguments.picture:
        draw(fits, arguments.picture)
        print(f"written to {arguments.picture}")


if __name__ == "__main__":
    main()
