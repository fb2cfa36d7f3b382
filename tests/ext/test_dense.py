"""The chain against torch.distributions.MultivariateNormal on its dense covariance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

import rhovae_ext
from tests.ext import dense
from tests.ext.cases import TENSOR_KINDS, make_case
from tests.ext.compare import assert_close

KINDS = [(scale, rho) for scale in TENSOR_KINDS for rho in TENSOR_KINDS]
LENGTHS = (1, 2, 7, 12)


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_natural_form(backend: str, kinds: tuple[str, str]) -> None:
    for d in LENGTHS:
        case = make_case((3,), d, *kinds)
        assert isinstance(case.scale, Tensor)
        assert isinstance(case.rho, Tensor)
        mu, s, rho = case.mu, case.scale, case.rho
        q = dense.distribution(mu, s, rho)

        # z is linear in eps: one unit vector a sample gives the columns of a factor of the covariance.
        units = torch.eye(d, dtype=mu.dtype)[:, None, :].expand(d, 3, d)
        z, kl = rhovae_ext.ar1_reparam_kl(mu, s, rho, eps=units, num_samples=d, backend=backend)
        factor = (z - mu).permute(1, 2, 0)
        assert_close(factor @ factor.mT, q.covariance_matrix, "covariance", tolerance=1e-13)
        assert_close(factor, q.scale_tril, "Cholesky factor", tolerance=1e-12)

        assert_close(kl, kl_divergence(q, dense.standard(mu)), "kl")
        points = torch.randn(4, 3, d, dtype=mu.dtype, generator=torch.Generator().manual_seed(d))
        log_prob = rhovae_ext.ar1_log_prob(points, mu, s, rho, backend=backend)
        assert_close(log_prob, q.log_prob(points), "log_prob")
        _, s_steps, _ = dense.per_step(mu, s, rho)
        assert_close(rhovae_ext.ar1_entropy(s_steps, rho), q.entropy(), "entropy", floor=1.0)


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_logits_are_the_same_chain(backend: str, kinds: tuple[str, str]) -> None:
    for d in LENGTHS:
        case = make_case((3,), d, *kinds, logits=True, key=(1, d))
        assert isinstance(case.scale, Tensor)
        assert isinstance(case.rho, Tensor)
        s, rho = case.scale.exp(), case.rho.tanh()
        z, kl = case.call(backend)
        z_natural, kl_natural = rhovae_ext.ar1_reparam_kl(case.mu, s, rho, key=(1, d), backend=backend)
        assert_close(z, z_natural, "z")
        assert_close(kl, kl_natural, "kl")
        log_prob = rhovae_ext.ar1_log_prob_with_logits(z, case.mu, case.scale, case.rho, backend=backend)
        assert_close(log_prob, dense.distribution(case.mu, s, rho).log_prob(z), "log_prob")


def test_kl_per_dimension_is_the_chain_rule(backend: str) -> None:
    """KL_k = E KL(q(z_k | z_{k-1}) || N(0, 1)): the KL of the first k steps less that of the first k - 1."""
    case = make_case((3,), 6, "step", "step")
    assert isinstance(case.scale, Tensor)
    assert isinstance(case.rho, Tensor)
    per_dim = rhovae_ext.ar1_kl(case.mu, case.scale, case.rho, per_dim=True, backend=backend)
    sums = [
        kl_divergence(
            dense.distribution(case.mu[:, :k], case.scale[:, :k], case.rho[:, : k - 1]),
            dense.standard(case.mu[:, :k]),
        )
        for k in range(1, 7)
    ]
    assert_close(per_dim.cumsum(-1), torch.stack(sums, -1), "kl per dimension")


def test_log_prob_of_a_sample_is_its_noise(backend: str) -> None:
    """log q(z) = log N(eps) - log|dz/deps|, whatever the chain."""
    for kinds in KINDS:
        case = make_case((5,), 9, *kinds)
        assert isinstance(case.scale, Tensor)
        assert isinstance(case.rho, Tensor)
        eps = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        z = rhovae_ext.ar1_reparam(case.mu, case.scale, case.rho, eps=eps, backend=backend)
        log_prob = rhovae_ext.ar1_log_prob(z, case.mu, case.scale, case.rho, backend=backend)
        _, s, rho = dense.per_step(case.mu, case.scale, case.rho)
        jacobian = s.log().sum(-1) + 0.5 * (1 - rho * rho).log().sum(-1)
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(eps).sum(-1) - jacobian
        assert_close(log_prob, expected, "log_prob")
