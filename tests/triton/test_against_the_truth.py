"""Values and every gradient against the float64 truth on the same numbers and the same noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import rhovae_ext
from tests.ext.cases import Case, make_case, with_eps
from tests.ext.compare import assert_close
from tests.ext.test_types_and_strides import IDS, KINDS, LOGITS, TYPES, check
from tests.triton.conftest import DEVICE

ROW_AND_STEP = [("row", "row"), ("step", "step")]
KIND_IDS = ["-".join(kinds) for kinds in KINDS]


case_of: Callable[..., Case] = partial(make_case, device=DEVICE)


@LOGITS
@pytest.mark.parametrize("kinds", KINDS, ids=KIND_IDS)
def test_options(kinds: tuple[str, str], logits: bool) -> None:
    """Three rows of six; noise drawn and given, samples, both forms of the KL."""
    for per_dim in (False, True):
        case = case_of(
            (3,), 6, *kinds, torch.float32, logits=logits, per_dim=per_dim, key=(11, 2), row_offset=5
        )
        check(case, "triton")
        samples = case_of(
            (3,), 6, *kinds, torch.float32, logits=logits, per_dim=per_dim, key=(11, 2), num_samples=2
        )
        check(with_eps(samples), "triton")


@pytest.mark.parametrize(("dtype", "parameter_dtype"), TYPES, ids=IDS)
def test_types(dtype: torch.dtype, parameter_dtype: torch.dtype) -> None:
    for kinds in ROW_AND_STEP:
        case = case_of((3,), 7, *kinds, dtype, parameter_dtype, logits=True, key=(11, 2), num_samples=2)
        check(case, "triton")
    check(with_eps(case, torch.float64 if dtype == torch.float64 else torch.float32), "triton")


@pytest.mark.parametrize("kinds", ROW_AND_STEP, ids=["row", "step"])
def test_lengths_of_one_tile(kinds: tuple[str, str]) -> None:
    for d in (1, 2, 3, 4, 5, 8, 9, 12, 16):
        check(case_of((3,), d, *kinds, torch.float32, logits=True, key=(5, d)), "triton")
    for d in (1, 2, 3):
        check(case_of((3,), d, *kinds, torch.float64, key=(5, d)), "triton")


@LOGITS
@pytest.mark.parametrize("kinds", ROW_AND_STEP, ids=["row", "step"])
def test_chunks(kinds: tuple[str, str], logits: bool) -> None:
    """Rows of two to four chunks, an uneven number of folds among them."""
    check(case_of((2,), 52 if logits else 17, *kinds, torch.float32, logits=logits, key=(5, 1)), "triton")
    samples = case_of((1,), 33, *kinds, torch.float64, logits=logits, key=(5, 1), num_samples=2, per_dim=True)
    check(samples, "triton")
    check(with_eps(case_of((2,), 20, *kinds, torch.float32, logits=logits)), "triton")


def test_half_types_in_chunks() -> None:
    for kinds in ROW_AND_STEP:
        check(case_of((1,), 33, *kinds, torch.bfloat16, logits=True, key=(5, 1)), "triton")


@pytest.mark.parametrize("kinds", ROW_AND_STEP, ids=["row", "step"])
def test_one_output_alone(kinds: tuple[str, str]) -> None:
    case = case_of((3,), 6, *kinds, torch.float32, logits=True, key=(6, 6), num_samples=2)
    check(case, "triton", kl=False)
    check(with_eps(case), "triton", kl=False)
    for d in (6, 20):
        check(case_of((1,), d, *kinds, torch.float32, logits=True, key=(6, 6)), "triton", z=False)


@LOGITS
def test_broadcast_operands(logits: bool) -> None:
    shapes = [
        ((3, 1, 6), (1, 2, 6), (1, 1, 5)),
        ((6,), (4, 1), (4, 5)),
        ((2, 1, 6), (1, 3, 1), (2, 3, 5)),
        ((4, 6), (4,), (3, 1, 5)),
        ((2, 1, 2, 1, 5), (1, 2, 1, 2, 1), (2, 2, 1, 1, 4)),  # more axes than are followed
    ]
    for mu_shape, scale_shape, rho_shape in shapes:
        generator = torch.Generator().manual_seed(0)
        mu, scale, rho = (
            (torch.rand(shape, generator=generator) + 0.1).to(DEVICE)
            for shape in (mu_shape, scale_shape, rho_shape)
        )
        check(Case(mu, scale, 0.8 * rho, logits, options={"key": (1, 1), "num_samples": 2}), "triton")


def _layouts(d: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    head = torch.randn(6, 3 * d + 1, generator=generator).to(DEVICE)
    grid = torch.randn(3, 2, 3 * d, generator=generator).to(DEVICE).transpose(0, 1)
    aligned = torch.randn(4, 32, generator=generator).to(DEVICE)
    return {
        "views of one output": (head[:, :d], head[:, d : 2 * d], head[:, 2 * d : 3 * d - 1]),
        "aligned views of one output": (aligned[:, :8], aligned[:, 8:16], aligned[:, 16:23]),
        "values of one output": (head[:, :d], head[:, -2], head[:, -1]),
        "transposed leading axes": (grid[..., :d], grid[..., -1], grid[..., d : 2 * d - 1]),
        "expanded": (head[:1, :d].expand(6, d), head[:1, -1].expand(6), head[:1, 1:d].expand(6, d - 1)),
        "strided steps": (head[:, 0 : 2 * d : 2], head[:, 1 : 2 * d : 2], head[:, 0 : 2 * d - 2 : 2]),
        "every other row": (head[::2, :d], head[::2, -1], head[::2, -2]),
        "value along the chain": (
            head[:, :1].expand(6, d),
            head[:, 1:2].expand(6, d),
            head[:, 2:3].expand(6, d - 1),
        ),
    }


@pytest.mark.parametrize("layout", _layouts(5))
def test_strides(layout: str) -> None:
    mu, log_s, logit = _layouts(5)[layout]
    check(Case(mu, log_s, logit, True, options={"key": (2, 3), "num_samples": None}), "triton")


def test_incoming_gradients_of_any_layout() -> None:
    from tests.ext.cases import cotangents, results

    case = case_of(
        (4,), 8, "row", "step", torch.float32, logits=True, per_dim=True, key=(4, 4), num_samples=2
    )
    dz, dkl = cotangents(case)
    plain = results(case, "triton", dz, dkl)
    for strided in (
        (dz.transpose(0, 1).contiguous().transpose(0, 1), torch.stack((dkl, dkl), -1)[..., 0]),
        (dz.mT.contiguous().mT, dkl.mT.contiguous().mT),
    ):
        for name, value in results(case, "triton", *strided).items():
            assert_close(value, plain[name], name, tolerance=1e-6)


@LOGITS
@pytest.mark.parametrize("kinds", [*ROW_AND_STEP, ("zero_dim", "row_kept")], ids="-".join)
def test_log_prob(kinds: tuple[str, str], logits: bool) -> None:
    function = rhovae_ext.ar1_log_prob_with_logits if logits else rhovae_ext.ar1_log_prob
    for points, d, dtype in (
        ((3,), 6, torch.float32),
        ((2, 3), 1, torch.float64),
        ((1,), 2, torch.bfloat16),
        ((2, 1), 37, torch.float64),
    ):
        case = case_of((3,), d, *kinds, dtype, logits=logits).leaves()
        z = case_of(points, d, dtype=dtype, seed=1).mu.requires_grad_()
        inputs = {"z": z, **case.inputs}
        log_prob = function(z, case.mu, case.scale, case.rho, backend="triton")
        dlogp = torch.randn(log_prob.shape, generator=torch.Generator().manual_seed(0)).to(log_prob)
        grads = torch.autograd.grad(log_prob, list(inputs.values()), dlogp)

        truth, z_truth = case.truth_of_parameters().leaves(), z.detach().double().requires_grad_()
        wanted = {"z": z_truth, **truth.inputs}
        expected = function(z_truth, truth.mu, truth.scale, truth.rho, backend="reference")
        expected_grads = torch.autograd.grad(expected, list(wanted.values()), dlogp.double())
        assert_close(log_prob, expected, "log_prob", floor=1.0)
        for name, grad, expected_grad in zip(inputs, grads, expected_grads, strict=True):
            assert grad.dtype == inputs[name].dtype
            assert_close(grad, expected_grad, f"d{name}, d = {d}", floor=1.0)
