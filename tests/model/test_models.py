"""The vanilla VAE, and a VAE of a user's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli

from rhovae.models import MODELS, VAE, bernoulli_log_likelihood, make_model
from rhovae.objectives import negative_elbo
from rhovae.posteriors import POSTERIORS, make_posterior

SHAPE = (1, 6, 5)


def images(count: int) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(2))


def test_bernoulli_log_likelihood_of_binary_and_grey_pixels() -> None:
    logits = 5 * torch.randn(4, 3, *SHAPE, dtype=torch.float64)
    binary = images(3).round().double()
    truth = Bernoulli(logits=logits).log_prob(binary).sum((-1, -2, -3))
    torch.testing.assert_close(bernoulli_log_likelihood(binary, logits), truth)
    grey = images(3).double()
    p = torch.sigmoid(logits)
    truth = (grey * p.log() + (1 - grey) * (-p).log1p()).sum((-1, -2, -3))
    torch.testing.assert_close(bernoulli_log_likelihood(grey, logits), truth)
    assert bernoulli_log_likelihood(grey, logits.bfloat16()).dtype == torch.float32
    assert bernoulli_log_likelihood(grey, 1e4 * logits.float()).isfinite().all()


@pytest.mark.parametrize("name", ["diag", "iso", "rho", "ar1"])
def test_gradients_reach_every_parameter(name: str) -> None:
    model = make_model("vanilla", SHAPE, 4, name, hidden=16)
    negative_elbo(*model(images(8))).backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().sum() > 0, label


def test_layers_are_the_papers() -> None:
    model = make_model("vanilla", (1, 28, 28), 10, "diag")
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(400, 784), (20, 400), (400, 10), (784, 400)]


def test_terms_are_the_elbo_of_the_drawn_sample() -> None:
    model = make_model("vanilla", SHAPE, 4, "ar1", hidden=16).double()
    x = images(5).double()
    terms = model(x, key=(1, 2), row_offset=3)
    q = model.encode(x)
    z = q.rsample(key=(1, 2), row_offset=3)
    torch.testing.assert_close(terms.kl, q.kl())
    torch.testing.assert_close(terms.log_likelihood, bernoulli_log_likelihood(x, model.decode(z)))


def test_methods_and_their_shapes() -> None:
    model = make_model("vanilla", SHAPE, 4, "rho", hidden=16)
    x = images(5)
    assert model.decode(torch.zeros(2, 3, 4)).shape == (2, 3, *SHAPE)
    for picture in (model.reconstruct(x), model.generate(5)):
        assert picture.shape == (5, *SHAPE)
        assert not picture.requires_grad
        assert ((picture >= 0) & (picture <= 1)).all()
    again = [model.generate(3, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*again)
    assert model.log_likelihood(x, 10).shape == (5,)


def test_interpolation_goes_from_mean_to_mean() -> None:
    model = make_model("vanilla", SHAPE, 4, "rho", hidden=16)
    x = images(6)
    way = model.interpolate(x[:3], x[3:], 5)
    assert way.shape == (5, 3, *SHAPE)
    assert not way.requires_grad
    torch.testing.assert_close(way[0], model.reconstruct(x[:3]))
    torch.testing.assert_close(way[-1], model.reconstruct(x[3:]))
    middle = 0.5 * (model.encode(x[:3]).mean + model.encode(x[3:]).mean)
    torch.testing.assert_close(way[2], torch.sigmoid(model.decode(middle)))
    with pytest.raises(ValueError, match="steps must be at least 2"):
        model.interpolate(x, x, 1)


def test_log_likelihood_against_quadrature() -> None:
    model = make_model("vanilla", SHAPE, 1, "diag", hidden=16).double()
    x = images(3).double()
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    log_p = bernoulli_log_likelihood(x, model.decode(grid[:, None].expand(-1, 3, 1)))
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid)
    truth = torch.trapezoid((log_p + log_prior).exp(), grid, dim=0).log()
    torch.testing.assert_close(
        model.log_likelihood(x, 5000, chunk=1000, key=(0, 0)), truth, rtol=0, atol=0.02
    )


def test_wrong_images_are_refused() -> None:
    model = make_model("vanilla", SHAPE, 4, "rho", hidden=16)
    with pytest.raises(ValueError, match=r"expected images \(batch, 1, 6, 5\), got \(3, 5, 6\)"):
        model(torch.zeros(3, 5, 6))


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match="unknown model 'mlp'; known: vanilla, beta, cnn, info"):
        make_model("mlp", SHAPE, 4, "rho")
    with pytest.raises(ValueError, match="unknown posterior"):
        make_model("vanilla", SHAPE, 4, "full")
    assert MODELS.names() == ["vanilla", "beta", "cnn", "info"]


@pytest.mark.parametrize("name", POSTERIORS.names())
def test_three_lines_in_a_vae_of_ones_own(name: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(7, 12)
            self.head = make_posterior(name, features=12, latent_dim=3)
            self.decoder = nn.Linear(3, 7)

        def forward(self, x: Tensor) -> Tensor:
            z, kl = self.head(self.encoder(x).relu()).rsample_kl()
            reconstruction = (self.decoder(z) - x).square().sum(-1)
            loss: Tensor = (reconstruction + kl).mean()
            return loss

    model = Own()
    x = torch.randn(64, 7)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


def test_any_encoder_and_decoder() -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(8))
    decoder = nn.Sequential(nn.Linear(3, 30), nn.Unflatten(-1, SHAPE))
    model = VAE(encoder, make_posterior("ar1", 8, 3), decoder, SHAPE)
    assert model(images(4)).kl.shape == (4,)


def test_a_permutation_of_the_latents_is_another_name_for_the_same_model() -> None:
    plain, permuted = (
        make_model("vanilla", SHAPE, 6, "ar1", hidden=16, latent_order=seed).double() for seed in (None, 1)
    )
    order = permuted.latent_order
    assert order is not None
    assert sorted(order.tolist()) == list(range(6)) != order.tolist()

    def inverse(columns: Tensor) -> Tensor:
        return columns[:, order.argsort()]

    permuted.load_state_dict(plain.state_dict(), strict=False)
    first, permuted_first = (m.decoder[0] for m in (plain, permuted))  # type: ignore[index]
    with torch.no_grad():
        first.weight.copy_(inverse(permuted_first.weight))
    z = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(plain.decode(z), permuted.decode(z))
    assert not torch.allclose(plain.decode(z), plain.decode(z[:, order]))
    x = images(8).double()
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (plain, permuted)]
    for step in range(5):
        losses = []
        for model, optimizer in zip((plain, permuted), optimizers, strict=True):
            loss = negative_elbo(*model(x, key=(3, step << 32)))
            optimizer.zero_grad()
            loss.backward()
            losses.append(loss)
        torch.testing.assert_close(*losses)
        for (name, a), b in zip(plain.named_parameters(), permuted.parameters(), strict=True):
            assert b.grad is not None
            torch.testing.assert_close(a.grad, inverse(b.grad) if a is first.weight else b.grad, msg=name)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1, 2], [1, 2, 3, 4], [0, 1, 2, 3, 4]])
def test_an_order_that_is_no_permutation_is_refused(order: list[int]) -> None:
    head = make_posterior("ar1", 8, 4)
    with pytest.raises(ValueError, match=r"VAE: latent_order must have each of 0 \.\. 3 once, got \["):
        VAE(nn.Identity(), head, nn.Identity(), SHAPE, latent_order=order)
