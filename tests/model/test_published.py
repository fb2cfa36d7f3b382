"""The published objective: what it draws, what it minimises, and that it has to be asked for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from rhovae.commands import main
from rhovae.models import make_model
from rhovae.posteriors import POSTERIORS, PublishedPosterior, make_posterior


def parameters(d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    mu, log_s, logit = (torch.randn(3, n, generator=generator, dtype=torch.float64) for n in (d, 1, 1))
    return mu, 0.3 * log_s, logit


@pytest.mark.parametrize("d", [1, 2, 6])
def test_it_is_the_random_walk(d: int) -> None:
    mu, log_s, logit = parameters(d)
    q = PublishedPosterior(mu, log_s, logit)
    # z = mu + s (eps_1, eps_1 + eps_2, ...): the sum of a triangle of ones
    triangle = torch.ones(d, d, dtype=torch.float64).tril()
    walk = MultivariateNormal(mu, (log_s.exp() ** 2)[..., None] * (triangle @ triangle.T))
    torch.testing.assert_close(q.distribution().covariance_matrix, walk.covariance_matrix)
    standard = MultivariateNormal(torch.zeros(d).double(), torch.eye(d).double())
    torch.testing.assert_close(q.kl(), kl_divergence(walk, standard))
    z = torch.randn(3, d, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), walk.log_prob(z))
    # rho never enters
    other = PublishedPosterior(mu, log_s, -logit)
    assert torch.equal(q.rsample(key=(1, 2)), other.rsample(key=(1, 2)))


def test_its_training_kl_divides_all_but_the_means_by_the_batch_again() -> None:
    d, batch = 6, 40
    mu, log_s, logit = parameters(d)
    q = PublishedPosterior(mu, log_s, logit)
    variance, rho = torch.exp(2 * log_s[:, 0]), torch.tanh(logit[:, 0])
    rest = d * (variance - 1 - torch.log(variance)) - (d - 1) * torch.log(1 - rho**2)
    truth = 0.5 * (mu.square().sum(-1) + rest / batch)
    torch.testing.assert_close(q.training_kl(q.kl(), batch), truth)
    # far below the KL of what is drawn, and free of charge for a large batch
    assert (q.training_kl(q.kl(), 1 << 40) < q.kl()).all()


def test_every_other_posterior_minimises_its_own_kl() -> None:
    for name in POSTERIORS.names():
        q = make_posterior(name, 5, 4)(torch.randn(2, 5))
        kl = q.kl()
        assert q.training_kl(kl, 7) is kl


def test_it_has_to_be_asked_for() -> None:
    assert POSTERIORS.names() == ["diag", "iso", "rho", "ar1"]
    assert "published" in POSTERIORS
    model = make_model("vanilla", (1, 4, 4), 5, "published", hidden=8)
    assert isinstance(model.encode(torch.rand(2, 1, 4, 4)), PublishedPosterior)


def test_it_has_no_free_bits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--posterior", "published", "--free-bits", "0.1"]) == 2
    assert "no terms per dimension" in capsys.readouterr().err


def test_a_report_has_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    monkeypatch.chdir(tmp_path)
    flags = ["--epochs", "8", "--hidden", "32", "--latent-dim", "6", "--iwae-samples", "4"]
    for posterior in ("published", "rho"):
        assert main(["train", *flags, "--posterior", posterior, "--out", posterior]) == 0
    published, own = (json.loads((tmp_path / p / "metrics.json").read_text()) for p in ("published", "rho"))
    # what its loss says is better than the truth of its own model by far
    assert published["reported"] < published["negative_elbo"] - 3
    assert own["reported"] == pytest.approx(own["negative_elbo"])
    assert math.isclose(
        published["negative_elbo"], published["reconstruction"] + published["kl"], rel_tol=1e-6
    )
