"""The chain inside Pyro, diffusers and pythae themselves."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from rhovae import AR1Normal


def needs(package: str, distribution: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install {distribution}")


def example(name: str) -> Any:
    return importlib.import_module(f"examples.{name}")


# Pyro


def pyro_parts() -> Any:
    import pyro

    pyro.clear_param_store()
    return pyro, importlib.import_module("rhovae.pyro").AR1Normal


@needs("pyro", "pyro-ppl")
def test_laplace_approximation_of_a_chain_is_its_exact_posterior() -> None:
    """The guide differentiates the density twice; prior and readings are Gaussian, so it has to be exact."""
    pyro, chain = pyro_parts()
    pyro.set_rng_seed(0)
    d, noise = 12, 0.3
    readings = torch.linspace(0, 2, d).sin() + noise * torch.randn(d)

    def model() -> None:
        z = pyro.sample("z", chain(torch.zeros(d), torch.tensor(1.0), torch.tensor(0.9)))
        pyro.sample("y", pyro.distributions.Normal(z, noise).to_event(1), obs=readings)

    guide = pyro.infer.autoguide.AutoLaplaceApproximation(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    for _ in range(600):
        svi.step()
    found = guide.laplace_approximation().get_posterior()
    step = torch.arange(d)
    prior = 0.9 ** (step[:, None] - step).abs().double()
    precision = torch.linalg.inv(prior) + torch.eye(d, dtype=torch.float64) / noise**2
    mean = torch.linalg.solve(precision, readings.double() / noise**2)
    covariance = torch.linalg.inv(precision)
    torch.testing.assert_close(found.covariance_matrix.detach().double(), covariance, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.mean.detach().double(), mean, rtol=0, atol=2e-2)


@needs("pyro", "pyro-ppl")
def test_pyro_sample_and_log_prob_under_a_plate() -> None:
    pyro, chain = pyro_parts()
    import pyro.poutine as poutine

    def model() -> torch.Tensor:
        with pyro.plate("rows", 3):
            z: torch.Tensor = pyro.sample("z", chain(torch.zeros(5), 2.0, 0.5))
        return z

    trace = poutine.trace(model).get_trace()
    z = trace.nodes["z"]["value"]
    assert z.shape == (3, 5)
    assert not torch.equal(z[0], z[1])
    trace.compute_log_prob()
    truth = AR1Normal(torch.zeros(5), 2.0, 0.5).log_prob(z)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], truth)
    masked = chain(torch.zeros(3, 5), 2.0, 0.5).mask(torch.tensor([True, False, True]))
    torch.testing.assert_close(masked.log_prob(z), truth * torch.tensor([1.0, 0.0, 1.0]))
    assert chain(torch.zeros(4, 3, 5), 2.0, 0.5).to_event(1).event_shape == (3, 5)
    assert isinstance(chain(torch.zeros(5), 2.0, 0.5).expand((3,)), chain)
    assert pyro.sample("one", chain(torch.zeros(5), 2.0, 0.5).marginal(0)).shape == ()


@needs("pyro", "pyro-ppl")
@pytest.mark.parametrize("prior", ["normal", "chain", "dense"])
def test_pyro_mean_field_elbo_takes_the_analytic_kl(prior: str) -> None:
    pyro, chain = pyro_parts()
    import pyro.distributions as dist
    from pyro.infer import TraceMeanField_ELBO

    loc, log_scale, logit = torch.randn(4, 5), torch.randn(4, 1), torch.randn(4, 4)
    mine = AR1Normal.from_logits(loc, log_scale, logit)
    priors: dict[str, Callable[[], Any]] = {
        "normal": lambda: dist.Normal(torch.zeros(5), 1.5).to_event(1),
        "chain": lambda: chain(torch.zeros(5), 1.5, -0.3),
        "dense": lambda: dist.MultivariateNormal(torch.zeros(5), 2.0 * torch.eye(5)),
    }
    covariance = {
        "normal": 2.25 * torch.eye(5),
        "chain": AR1Normal(torch.zeros(5), 1.5, -0.3).covariance_matrix,
        "dense": 2.0 * torch.eye(5),
    }[prior]
    parameter = logit.clone().requires_grad_()

    def model() -> None:
        with pyro.plate("rows", 4):
            pyro.sample("z", priors[prior]())

    def guide() -> None:
        with pyro.plate("rows", 4):
            pyro.sample("z", chain.from_logits(loc, log_scale, parameter))

    dense = MultivariateNormal(mine.mean, mine.covariance_matrix)
    truth = kl_divergence(dense, MultivariateNormal(torch.zeros(5), covariance)).sum()
    elbo = TraceMeanField_ELBO()
    # without a likelihood the loss is the KL, with no noise in it
    for _ in range(2):
        assert elbo.loss(model, guide) == pytest.approx(truth.item(), rel=1e-4)
    elbo.differentiable_loss(model, guide).backward()
    assert parameter.grad is not None
    assert parameter.grad.abs().min() > 0


@needs("pyro", "pyro-ppl")
@pytest.mark.parametrize(
    "shapes",
    [
        {"loc": (5,)},
        {"loc": (2, 5), "scale": (), "corr": (4,)},
        {"loc": (2, 3, 5), "scale": (3, 1), "corr": ()},
        {"loc": (5,), "scale": (2, 1, 1), "corr": (3, 4)},
    ],
)
@pytest.mark.parametrize("form", ["natural", "logits"])
def test_pyro_infers_the_shapes_that_are(form: str, shapes: dict[str, tuple[int, ...]]) -> None:
    _, chain = pyro_parts()
    if form == "logits":
        shapes = {{"scale": "log_scale", "corr": "corr_logit"}.get(k, k): v for k, v in shapes.items()}
    given = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    made = chain.from_logits(**{"log_scale": 0.5, **given}) if form == "logits" else None
    made = made or chain(**{"scale": 0.5, "corr": 0.5, **given})
    assert chain.infer_shapes(**shapes) == (made.batch_shape, made.event_shape)
    assert made.shape() == made().shape == (*made.batch_shape, 5)
    assert made.event_dim == 1
    assert made.expand_by((7,)).batch_shape == (7, *made.batch_shape)


@needs("pyro", "pyro-ppl")
def test_pyro_plates_masks_and_enumeration() -> None:
    """A discrete variable summed out in parallel: the chain's density is asked for under an axis more."""
    pyro, chain = pyro_parts()
    import pyro.distributions as dist
    import pyro.poutine as poutine
    from pyro.infer import TraceEnum_ELBO, config_enumerate

    torch.manual_seed(0)
    means, weights, y = torch.randn(2, 5), torch.tensor([0.3, 0.7]), torch.randn(4, 3, 5)
    seen = torch.tensor([[True], [False], [True], [True]])

    def model() -> None:
        with pyro.plate("rows", 4, dim=-2):
            which = pyro.sample("which", dist.Categorical(weights))
            with pyro.plate("channels", 3, dim=-1), poutine.mask(mask=seen):
                pyro.sample("y", chain(means[which], torch.tensor([[1.0], [0.5], [2.0]]), 0.4), obs=y)

    def guide() -> None:
        pass

    trace = poutine.trace(model).get_trace()
    assert trace.nodes["y"]["fn"].batch_shape == (4, 3)
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    loss = elbo.loss(config_enumerate(model), guide)
    per_row = AR1Normal(means[:, None, None], torch.tensor([[1.0], [0.5], [2.0]]), 0.4).log_prob(y).sum(-1)
    truth = (per_row * seen[:, 0] + weights.log()[:, None]).logsumexp(0).sum()
    assert loss == pytest.approx(-truth.item(), rel=1e-5)


@needs("pyro", "pyro-ppl")
@pytest.mark.filterwarnings("error::RuntimeWarning")  # of a KL that two rules claim
@pytest.mark.parametrize("point", [False, True])
def test_pyro_channels_as_one_event_and_point_estimates(point: bool) -> None:
    pyro, chain = pyro_parts()
    import pyro.distributions as dist
    from pyro.infer import TraceMeanField_ELBO

    loc, scale, at = torch.randn(2, 3, 5), torch.tensor([[1.0], [0.5], [2.0]]), torch.randn(2, 3, 5)
    channels = chain(loc, scale, 0.4).to_event(1)
    standard = dist.Normal(torch.zeros(3, 5), 1.5).to_event(2)

    def model() -> None:
        with pyro.plate("rows", 2):
            pyro.sample("z", channels if point else standard)

    def guide() -> None:
        with pyro.plate("rows", 2):
            pyro.sample("z", dist.Delta(at, event_dim=2) if point else channels)

    mine = AR1Normal(loc, scale, 0.4)
    dense = MultivariateNormal(loc, mine.covariance_matrix)
    prior = MultivariateNormal(torch.zeros(5), 2.25 * torch.eye(5))
    truth = -dense.log_prob(at).sum() if point else kl_divergence(dense, prior).sum()
    assert TraceMeanField_ELBO().loss(model, guide) == pytest.approx(truth.item(), rel=1e-4)
    torch.testing.assert_close(
        kl_divergence(dist.Delta(at[0, 0], event_dim=1), chain(loc[0, 0], 1.0, 0.4)),
        -AR1Normal(loc[0, 0], 1.0, 0.4).log_prob(at[0, 0]),
    )


@needs("pyro", "pyro-ppl")
def test_pyro_guides_and_parameters_by_constraint() -> None:
    pyro, chain = pyro_parts()
    from pyro.infer import SVI, Trace_ELBO
    from pyro.infer.autoguide import AutoNormal
    from pyro.optim import Adam

    y = torch.randn(20, 5)

    def model() -> None:
        scale = pyro.param("scale", torch.ones(5), constraint=chain.arg_constraints["scale"])
        corr = pyro.param("corr", torch.zeros(4), constraint=chain.arg_constraints["corr"])
        loc = pyro.sample("loc", chain(torch.zeros(5), 3.0, 0.2))
        with pyro.plate("rows", 20):
            pyro.sample("y", chain(loc, scale, corr), obs=y)

    guide = AutoNormal(model)
    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step() for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert pyro.param("corr").abs().max() < 1
    assert pyro.param("scale").min() > 0
    assert guide().keys() == {"loc"}


@needs("pyro", "pyro-ppl")
def test_pyro_example_learns() -> None:
    losses = example("pyro_vae").train(epochs=3)
    assert losses[-1] < losses[0] - 5


# diffusers


def chain_parameters() -> torch.Tensor:
    return torch.randn(3, 6, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@needs("diffusers", "diffusers")
def test_diffusers_distribution_against_dense() -> None:
    module = example("diffusers_autoencoder")
    parameters = chain_parameters().requires_grad_()
    q = module.ChainGaussianDistribution(parameters)
    mean, log_variance, logits = (part.flatten(2) for part in parameters.chunk(3, 1))
    covariance = AR1Normal(mean, (0.5 * log_variance).exp(), logits[..., 1:].tanh()).covariance_matrix
    dense = MultivariateNormal(mean, covariance)
    standard = MultivariateNormal(torch.zeros(6).double(), torch.eye(6).double())
    torch.testing.assert_close(q.kl(), kl_divergence(dense, standard).sum(1))
    torch.testing.assert_close(q.kl(q), torch.zeros(3).double())
    z = q.sample(torch.Generator().manual_seed(1))
    assert torch.equal(z, q.sample(torch.Generator().manual_seed(1)))
    assert z.shape == q.mode().shape == q.std.shape == q.var.shape == (3, 2, 2, 3)
    torch.testing.assert_close(q.nll(z), -dense.log_prob(z.flatten(2)).sum(1))


@needs("diffusers", "diffusers")
def test_diffusers_without_correlation_is_its_own_distribution() -> None:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    module = example("diffusers_autoencoder")
    moments = chain_parameters()[:, :4]
    theirs = DiagonalGaussianDistribution(moments)
    q = module.ChainGaussianDistribution(torch.cat([moments, torch.zeros_like(moments[:, :2])], 1))
    torch.testing.assert_close(q.kl(), theirs.kl())
    z = torch.randn(3, 2, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(q.nll(z), theirs.nll(z))
    torch.testing.assert_close(q.std, theirs.std)


@needs("diffusers", "diffusers")
def test_diffusers_model_trains_saves_and_takes_over(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    module = example("diffusers_autoencoder")
    losses = module.train(steps=25)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])

    model = module.small().eval()
    x = torch.rand(2, 1, 8, 8)
    model.save_pretrained(tmp_path)
    again = module.AutoencoderAR1.from_pretrained(tmp_path).eval()
    assert torch.equal(again.encode(x).latent_dist.parameters, model.encode(x).latent_dist.parameters)
    again.enable_slicing()
    torch.testing.assert_close(
        again.encode(x).latent_dist.parameters, model.encode(x).latent_dist.parameters, rtol=1e-4, atol=1e-5
    )
    assert model(x, sample_posterior=True).sample.shape == x.shape

    for quant in (True, False):
        config = {**model.config, "use_quant_conv": quant}
        diagonal = AutoencoderKL.from_config(config).eval()
        wide = module.AutoencoderAR1.from_diagonal(diagonal).eval()
        torch.testing.assert_close(
            wide.encode(x).latent_dist.kl(), diagonal.encode(x).latent_dist.kl(), rtol=1e-4, atol=1e-4
        )


# pythae


def pythae_model(posterior: str = "ar1", latent_dim: int = 3, loss: str = "bce") -> Any:
    module = example("pythae_rho_vae")
    torch.manual_seed(1)
    config = module.RhoVAEConfig(
        input_dim=(1, 4, 3), latent_dim=latent_dim, posterior=posterior, reconstruction_loss=loss
    )
    return module.RhoVAE(config).eval()


@needs("pythae", "pythae")
@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("posterior", ["diag", "iso", "rho", "ar1"])
def test_pythae_saves_and_reloads(tmp_path: Path, posterior: str, loss: str) -> None:
    model = pythae_model(posterior, loss=loss)
    model.save(str(tmp_path))
    again = type(model).load_from_folder(str(tmp_path)).eval()
    assert again.model_config.posterior == posterior
    x = torch.rand(5, 1, 4, 3)
    q, r = model.posterior(x), again.posterior(x)
    assert torch.equal(q.mean, r.mean)
    assert torch.equal(q.kl(), r.kl())
    torch.manual_seed(0)
    first = model.get_nll(x, 7)
    torch.manual_seed(0)
    assert again.get_nll(x, 7) == first


@needs("pythae", "pythae")
@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_pythae_loss_is_the_negative_elbo(loss: str) -> None:
    model = pythae_model(loss=loss).double()
    x = torch.rand(4, 1, 4, 3, dtype=torch.float64)
    torch.manual_seed(3)
    output = model({"data": x})
    torch.manual_seed(3)
    z, kl = model.posterior(x).rsample_kl()
    likelihood = model._log_likelihood(x, z[None])[0]
    # pythae leaves the constant of the Gaussian out
    constant = 0.5 * 12 * math.log(2 * math.pi) if loss == "mse" else 0.0
    torch.testing.assert_close(output.loss, (kl - likelihood).mean() - constant)
    assert output.recon_x.shape == x.shape


@needs("pythae", "pythae")
@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("posterior", ["diag", "ar1"])
def test_pythae_likelihood_against_quadrature(posterior: str, loss: str) -> None:
    model = pythae_model(posterior, latent_dim=2, loss=loss).double()
    x = torch.rand(3, 1, 4, 3, dtype=torch.float64)
    axis = torch.linspace(-6, 6, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)[:, None].expand(-1, 3, 2)
    joint = model._log_likelihood(x, grid) + Normal(0.0, 1.0).log_prob(grid).sum(-1)
    evidence = joint.logsumexp(0) + 2 * torch.log(axis[1] - axis[0])
    torch.manual_seed(0)
    assert model.get_nll(x, 4000, batch_size=900) == pytest.approx(evidence.mean().item(), abs=0.02)


@needs("pythae", "pythae")
def test_pythae_pipeline_trains(tmp_path: Path) -> None:
    module = example("pythae_rho_vae")
    model = module.train(epochs=2, folder=tmp_path)
    assert isinstance(model, module.RhoVAE)
    x = module.load_dataset("digits").test.pixels(slice(0, 5))
    # an untrained decoder knows nothing: log 2 for each of 64 pixels
    assert model.get_nll(x, 20) > -40
