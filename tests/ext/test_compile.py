"""The ops as torch.library sees them, and torch.compile against eager."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import rhovae_ext
from rhovae_ext import native
from tests.ext.cases import Case, cotangents, make_case, with_eps
from tests.ext.compare import assert_close

KEY = torch.tensor([3, 4], dtype=torch.uint64)
KEYS = rhovae_ext.split(5, 3)  # one for each row
KINDS = [("row", "row"), ("step", "step"), ("zero_dim", "row_kept")]


@pytest.fixture
def ops() -> Any:
    if native.unavailable is not None:
        pytest.skip(f"native: {native.unavailable}")
    return torch.ops.rhovae


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiler(backend: str) -> str:
    """Inductor where the graph is one op; the reference's graph is only traced, which takes less long."""
    return "inductor" if backend == "native" else "aot_eager"


def _parameters(d: int, kinds: tuple[str, str], grad: bool, dtype: torch.dtype) -> tuple[Tensor, ...]:
    case = make_case((3,), d, *kinds, dtype, logits=True)
    return tuple(value.requires_grad_(grad) for value in case.leaves().inputs.values())


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_sampling(ops: Any, grad: bool, dtype: torch.dtype) -> None:
    for d, kinds in ((5, KINDS[0]), (4, KINDS[1]), (1, KINDS[2])):
        inputs = _parameters(d, kinds, grad, dtype)
        for samples in (None, 2):
            shape = (3, d) if samples is None else (samples, 3, d)
            for kl in (0, 1, 2):
                torch.library.opcheck(
                    ops.ar1.default, (*inputs, KEY, None, samples, 0, True, True, kl), raise_exception=True
                )
            torch.library.opcheck(ops.ar1.default, (*inputs, KEYS, None, samples, 7, True, True, 1))
            eps = torch.randn(shape, dtype=dtype, requires_grad=grad)
            torch.library.opcheck(ops.ar1.default, (*inputs, None, eps, samples, 0, True, True, 1))
        torch.library.opcheck(ops.ar1.default, (*inputs, None, None, None, 0, True, False, 1))


def test_opcheck_sampling_backward(ops: Any) -> None:
    for d, kinds in ((5, KINDS[0]), (4, KINDS[1]), (1, KINDS[2])):
        inputs = _parameters(d, kinds, False, torch.float32)
        dz, dkl, eps = torch.randn(3, d), torch.randn(3), torch.randn(3, d)
        for arguments in (
            (dz, dkl, *inputs, KEY, None, None, 0, True, 1, False),
            (dz, dkl, *inputs, KEYS, None, None, 7, True, 1, False),
            (dz, None, *inputs, None, eps, None, 0, True, 0, True),
            (None, dkl, *inputs, None, None, None, 0, True, 1, False),
            (dz, torch.randn(3, d), *inputs, KEY, None, None, 0, True, 2, False),
        ):
            torch.library.opcheck(ops.ar1_backward.default, arguments)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_opcheck_log_prob(ops: Any, grad: bool) -> None:
    for d, kinds in ((5, KINDS[0]), (4, KINDS[1]), (1, KINDS[2])):
        inputs = _parameters(d, kinds, grad, torch.float32)
        for lead in ((3,), (2, 3)):
            z = torch.randn(*lead, d, requires_grad=grad)
            torch.library.opcheck(ops.ar1_log_prob.default, (z, *inputs, True))
            if not grad:
                torch.library.opcheck(
                    ops.ar1_log_prob_backward.default, (torch.randn(lead), z, *inputs, True)
                )


def test_opcheck_draw_key(ops: Any) -> None:
    like = torch.zeros(2)
    for utils in ("test_schema", "test_autograd_registration", "test_faketensor"):
        torch.library.opcheck(ops.draw_key.default, (like,), test_utils=utils)


def test_the_tags_say_what_is_random(ops: Any) -> None:
    assert torch.Tag.nondeterministic_seeded in ops.draw_key.default.tags
    for op in (ops.ar1, ops.ar1_backward, ops.ar1_log_prob, ops.ar1_log_prob_backward):
        assert torch.Tag.nondeterministic_seeded not in op.default.tags


def _grads(case: Case, z: Tensor, kl: Tensor) -> tuple[Tensor, ...]:
    dz, dkl = cotangents(case)
    return torch.autograd.grad((z, kl), list(case.inputs.values()), (dz, dkl))


@pytest.mark.parametrize("noise", ["pair", "tensor", "eps", "default"])
def test_compiled_is_eager(backend: str, noise: str) -> None:
    for kinds, per_dim in ((("row", "row"), False), (("step", "step"), True)):
        torch._dynamo.reset()
        case = make_case(
            (4,), 9, *kinds, torch.float32, logits=True, per_dim=per_dim, key=(5, 6), num_samples=2
        )
        if noise == "eps":
            case = with_eps(case)
        case = case.leaves()
        key: Any = {"pair": (5, 6), "tensor": torch.tensor([5, 6], dtype=torch.uint64)}.get(noise)
        eps = case.options.get("eps")

        function = partial(
            rhovae_ext.ar1_reparam_kl_with_logits,
            key=key,
            eps=eps,
            num_samples=2,
            per_dim=per_dim,
            backend=backend,
        )

        compiled = torch.compile(function, fullgraph=True, backend=compiler(backend))
        inputs = tuple(case.inputs.values())[:3]
        torch.manual_seed(11)
        eager = function(*inputs)
        torch.manual_seed(11)
        traced = compiled(*inputs)
        for name, actual, expected in zip(
            ("z", "kl", *case.inputs),
            (*traced, *_grads(case, *traced)),
            (*eager, *_grads(case, *eager)),
            strict=True,
        ):
            assert_close(actual, expected.detach(), name, tolerance=1e-6)
        if noise == "default":
            assert not torch.equal(compiled(*inputs)[0], traced[0]), "every call draws noise of its own"


def test_the_other_functions_compile(backend: str) -> None:
    case = make_case((4,), 9, "step", "step", torch.float32)
    inputs = case.leaves().inputs

    def function(mu: Tensor, s: Tensor, rho: Tensor) -> Tensor:
        z = rhovae_ext.ar1_reparam(mu, s, rho, key=(1, 2), row_offset=3, backend=backend)
        log_prob = rhovae_ext.ar1_log_prob(z, mu, s, rho, backend=backend)
        kl = rhovae_ext.ar1_kl(mu, s, rho, backend=backend)
        numbers = rhovae_ext.ar1_kl(mu, 0.5, 0.25, backend=backend)
        return (log_prob - kl + numbers + rhovae_ext.ar1_entropy(s, rho)).sum()

    compiled = torch.compile(function, fullgraph=True, backend=compiler(backend))
    expected, actual = function(*inputs.values()), compiled(*inputs.values())
    assert_close(actual, expected.detach(), "value", tolerance=1e-6)
    grads = (torch.autograd.grad(value, list(inputs.values())) for value in (actual, expected))
    for name, grad, wanted in zip(inputs, *grads, strict=True):
        assert_close(grad, wanted, name, tolerance=1e-5)


def test_the_reference_compiles_with_inductor() -> None:
    case = with_eps(make_case((4,), 5, "row", "row", torch.float32)).leaves()

    def function(mu: Tensor, s: Tensor, rho: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        return rhovae_ext.ar1_reparam_kl(mu, s, rho, eps=eps, backend="reference")

    inputs = tuple(case.inputs.values())
    compiled = torch.compile(function, fullgraph=True)
    for actual, expected in zip(compiled(*inputs), function(*inputs), strict=True):
        assert_close(actual, expected.detach(), "value", tolerance=1e-6)


def test_dynamic_shapes_compile_once(backend: str) -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()

    def function(mu: Tensor, log_s: Tensor, rho_logit: Tensor) -> tuple[Tensor, Tensor]:
        return rhovae_ext.ar1_reparam_kl_with_logits(mu, log_s, rho_logit, key=(1, 2), backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend=counter, dynamic=True)
    # The graph of the reference holds log2(d) levels of the scan and asks whether d fills its blocks of four.
    lengths = (9, 13, 15) if backend == "reference" else (9, 64, 130)
    for rows, d in zip((3, 8, 20), lengths, strict=True):
        case = make_case((rows,), d, "row", "row", torch.float32, logits=True)
        inputs = tuple(case.inputs.values())
        for actual, expected in zip(compiled(*inputs), function(*inputs), strict=True):
            assert_close(actual, expected, f"{rows} x {d}", tolerance=1e-6)
    assert counter.frame_count == 1


def test_numbers_that_change_compile_twice_at_most(backend: str) -> None:
    """As a number, then as any number: what is checked of it asks for no graph of its own."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()

    def function(mu: Tensor, s: float, rho: float) -> Tensor:
        return rhovae_ext.ar1_kl(mu, s, rho, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    mu = torch.randn(3, 5)
    for s, rho in ((0.5, 0.1), (0.6, 0.2), (0.7, -0.3), (1.8, 0.4)):
        assert_close(compiled(mu, s, rho), function(mu, s, rho), f"s = {s}", tolerance=1e-6)
    assert counter.frame_count <= 2
