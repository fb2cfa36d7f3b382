"""What torch's distributions promise, asked of the chain: shapes, gradients, values, errors, copies."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    biject_to,
    constraints,
    kl_divergence,
    transform_to,
)

from rhovae.distributions import AR1Normal

N = 40_000


def natural(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[AR1Normal, list[Tensor]]:
    """Batch (2, 3), d = 4: scale per channel, corr per step."""
    generator = torch.Generator().manual_seed(6)
    loc = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    scale = torch.rand(3, 1, generator=generator, dtype=torch.float64) + 0.5
    corr = 1.6 * torch.rand(3, generator=generator, dtype=torch.float64) - 0.8
    leaves = [x.to(dtype).requires_grad_() for x in (loc, scale, corr)]
    return AR1Normal(*leaves, **options), leaves


def logits(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[AR1Normal, list[Tensor]]:
    """The same chain from its logits."""
    _, (loc, scale, corr) = natural(dtype)
    leaves = [x.detach().requires_grad_() for x in (loc, scale.log(), corr.atanh())]
    return AR1Normal.from_logits(*leaves, **options), leaves


forms = pytest.mark.parametrize("make", [natural, logits])
Make = Callable[..., "tuple[AR1Normal, list[Tensor]]"]


@forms
@pytest.mark.parametrize("sample_shape", [(), (1,), (5,), (2, 3), torch.Size((2,)), [4]])
def test_shapes_and_gradients_of_samples(make: Make, sample_shape: Any) -> None:
    q, leaves = make()
    shape = (*sample_shape, 2, 3, 4)
    drawn, reparametrised = q.sample(sample_shape), q.rsample(sample_shape)
    assert drawn.shape == reparametrised.shape == shape
    assert drawn.dtype == leaves[0].dtype
    assert not drawn.requires_grad
    assert reparametrised.requires_grad
    assert q.has_rsample
    assert q.log_prob(drawn).shape == shape[:-1]
    assert q.support.check(drawn).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(reparametrised.sum(), leaves))


@forms
def test_samples_have_no_gradient_where_parameters_have_none(make: Make) -> None:
    q, leaves = make()
    for leaf in leaves:
        leaf.requires_grad_(False)
    assert not q.rsample().requires_grad
    assert not q.log_prob(q.sample()).requires_grad
    assert not q.entropy().requires_grad


@forms
def test_moments_entropy_and_kl_by_monte_carlo(make: Make) -> None:
    q, _ = make()
    p = AR1Normal(torch.tensor([0.3, -0.2, 0.0, 1.0]).double(), 1.3, 0.6)
    torch.manual_seed(0)
    with torch.no_grad():
        z = q.sample((N,))
        error = q.stddev / N**0.5
        assert ((z.mean(0) - q.mean).abs() < 5 * error).all()
        assert ((z.var(0) - q.variance).abs() < 5 * (2 / N) ** 0.5 * q.variance).all()
        for estimate, truth in (
            (-q.log_prob(z), q.entropy()),
            (q.log_prob(z) - p.log_prob(z), kl_divergence(q, p)),
        ):
            assert ((estimate.mean(0) - truth).abs() < 5 * estimate.std(0) / N**0.5).all()
        torch.testing.assert_close(q.perplexity(), q.entropy().exp())


@forms
def test_the_density_integrates_to_one(make: Make) -> None:
    q, _ = make()
    two = q.marginal([0, 2])
    line = torch.linspace(-9.0, 9.0, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)[:, None, None] * two.stddev.detach() + two.mean.detach()
    cell = (line[1] - line[0]) ** 2 * two.stddev.detach().prod(-1)
    torch.testing.assert_close(two.log_prob(grid).exp().sum(0) * cell, torch.ones(2, 3).double())


@forms
def test_the_mode_is_where_the_density_is_largest(make: Make) -> None:
    q, _ = make()
    z = q.mode.detach().requires_grad_()
    (slope,) = torch.autograd.grad(q.log_prob(z).sum(), z)
    torch.testing.assert_close(slope, torch.zeros_like(slope))
    assert (q.log_prob(q.sample((100,))) <= q.log_prob(q.mode)).all()


@forms
@pytest.mark.parametrize("batch_shape", [(2, 3), (5, 2, 3), (1, 2, 3), (7, 5, 2, 3)])
def test_expanded(make: Make, batch_shape: tuple[int, ...]) -> None:
    q, leaves = make()
    e = q.expand(batch_shape)
    assert type(e) is AR1Normal
    assert (e.batch_shape, e.event_shape) == (batch_shape, (4,))
    assert e.loc.data_ptr() == q.loc.data_ptr()
    z = e.rsample((2,))
    assert z.shape == (2, *batch_shape, 4)
    torch.testing.assert_close(e.log_prob(z), q.log_prob(z))
    for name in ("mean", "variance", "stddev", "mode", "scale", "corr", "log_scale", "corr_logit"):
        value = getattr(q, name)
        assert torch.equal(getattr(e, name), value.expand(*batch_shape, value.shape[-1])), name
    assert torch.equal(e.entropy(), q.entropy().expand(batch_shape))
    again = e.expand((3, *batch_shape))
    assert again.batch_shape == (3, *batch_shape)
    assert all(g is not None for g in torch.autograd.grad(again.rsample().sum(), leaves))
    assert e._validate_args == q._validate_args
    with pytest.raises(RuntimeError, match="expand"):
        q.expand((2, 4))


def test_a_batch_made_by_the_parameters_expands_too() -> None:
    q = AR1Normal(torch.zeros(4), torch.ones(3, 1), 0.5)
    assert q.expand((2, 3)).rsample().shape == (2, 3, 4)
    with pytest.raises(RuntimeError, match="expand"):
        q.expand((5,))
    assert AR1Normal(torch.zeros(1, 4), 1.0, 0.5).expand((6,)).entropy().shape == (6,)


def test_a_subclass_with_an_init_of_its_own_is_asked_for_its_expand() -> None:
    class Own(AR1Normal):
        def __init__(self, loc: Tensor) -> None:
            super().__init__(loc, 1.0, 0.5)

    with pytest.raises(NotImplementedError, match="expand"):
        Own(torch.zeros(4)).expand((2,))

    class Same(AR1Normal):
        pass

    assert type(Same(torch.zeros(4), 1.0, 0.5).expand((2,))) is Same


@forms
def test_independent(make: Make) -> None:
    q, _ = make()
    rows = Independent(q, 1)
    assert (rows.batch_shape, rows.event_shape) == ((2,), (3, 4))
    z = rows.rsample((6,))
    assert rows.support.event_dim == 2
    torch.testing.assert_close(rows.log_prob(z), q.log_prob(z).sum(-1))
    torch.testing.assert_close(rows.entropy(), q.entropy().sum(-1))
    assert rows.expand((5, 2)).rsample().shape == (5, 2, 3, 4)


def test_a_mixture_of_chains() -> None:
    q, _ = natural()
    weights = torch.distributions.Categorical(torch.rand(2, 3).double())
    mixture = MixtureSameFamily(weights, q)
    z = mixture.sample((5,))
    assert z.shape == (5, 2, 4)
    truth = (q.log_prob(z.unsqueeze(-2)) + weights.logits).logsumexp(-1)
    torch.testing.assert_close(mixture.log_prob(z), truth)


@forms
def test_what_a_chain_has_not(make: Make) -> None:
    q, _ = make()
    assert not q.has_enumerate_support
    absent: list[Callable[[], Any]] = [
        lambda: q.enumerate_support(True),
        lambda: q.cdf(q.mean),
        lambda: q.icdf(q.mean),
    ]
    for call in absent:
        with pytest.raises(NotImplementedError):
            call()


@forms
def test_repr(make: Make) -> None:
    assert repr(make()[0]) == "AR1Normal(batch_shape=(2, 3), d=4)"


BAD = [float("nan"), -1.0, 0.0, 1.0, 2.0]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", ["loc", "scale", "corr", "log_scale", "corr_logit"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_validation_of_every_argument(name: str, value: float, as_tensor: bool) -> None:
    form = AR1Normal if name in ("scale", "corr") else AR1Normal.from_logits
    lower, upper = {"scale": (0.0, float("inf")), "corr": (-1.0, 1.0)}.get(
        name, (-float("inf"), float("inf"))
    )
    given: dict[str, Any] = {"loc": torch.zeros(2, 3)}
    given |= {"scale": 1.0, "corr": 0.5} if form is AR1Normal else {"log_scale": 0.0, "corr_logit": 0.5}
    steps = 2 if "corr" in name else 3
    given[name] = torch.zeros(steps).add(0.5).index_fill(0, torch.tensor(1), value) if as_tensor else value
    if name == "loc":
        given[name] = torch.full((2, 3), value)
    if lower < value < upper:
        form(**given, validate_args=True)
    else:
        with pytest.raises(ValueError, match=f"AR1Normal: parameter {name} must satisfy .* but got {value}"):
            form(**given, validate_args=True)
    form(**given, validate_args=False)


def test_the_default_of_validation_is_torch_s() -> None:
    with pytest.raises(ValueError, match="parameter scale"):
        AR1Normal(torch.zeros(3), -1.0, 0.0)
    Distribution.set_default_validate_args(False)
    AR1Normal(torch.zeros(3), -1.0, 0.0)


@forms
@pytest.mark.parametrize("shape", [(3,), (5,), (4, 3, 4), ()])
def test_values_of_other_shapes_are_refused(make: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"event_shape|broadcast"):
        make()[0].log_prob(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(0, 4), (0, 1), (3, 0, 2)])
def test_an_empty_batch_is_valid(shape: tuple[int, ...]) -> None:
    q = AR1Normal(torch.zeros(shape), torch.ones(shape), 0.5, validate_args=True)
    z = q.rsample((2,))
    assert z.shape == (2, *shape)
    assert q.log_prob(z).shape == (2, *shape[:-1])
    assert q.entropy().shape == shape[:-1]


def test_parameters_reach_their_constraints_from_anywhere() -> None:
    shapes = {"loc": (2, 4), "scale": (4,), "corr": (3,), "log_scale": (2, 1), "corr_logit": (2, 3)}
    for transform in (biject_to, transform_to):
        made = {}
        for name, shape in shapes.items():
            constraint = AR1Normal.arg_constraints[name]
            assert constraint.event_dim == 1
            assert not constraint.is_discrete
            made[name] = transform(constraint)(3.0 * torch.randn(shape))
            assert constraint.check(made[name]).shape == shape[:-1]
            assert constraint.check(made[name]).all()
        AR1Normal(made["loc"], made["scale"], made["corr"], validate_args=True)
        AR1Normal.from_logits(made["loc"], made["log_scale"], made["corr_logit"], validate_args=True)
    assert AR1Normal.support is constraints.real_vector


@forms
def test_vmap_over_the_density_and_over_parameters(make: Make) -> None:
    q, _ = make(validate_args=False)
    z = q.sample((6,))
    torch.testing.assert_close(torch.func.vmap(q.log_prob)(z), q.log_prob(z))
    form: Any = AR1Normal if make is natural else AR1Normal.from_logits
    given = [x.detach() for x in make()[1]]
    rows = [x.expand(2, *x.shape[-2:]) if x.dim() == 2 else x.expand(2, *x.shape[-1:]) for x in given[1:]]

    def one(loc: Tensor, scale: Tensor, corr: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chain = form(loc, scale, corr, validate_args=False)
        prior = Independent(Normal(torch.zeros(4).double(), 1.0, validate_args=False), 1, validate_args=False)
        return chain.log_prob(z), chain.entropy(), kl_divergence(chain, prior)

    mapped: Any = torch.func.vmap(one, in_dims=(0, 0, 0, 1))
    found = mapped(given[0], *rows, z)
    standard = Independent(Normal(torch.zeros(4).double(), 1.0), 1)
    torch.testing.assert_close(found[0], q.log_prob(z).transpose(0, 1))
    torch.testing.assert_close(found[1], q.entropy())
    torch.testing.assert_close(found[2], kl_divergence(q, standard))


# Copies, and modules that hold one


@forms
def test_copies_and_pickles(make: Make) -> None:
    q, _ = make(backend="reference", validate_args=False)
    z = q.sample()
    stream = io.BytesIO()
    torch.save(q, stream)
    stream.seek(0)
    expanded = q.expand((5, 2, 3))
    for whole, copies in (
        (q, [copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q))]),
        (q, [torch.load(stream, weights_only=False)]),
        (expanded, [copy.deepcopy(expanded), pickle.loads(pickle.dumps(expanded))]),
    ):
        for other in copies:
            assert (other.batch_shape, other.event_shape) == (whole.batch_shape, whole.event_shape)
            assert (other.backend, other._validate_args) == ("reference", False)
            assert torch.equal(other.log_prob(z), whole.log_prob(z))
            assert torch.equal(other.corr_logit, whole.corr_logit)
            assert torch.equal(other.rsample(key=(1, 2)), whole.rsample(key=(1, 2)))


class Learnt(nn.Module):
    """A prior that is learnt; one value for all rows, one per step."""

    def __init__(self, make: str) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(4))
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.corr = nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))
        form = AR1Normal if make == "natural" else AR1Normal.from_logits
        self.prior = form(self.loc, self.scale, self.corr)

    def forward(self, z: Tensor) -> Tensor:
        # everything that is derived has been looked at
        moments = (
            self.prior.covariance_matrix.sum() + self.prior.precision_matrix.sum() + self.prior.scale.sum()
        )
        return -self.prior.log_prob(z).mean() + 1e-3 * moments + self.prior.entropy()


@pytest.mark.parametrize("make", ["natural", "logits"])
def test_a_module_that_holds_one_is_trained_copied_and_saved(make: str) -> None:
    torch.manual_seed(0)
    z = torch.randn(64, 4)
    model = Learnt(make)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):  # each step sees the parameters as they are by then
        optimizer.zero_grad()
        value = model(z)
        fresh = Learnt(make)
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(value, fresh(z))
        value.backward()
        optimizer.step()
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    copies: list[Any] = [
        copy.deepcopy(model),
        torch.load(stream, weights_only=False),
        torch.optim.swa_utils.AveragedModel(model).module,
    ]
    for other in copies:
        torch.testing.assert_close(other(z), model(z))
        with torch.no_grad():
            other.scale.mul_(2.0)
        assert torch.equal(other.prior.loc, other.loc.detach())
        assert not torch.equal(other.prior.scale, model.prior.scale)  # it holds the copy's own parameters
    model.double()
    assert model.prior.log_prob(z.double()).dtype == torch.float64
