"""The posteriors against dense multivariate normals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from rhovae.posteriors import POSTERIORS, Posterior, PosteriorHead, make_posterior

NAMES = ["diag", "iso", "rho", "ar1"]
PARAMETERS = {
    "diag": lambda d: 2 * d,
    "iso": lambda d: d + 1,
    "rho": lambda d: d + 2,
    "ar1": lambda d: 3 * d - 1,
}


def spread_head(name: str, d: int, features: int = 5) -> PosteriorHead:
    """A head in float64 whose rows differ well in mean, scale and correlation."""
    torch.manual_seed(7)
    head = make_posterior(name, features, d).double()
    with torch.no_grad():
        head.linear.weight.normal_(std=0.4)
        head.linear.bias.normal_(std=0.4)
    return head


def raw_parameters(name: str, head: PosteriorHead, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """mu, s and rho per step by the layout that the registry documents: mu, then log s, then the logits."""
    d = head.latent_dim
    out = x @ head.linear.weight.T + head.linear.bias
    mu, rest = out[:, :d], out[:, d:]
    scales = d if name in ("diag", "ar1") else 1
    s = rest[:, :scales].exp().expand(-1, d)
    logits = rest[:, scales:]
    rho = torch.tanh(logits) if name in ("rho", "ar1") else torch.zeros(1, dtype=x.dtype)
    return mu, s, rho.expand(len(x), d - 1)


def dense(mu: Tensor, s: Tensor, rho: Tensor) -> MultivariateNormal:
    """Covariance entry by entry: s_i s_j times the product of the correlations between."""
    d = mu.shape[-1]
    rows = []
    for i in range(d):
        columns = []
        for j in range(d):
            low, high = min(i, j), max(i, j)
            columns.append(s[..., i] * s[..., j] * rho[..., low:high].prod(-1))
        rows.append(torch.stack(columns, -1))
    return MultivariateNormal(mu, torch.stack(rows, -2))


def standard(d: int) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(d).double(), torch.eye(d).double())


def test_registry_holds_the_four() -> None:
    assert POSTERIORS.names() == NAMES


@pytest.mark.parametrize("d", [1, 2, 7])
@pytest.mark.parametrize("name", NAMES)
def test_against_dense_normal(name: str, d: int) -> None:
    head = spread_head(name, d)
    x = torch.randn(4, 5, dtype=torch.float64)
    q = head(x)
    truth = dense(*raw_parameters(name, head, x))
    z = torch.randn(3, 4, d, dtype=torch.float64)
    kl = kl_divergence(truth, standard(d))

    torch.testing.assert_close(q.mean, truth.mean)
    torch.testing.assert_close(q.stddev, truth.stddev)
    torch.testing.assert_close(q.entropy(), truth.entropy())
    torch.testing.assert_close(q.log_prob(z), truth.log_prob(z))
    torch.testing.assert_close(q.kl(), kl)
    torch.testing.assert_close(q.kl(per_dim=True).sum(-1), kl)
    assert q.kl(per_dim=True).shape == (4, d)
    torch.testing.assert_close(q.rsample_kl()[1], kl)
    correlation = truth.covariance_matrix.diagonal(1, -2, -1) / (truth.stddev[:, 1:] * truth.stddev[:, :-1])
    torch.testing.assert_close(q.rho, correlation)


@pytest.mark.parametrize("d", [1, 2, 7])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_against_dense_factor(name: str, d: int) -> None:
    head = spread_head(name, d)
    x = torch.randn(4, 5, dtype=torch.float64)
    eps = Posterior(torch.zeros(4, d).double(), torch.zeros(4, 1).double()).rsample(key=(3, 4))
    weight = torch.randn(4, d, dtype=torch.float64)

    z, kl = head(x).rsample_kl(key=(3, 4))
    mine = torch.autograd.grad((weight * z).sum() + kl.square().sum(), list(head.parameters()))

    truth = dense(*raw_parameters(name, head, x))
    z_dense = truth.mean + torch.einsum("bij,bj->bi", truth.scale_tril, eps)
    kl_dense = kl_divergence(truth, standard(d))
    theirs = torch.autograd.grad((weight * z_dense).sum() + kl_dense.square().sum(), list(head.parameters()))

    torch.testing.assert_close(z, z_dense)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_sample_covariance(name: str) -> None:
    head = spread_head(name, 4)
    x = torch.randn(2, 5, dtype=torch.float64)
    truth = dense(*raw_parameters(name, head, x))
    z = head(x).rsample(40_000, key=(1, 0))
    assert z.shape == (40_000, 2, 4)
    for row in range(2):
        covariance = truth.covariance_matrix[row]
        # the standard error of a covariance from n draws is at most sqrt(2) s_i s_j / sqrt(n)
        bound = 5 * 2**0.5 * torch.outer(truth.stddev[row], truth.stddev[row]) / 200
        assert ((z[:, row].T.cov() - covariance).abs() < bound).all()


@pytest.mark.parametrize("name", NAMES)
def test_key_and_row_offset_make_noise_independent_of_the_split(name: str) -> None:
    head = spread_head(name, 5)
    x = torch.randn(6, 5, dtype=torch.float64)
    whole, _ = head(x).rsample_kl(3, key=(9, 2), row_offset=10)
    part, _ = head(x[4:]).rsample_kl(3, key=(9, 2), row_offset=14)
    # matrix products of other sizes round differently
    torch.testing.assert_close(whole[:, 4:], part, rtol=1e-13, atol=1e-13)


def test_default_noise_follows_manual_seed_and_never_repeats() -> None:
    head = spread_head("rho", 3)
    x = torch.randn(2, 5, dtype=torch.float64)
    torch.manual_seed(0)
    first, second = head(x).rsample(), head(x).rsample()
    torch.manual_seed(0)
    assert torch.equal(first, head(x).rsample())
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(1)
    a = head(x).rsample(generator=generator)
    assert torch.equal(a, head(x).rsample(generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", NAMES)
def test_one_linear_layer_split_into_views(name: str) -> None:
    head = make_posterior(name, 5, 6)
    assert [type(m) for m in head.children()] == [nn.Linear]
    assert head.linear.out_features == PARAMETERS[name](6)
    q = head(torch.randn(3, 5))
    parts = (q.mu, q.log_s, q.rho_logit)
    assert len({p.untyped_storage().data_ptr() for p in parts if p.numel() > 1}) == 1


def test_saturated_logits_stay_finite() -> None:
    mu = torch.zeros(2, 4)
    log_s = torch.zeros(2, 1)
    logit = torch.tensor([[500.0], [-500.0]], requires_grad=True)
    q = Posterior(mu, log_s, logit)
    z, kl = q.rsample_kl()
    value = z.sum() + kl.sum() + q.entropy().sum()
    (gradient,) = torch.autograd.grad(value, logit)
    assert z.isfinite().all()
    assert kl.isfinite().all()
    assert q.entropy().isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_leading_axes(name: str) -> None:
    head = make_posterior(name, 5, 4).bfloat16()
    q = head(torch.randn(2, 3, 5, dtype=torch.bfloat16))
    z, kl = q.rsample_kl(2)
    assert (z.dtype, z.shape) == (torch.bfloat16, (2, 2, 3, 4))
    assert (kl.dtype, kl.shape) == (torch.float32, (2, 3))
    assert (q.entropy().dtype, q.entropy().shape) == (torch.float32, (2, 3))
    assert q.rho.shape == (2, 3, 3)


def test_one_value_per_row_is_one_in_every_method() -> None:
    """A batch as long as the chain: the kernels take (batch,), the distribution (batch, 1)."""
    mu, log_s, logit = torch.randn(4, 4).double(), torch.randn(4).double(), torch.randn(4).double()
    bare, axis = Posterior(mu, log_s, logit), Posterior(mu, log_s[:, None], logit[:, None])
    for name in ("stddev", "rho"):
        torch.testing.assert_close(getattr(bare, name), getattr(axis, name))
    for name in ("kl", "entropy"):
        torch.testing.assert_close(getattr(bare, name)(), getattr(axis, name)())
    torch.testing.assert_close(bare.log_prob(mu + 1), bare.distribution().log_prob(mu + 1))
    torch.testing.assert_close(bare.rsample(key=(1, 2)), axis.rsample(key=(1, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_compiles(name: str) -> None:
    head = spread_head(name, 4)
    x, z = torch.randn(3, 5).double(), torch.randn(3, 4).double()

    def everything(x: Tensor) -> list[Tensor]:
        q = head(x)
        later = q.distribution().condition(z[:, :2])
        return [q.kl(), q.log_prob(z), q.entropy(), q.stddev, q.rho, later.mean, later.log_prob(z[:, 2:])]

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), everything(x))


def test_errors_name_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"unknown posterior 'dia'.*'diag'.*diag, iso, rho, ar1"):
        make_posterior("dia", 5, 4)
    with pytest.raises(ValueError, match="latent_dim=0"):
        make_posterior("diag", 5, 0)


def test_a_posterior_of_ones_own() -> None:
    @POSTERIORS.register("test-own")
    class Own(PosteriorHead):
        @staticmethod
        def num_scales(latent_dim: int) -> int:
            return latent_dim

        @staticmethod
        def num_rhos(latent_dim: int) -> int:
            return 1

    try:
        q = make_posterior("test-own", 5, 4)(torch.randn(2, 5))
        assert q.rho.shape == (2, 3)
        assert torch.equal(q.rho[:, 0], q.rho[:, 2])
        with pytest.raises(ValueError, match="already registered"):
            POSTERIORS.register("test-own")(Own)
    finally:
        del POSTERIORS._entries["test-own"]
