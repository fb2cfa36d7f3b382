"""The example's model against dense normals, quadrature and Monte Carlo; correlation pays early on."""

from __future__ import annotations

import csv
import gzip
import itertools
from importlib import resources
from pathlib import Path

import matplotlib.image
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

pytest.importorskip("arch", reason="the data come with the package arch: pip install arch")

from examples.stochastic_volatility import POSTERIORS, StochasticVolatility, draw, fit, returns, table


def small_model(days: int, rhos: int) -> StochasticVolatility:
    model = StochasticVolatility(returns(days), rhos).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in (model.loc, model.log_scale, model.rho_logit):
            if parameter is not None:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.3 * noise)
    return model


def test_the_data() -> None:
    y = returns()
    text = gzip.decompress((resources.files("arch.data.sp500") / "sp500.csv.gz").read_bytes()).decode()
    prices = [float(row["Adj Close"]) for row in csv.DictReader(text.splitlines())][-2001:]
    change = torch.tensor([100 * (b / a - 1) for a, b in itertools.pairwise(prices)])
    torch.testing.assert_close(y, change - change.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rhos", POSTERIORS.values(), ids=POSTERIORS.keys())
def test_prior_and_kl_against_the_dense_process(rhos: int) -> None:
    model = small_model(6, rhos)
    # h_t = phi h_{t-1} + sigma eta_t from a stationary start, written as one linear map of the noise
    phi, sigma = model.phi, model.log_sigma.exp()
    rows = [torch.cat([(sigma / torch.sqrt(1 - phi**2)).reshape(1), torch.zeros(5).double()])]
    for t in range(1, 6):
        rows.append(phi * rows[-1] + sigma * torch.eye(6).double()[t])
    factor = torch.stack(rows)
    prior = MultivariateNormal(torch.zeros(6).double(), factor @ factor.T)
    torch.testing.assert_close(model.prior().covariance_matrix, prior.covariance_matrix)
    q = model.posterior()
    dense = MultivariateNormal(q.mean, q.covariance_matrix)
    torch.testing.assert_close(kl_divergence(q, model.prior()), kl_divergence(dense, prior))


@pytest.mark.parametrize("rhos", POSTERIORS.values(), ids=POSTERIORS.keys())
def test_exact_elbo_is_the_mean_of_its_estimates(rhos: int) -> None:
    model = small_model(20, rhos)
    torch.manual_seed(0)
    assert model.elbo(100_000).item() == pytest.approx(model.exact_elbo(), abs=0.1)


@pytest.mark.parametrize(("rhos", "gap"), [(0, 0.5), (1, 0.05)])
def test_elbo_stays_below_the_evidence(rhos: int, gap: float) -> None:
    y = returns(2)
    model = fit(y, rhos, steps=400).model.double()
    grid = torch.linspace(-15, 15, 1201, dtype=torch.float64)
    h = torch.cartesian_prod(grid, grid)
    scale = torch.exp(0.5 * (model.m + h))
    joint = Normal(0.0, scale).log_prob(model.y).sum(-1) + model.prior().log_prob(h)
    evidence = joint.logsumexp(0).item() + 2 * torch.log(grid[1] - grid[0]).item()
    assert evidence - gap < model.exact_elbo() < evidence + 1e-6


def test_correlation_pays_and_is_drawn(tmp_path: Path) -> None:
    y = returns(500)
    fits = {name: fit(y, rhos, steps=500) for name, rhos in POSTERIORS.items()}
    mean_field, one, per_step = (fits[name] for name in POSTERIORS)
    assert one.elbo > mean_field.elbo + 10
    assert per_step.elbo > mean_field.elbo + 10
    assert one.model.phi > 0.8 > mean_field.model.phi
    assert len(table(fits).splitlines()) == 5
    draw(fits, tmp_path / "picture.png")
    assert matplotlib.image.imread(tmp_path / "picture.png").std() > 0.01
