"""What may be done to `mu + s * randn_like(mu)` may be done to the ops: torch.func, higher derivatives,
checkpoints, hooks. Every answer is compared with a loop of plain calls, or with finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, hessian, jacfwd, jacrev, linearize, stack_module_state
from torch.utils.checkpoint import checkpoint

import rhovae_ext
from rhovae_ext import fold_in, split
from tests.ext.cases import TENSOR_KINDS, Case, make_case, with_eps

# torch's own annotations of these take functions of one argument only.
vmap: Callable[..., Any] = torch.func.vmap
grad: Callable[..., Any] = torch.func.grad
jvp: Callable[..., Any] = torch.func.jvp

LOGITS = pytest.mark.parametrize("logits", [False, True], ids=["natural", "logits"])
KINDS = [("row", "row"), ("step", "step"), ("zero_dim", "step_shared"), ("row_kept", "zero_dim")]
kinds_of_parameters = pytest.mark.parametrize("kinds", KINDS, ids=["row", "step", "shared", "mixed"])


def _tensors(case: Case) -> tuple[Tensor, ...]:
    return tuple(case.leaves().inputs.values())


def _sample_kl(case: Case, backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def function(mu: Tensor, scale: Tensor, rho: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        options = case.options if eps is None else {**case.options, "eps": eps}
        return Case(mu, scale, rho, case.logits, case.per_dim, options).call(backend)

    return function


def _log_prob(logits: bool, backend: str) -> Callable[..., Tensor]:
    function = rhovae_ext.ar1_log_prob_with_logits if logits else rhovae_ext.ar1_log_prob
    return lambda z, mu, scale, rho: function(z, mu, scale, rho, backend=backend)


def _loss(backend: str, **options: Any) -> Callable[..., Tensor]:
    """A scalar that is linear in neither z nor the KL."""

    def loss(mu: Tensor, log_s: Tensor, rho_logit: Tensor) -> Tensor:
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(mu, log_s, rho_logit, backend=backend, **options)
        return z.sin().sum() + kl.square().sum()

    return loss


def _chains(*lead: int, d: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(lead) + d)
    shapes = (*lead, d), (*lead, 1), (*lead, d - 1)
    mu, log_s, rho_logit = (torch.randn(*shape, generator=generator, dtype=dtype) * 0.7 for shape in shapes)
    return mu, log_s, rho_logit


def _stacked(results: list[Any]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def assert_equal(ours: Any, expected: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)


# Higher derivatives: what torch's own tests ask of every operator (gradients once and twice, forward mode,
# forward over reverse, batched).


@LOGITS
@kinds_of_parameters
def test_second_and_forward_derivatives_of_sample_and_kl(
    backend: str, kinds: tuple[str, str], logits: bool
) -> None:
    for d in (1, 4):
        drawn = make_case((2,), d, *kinds, logits=logits, key=(7, d), num_samples=2)
        given = with_eps(make_case((2,), d, *kinds, logits=logits, per_dim=True))
        for case in (drawn, given):
            function, inputs = _sample_kl(case, backend), _tensors(case)
            assert gradgradcheck(function, inputs, check_batched_grad=True, check_fwd_over_rev=True)
            assert gradcheck(
                function,
                inputs,
                check_forward_ad=True,
                check_backward_ad=False,
                check_batched_forward_grad=True,
            )


@LOGITS
@kinds_of_parameters
def test_second_and_forward_derivatives_of_densities(
    backend: str, kinds: tuple[str, str], logits: bool
) -> None:
    for d in (1, 4):
        mu, scale, rho = _tensors(make_case((2,), d, *kinds, logits=logits))
        z = torch.randn(3, 2, d, dtype=torch.float64, requires_grad=True)
        function = _log_prob(logits, backend)
        assert gradgradcheck(function, (z, mu, scale, rho), check_batched_grad=True, check_fwd_over_rev=True)
        assert gradcheck(
            function,
            (z, mu, scale, rho),
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
        )


@LOGITS
def test_second_derivatives_where_leading_axes_broadcast(backend: str, logits: bool) -> None:
    """Rows that mu, the scale, rho or the point alone has, and a KL whose gradient alone comes back."""
    shapes = [((3, 1, 3), (1, 2, 3), (1, 2, 2)), ((3,), (2, 3), (3, 1, 1)), ((1, 2, 3), (3, 1, 1), (3, 2, 2))]
    for mu_shape, scale_shape, rho_shape in shapes:
        generator = torch.Generator().manual_seed(0)
        mu, scale, rho = (
            (torch.rand(shape, generator=generator, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
            for shape in (mu_shape, scale_shape, rho_shape)
        )
        case = Case(mu, scale, rho, logits, options={"key": (3, 4), "num_samples": 2})
        assert gradgradcheck(_sample_kl(case, backend), (mu, scale, rho))
        z = torch.rand(2, 1, 1, 3, dtype=torch.float64, requires_grad=True)
        assert gradgradcheck(_log_prob(logits, backend), (z, mu, scale, rho))
        given = with_eps(Case(mu.detach(), scale.detach(), rho.detach(), logits, options={}), torch.float64)
        eps = given.options["eps"].requires_grad_()
        of_kl = lambda *x, given=given: _sample_kl(given, backend)(*x)[1]  # noqa: E731
        assert gradgradcheck(of_kl, (mu, scale, rho, eps), check_undefined_grad=False)


@pytest.mark.parametrize("rho_kind", TENSOR_KINDS)
def test_gradients_of_a_graph_of_gradients_are_those_without(backend: str, rho_kind: str) -> None:
    case = make_case((3,), 6, "step", rho_kind, logits=True, key=(1, 2), dtype=torch.float32)
    inputs = _tensors(case)
    z, kl = _sample_kl(case, backend)(*inputs)
    once = torch.autograd.grad(z.sin().sum() + kl.sum(), inputs, retain_graph=True)
    graph = torch.autograd.grad(z.sin().sum() + kl.sum(), inputs, create_graph=True)
    assert all(gradient.requires_grad for gradient in graph)
    assert_equal([gradient.detach() for gradient in graph], list(once), rtol=2e-5, atol=2e-6)


def test_hessians_agree_with_double_backward(backend: str) -> None:
    inputs = _chains(2)
    loss = _loss(backend, key=3)
    expected = torch.autograd.functional.hessian(loss, inputs)
    argnums = (0, 1, 2)
    for found in (hessian(loss, argnums)(*inputs), jacrev(jacrev(loss, argnums), argnums)(*inputs)):
        assert_equal(found, expected)


def test_hessian_vector_products_and_linearize(backend: str) -> None:
    inputs, loss = _chains(3), _loss(backend, key=(4, 5))
    tangents = tuple(torch.randn_like(x) for x in inputs)
    _, by_reverse = torch.autograd.functional.hvp(loss, inputs, tangents)
    _, by_forward = jvp(grad(loss, (0, 1, 2)), inputs, tangents)
    assert_equal(by_forward, by_reverse)
    out, along = linearize(loss, *inputs)
    value, tangent = jvp(loss, inputs, tangents)
    assert_equal((out, along(*tangents)), (value, tangent))


def test_dual_numbers_pass_through(backend: str) -> None:
    mu, log_s, rho_logit = _chains(3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(mu, torch.ones_like(mu))
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(dual, log_s, rho_logit, key=1, backend=backend)
        of_z, of_kl = (forward_ad.unpack_dual(out).tangent for out in (z, kl))
    assert_equal(of_z, torch.ones_like(mu))
    assert_equal(of_kl, mu.sum(-1))


def test_a_gradient_penalty_trains(backend: str) -> None:
    inputs = tuple(x.requires_grad_() for x in _chains(4))
    gradients = torch.autograd.grad(_loss(backend, key=1)(*inputs), inputs, create_graph=True)
    torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()
    expected = torch.autograd.functional.vhp(
        _loss("reference", key=1), tuple(x.detach() for x in inputs), tuple(2 * g.detach() for g in gradients)
    )[1]
    assert_equal(tuple(x.grad for x in inputs), expected)


# vmap


@pytest.mark.parametrize("samples", [None, 3])
@pytest.mark.parametrize("dims", [(0, 0, 0), (1, None, 0), (None, 0, None), (2, 1, 1)])
def test_vmap_is_a_loop(backend: str, dims: tuple[int | None, ...], samples: int | None) -> None:
    lead = (4, 4)  # so that any of the two axes may be the batch
    inputs = [x if dim is not None else x[0] for x, dim in zip(_chains(*lead, d=4), dims, strict=True)]
    inputs = [x.movedim(0, dim) if dim else x for x, dim in zip(inputs, dims, strict=True)]
    keys = split(9, 4)
    for key, key_dim in ((keys, 0), (keys[1], None)):

        def function(mu: Tensor, log_s: Tensor, rho_logit: Tensor, key: Tensor) -> tuple[Tensor, ...]:
            z, kl = rhovae_ext.ar1_reparam_kl_with_logits(
                mu, log_s, rho_logit, key=key, num_samples=samples, row_offset=5, backend=backend
            )
            per_dim = rhovae_ext.ar1_kl_with_logits(mu, log_s, rho_logit, per_dim=True, backend=backend)
            return z, kl, per_dim

        every: Callable[..., Any] = vmap(function, in_dims=(*dims, key_dim))
        found = every(*inputs, key)
        alone = [
            function(
                *(
                    x if dim is None else x.select(dim, i)
                    for x, dim in zip((*inputs, key), (*dims, key_dim), strict=True)
                )
            )
            for i in range(4)
        ]
        assert_equal(found, _stacked(alone))


def test_vmap_of_every_kind_of_parameter(backend: str) -> None:
    for scale_kind in TENSOR_KINDS:
        for rho_kind in TENSOR_KINDS:
            cases = [make_case((2,), 4, scale_kind, rho_kind, seed=seed, key=(1, 2)) for seed in range(3)]
            stacked = [torch.stack(parts) for parts in zip(*(c.inputs.values() for c in cases), strict=True)]
            function = _sample_kl(cases[0], backend)
            expected = _stacked([function(*case.inputs.values()) for case in cases])
            assert_equal(vmap(function)(*stacked), expected)
            mixed = vmap(function, in_dims=(None, 0, None))(cases[0].mu, stacked[1], cases[0].rho)
            alone = [function(cases[0].mu, x, cases[0].rho) for x in stacked[1]]
            assert_equal(mixed, _stacked(alone))


def test_vmap_of_densities_and_given_noise(backend: str) -> None:
    mu, log_s, rho_logit = _chains(3, 2)
    z, eps = torch.randn(3, 7, 2, 5).double(), torch.randn(7, 3, 2, 5).double()
    density = _log_prob(True, backend)
    expected = torch.stack([density(z[i], mu[i], log_s[i], rho_logit[i]) for i in range(3)])
    assert_equal(vmap(density)(z, mu, log_s, rho_logit), expected)
    shared = torch.stack([density(z[0], mu[i], log_s[0], rho_logit[0]) for i in range(3)])
    assert_equal(vmap(density, in_dims=(None, 0, None, None))(z[0], mu, log_s[0], rho_logit[0]), shared)

    def sample(mu: Tensor, log_s: Tensor, rho_logit: Tensor, eps: Tensor) -> Tensor:
        return rhovae_ext.ar1_reparam_kl_with_logits(
            mu, log_s, rho_logit, eps=eps, num_samples=7, backend=backend
        )[0]

    alone = torch.stack([sample(mu[i], log_s[i], rho_logit[i], eps[:, i]) for i in range(3)])
    assert_equal(vmap(sample, in_dims=(0, 0, 0, 1))(mu, log_s, rho_logit, eps), alone)
    own = vmap(sample, in_dims=(0, None, None, None))(mu, log_s[0], rho_logit[0], eps[:, 0])
    assert_equal(own, torch.stack([sample(mu[i], log_s[0], rho_logit[0], eps[:, 0]) for i in range(3)]))


def test_gradients_for_every_item(backend: str) -> None:
    inputs, keys = _chains(6), split(1, 6)

    def loss(mu: Tensor, log_s: Tensor, rho_logit: Tensor, key: Tensor) -> Tensor:
        return _loss(backend, key=key)(mu, log_s, rho_logit)

    found = vmap(grad(loss, (0, 1, 2)))(*inputs, keys)
    alone = [grad(loss, (0, 1, 2))(*(x[i] for x in inputs), keys[i]) for i in range(6)]
    assert_equal(found, _stacked(alone))
    shared = vmap(grad(loss, (0, 1, 2)), in_dims=(0, None, None, 0))(
        inputs[0], inputs[1][0], inputs[2][0], keys
    )
    alone = [grad(loss, (0, 1, 2))(inputs[0][i], inputs[1][0], inputs[2][0], keys[i]) for i in range(6)]
    assert_equal(shared, _stacked(alone))
    around = grad(lambda *x: vmap(loss)(*x, keys).sum(), (0, 1, 2))(*inputs)
    assert_equal(around, found)


def test_jacobians(backend: str) -> None:
    inputs = _chains(2)

    def function(*x: Tensor) -> tuple[Tensor, Tensor]:
        return rhovae_ext.ar1_reparam_kl_with_logits(*x, key=2, backend=backend)

    expected = torch.autograd.functional.jacobian(function, inputs)
    for transform in (jacrev, jacfwd):
        assert_equal(transform(function, (0, 1, 2))(*inputs), expected)
    assert_equal(torch.autograd.functional.jacobian(function, inputs, vectorize=True), expected)
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    z, _ = function(*leaves)
    directions = torch.randn(4, *z.shape, dtype=z.dtype)
    batched = torch.autograd.grad(z, leaves, directions, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(z, leaves, by, retain_graph=True) for by in directions]
    assert_equal(batched, _stacked(alone))


@pytest.mark.parametrize("batched", [True, False], ids=["own_parameters", "shared_parameters"])
def test_vmap_obeys_randomness(backend: str, batched: bool) -> None:
    mu = torch.zeros(4, 3, 64)

    def draw(item: Tensor) -> Tensor:
        z = rhovae_ext.ar1_reparam(item if batched else mu[0], 1.0, 0.5, backend=backend)
        assert isinstance(z, Tensor)
        return z

    with pytest.raises(RuntimeError, match="random"):
        vmap(draw)(mu)
    torch.manual_seed(5)
    same = vmap(draw, randomness="same")(mu)
    assert torch.equal(same, same[:1].expand_as(same))
    torch.manual_seed(5)
    assert torch.equal(vmap(draw, randomness="same")(mu), same)
    different = vmap(draw, randomness="different")(mu)
    flat = different.flatten(0, 1)
    assert not torch.equal(different[0], different[1])
    assert (torch.corrcoef(flat) - torch.eye(len(flat))).abs().max() < 0.6  # 64 correlated steps each
    assert not torch.equal(vmap(draw, randomness="different")(mu), different)
    nested = vmap(vmap(draw, randomness="different"), randomness="different")(mu[:, None].expand(4, 2, 3, 64))
    assert len({tuple(row[:4].tolist()) for row in nested.flatten(0, 2)}) == 24


def test_vmap_draws_once_for_the_whole_batch(backend: str) -> None:
    if backend == "reference":
        pytest.skip("made of many calls")
    mu, log_s, rho_logit = _chains(32, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        vmap(grad(_loss(backend)), randomness="different")(mu, log_s, rho_logit)
    calls = [event for event in profile.events() if event.name.startswith("rhovae::ar1")]
    # Each op is met once a level: by vmap, by grad, and by the kernel.
    assert len(calls) <= 8, [event.name for event in calls]


def test_an_ensemble_of_heads(backend: str) -> None:
    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mu, self.rest = torch.nn.Linear(3, 4), torch.nn.Linear(3, 2)

        def forward(self, x: Tensor, key: Tensor) -> Tensor:
            log_s, rho_logit = self.rest(x).split(1, -1)
            z, kl = rhovae_ext.ar1_reparam_kl_with_logits(
                self.mu(x), log_s, rho_logit, key=key, backend=backend
            )
            return (z.square().sum(-1) + kl).mean()

    heads, x = [Head().double() for _ in range(3)], torch.randn(5, 3).double()
    parameters, buffers = stack_module_state(heads)
    keys = split(2, 3)

    def loss(own: dict[str, Tensor], key: Tensor) -> Tensor:
        out: Tensor = functional_call(heads[0], (own, {}), (x, key))
        return out

    assert not buffers
    gradients = vmap(grad(loss))(parameters, keys)
    for i, head in enumerate(heads):
        for name, alone in grad(loss)(dict(head.named_parameters()), keys[i]).items():
            assert_equal(gradients[name][i], alone)


# Keys of rows


def test_shuffled_items_keep_their_noise(backend: str) -> None:
    mu, log_s, rho_logit = _chains(6, dtype=torch.float32)
    keys = fold_in(7, torch.arange(6))
    z, _ = rhovae_ext.ar1_reparam_kl_with_logits(mu, log_s, rho_logit, key=keys, backend=backend)
    order = torch.tensor([3, 0, 5, 1])
    shuffled, _ = rhovae_ext.ar1_reparam_kl_with_logits(
        mu[order], log_s[order], rho_logit[order], key=keys[order], backend=backend
    )
    assert torch.equal(shuffled, z[order])
    for i in range(6):
        alone, _ = rhovae_ext.ar1_reparam_kl_with_logits(
            mu[i : i + 1], log_s[i : i + 1], rho_logit[i : i + 1], key=keys[i], backend=backend
        )
        assert torch.equal(alone[0], z[i])


@pytest.mark.parametrize("d", [3, 17, 400, 9000])
@pytest.mark.parametrize("samples", [None, 2])
@pytest.mark.parametrize("own", [(4, 3), (4, 1), (1, 3), (1, 1)], ids=str)
def test_rows_are_numbered_among_those_of_their_key(
    backend: str, own: tuple[int, int], samples: int | None, d: int
) -> None:
    """Each key's rows are the batch that they would be alone, samples and gradients too."""
    inputs = _chains(4, 3, d=d, dtype=torch.float32)
    keys = split(11, own[0] * own[1]).reshape(*own, 2)

    def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        *chain, key = inputs
        leaves = [x.clone().requires_grad_() for x in chain]
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(
            *leaves, key=key, num_samples=samples, row_offset=2, backend=backend
        )
        return z.detach(), *torch.autograd.grad(z.sin().sum() + kl.sum(), leaves)

    z, *by = gradients(*inputs, keys)
    samples_axis = () if samples is None else (slice(None),)
    for i in range(own[0]):
        for j in range(own[1]):
            of_key = tuple(
                slice(at, at + 1) if size > 1 else slice(None) for at, size in zip((i, j), own, strict=True)
            )
            alone = gradients(*(x[of_key] for x in inputs), keys[i, j])
            assert torch.equal(z[samples_axis + of_key], alone[0])
            for whole, part in zip(by, alone[1:], strict=True):
                assert_equal(whole[of_key], part, rtol=1e-5, atol=1e-5)


def test_an_int_is_a_seed(backend: str) -> None:
    mu = torch.zeros(2, 9)
    for seed in (0, 7, 2**64 - 1):
        pair = rhovae_ext.ar1_reparam(mu, 1.0, 0.3, key=(seed, 0), backend=backend)
        assert torch.equal(rhovae_ext.ar1_reparam(mu, 1.0, 0.3, key=seed, backend=backend), pair)


# Checkpoints and hooks


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_draw_the_same_noise_again(backend: str, reentrant: bool) -> None:
    weight = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def region(x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_s, rho_logit = (x @ weight).tanh().split((4, 1, 4), -1)
        return rhovae_ext.ar1_reparam_kl_with_logits(
            mu, log_s, rho_logit[..., :3], num_samples=2, backend=backend
        )

    def gradients(run: Callable[..., Any]) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        z, kl = run(x)
        for leaf in (x, weight):
            leaf.grad = None
        (z.sin().sum() + kl.sum()).backward()  # all that a reentrant checkpoint takes
        return tuple(leaf.grad for leaf in (x, weight) if leaf.grad is not None)

    plain = gradients(region)
    assert_equal(gradients(lambda x: checkpoint(region, x, use_reentrant=reentrant)), plain)
    first = lambda x: region(checkpoint(torch.tanh, x, use_reentrant=reentrant))  # noqa: E731
    assert_equal(gradients(first), gradients(lambda x: region(torch.tanh(x))))


def test_saved_tensors_may_be_packed_as_floats(backend: str) -> None:
    inputs = tuple(x.requires_grad_() for x in _chains(4))
    expected = torch.autograd.grad(_loss(backend, key=(2**63 + 5, 2**40))(*inputs), inputs)

    def pack(tensor: Tensor) -> Tensor:
        assert tensor.dtype is not torch.uint64
        return tensor.double() if tensor.is_floating_point() else tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        loss = _loss(backend, key=(2**63 + 5, 2**40))(*inputs)
    assert_equal(torch.autograd.grad(loss, inputs), expected)
    with torch.autograd.graph.save_on_cpu():
        loss = _loss(backend, key=(2**63 + 5, 2**40))(*inputs)
    assert_equal(torch.autograd.grad(loss, inputs), expected)


def test_a_key_written_to_before_backward_is_refused(backend: str) -> None:
    if backend == "reference":
        pytest.skip("keeps the noise itself")
    mu, log_s, rho_logit = (x.requires_grad_() for x in _chains(4))
    key = rhovae_ext.fold_in(1, 2)
    z, _ = rhovae_ext.ar1_reparam_kl_with_logits(mu, log_s, rho_logit, key=key, backend=backend)
    key.copy_(rhovae_ext.fold_in(1, 3))
    with pytest.raises(RuntimeError, match="key must stay as it is until backward"):
        z.sum().backward()
