"""Every type, odd size and memory layout against the float64 truth on the same numbers, with gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import rhovae_ext
from tests.ext.cases import Case, cotangents, make_case, results, with_eps
from tests.ext.compare import assert_close

TYPES = [
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
]
IDS = ["-".join(str(dtype).removeprefix("torch.") for dtype in pair) for pair in TYPES]
KINDS = [
    ("row", "row"),
    ("step", "step"),
    ("row_kept", "step_shared"),
    ("zero_dim", "row"),
    ("number", "number"),
]
LOGITS = pytest.mark.parametrize("logits", [False, True], ids=["natural", "logits"])


def check(case: Case, backend: str, z: bool = True, kl: bool = True) -> None:
    """Values and gradients of a call against the same call in float64."""
    dz, dkl = cotangents(case)
    arguments = (dz if z else None, dkl if kl else None)
    actual = results(case, backend, *arguments)
    expected = results(case.truth(), "reference", *(None if x is None else x.double() for x in arguments))
    given = {f"d{name}": value for name, value in case.inputs.items()}
    for name, value in actual.items():
        assert name not in given or value.dtype == given[name].dtype
        # Sums of many terms may cancel; those of z and dmu have one or two.
        floor = 0.0 if name in ("z", "dmu") else 1.0
        assert_close(value, expected[name], f"{name}, d = {case.mu.shape[-1]}", floor=floor)


@LOGITS
@pytest.mark.parametrize(("dtype", "parameter_dtype"), TYPES, ids=IDS)
def test_types(
    backend: str, device: str, dtype: torch.dtype, parameter_dtype: torch.dtype, logits: bool
) -> None:
    for kinds in KINDS:
        for per_dim in (False, True):
            case = make_case(
                (5,),
                37,
                *kinds,
                dtype,
                parameter_dtype,
                logits,
                per_dim,
                device=device,
                key=(11, 2),
                num_samples=2,
            )
            check(case, backend)
            check(with_eps(case), backend)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        check(with_eps(case, wide), backend)


@LOGITS
@pytest.mark.parametrize("kinds", [("row", "row"), ("step", "step")], ids=["row", "step"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_lengths(backend: str, dtype: torch.dtype, kinds: tuple[str, str], logits: bool) -> None:
    short = range(1, 71) if dtype == torch.float32 else (1, 2, 3, 7, 9, 31, 33, 64, 65)
    for d in (*short, 159, 160, 255, 256, 257, 319, 320, 321, 1025, 4099):
        check(make_case((3,), d, *kinds, dtype, logits=logits, key=(5, d)), backend)


@pytest.mark.parametrize("rows", [1, 2, 7, 15, 16, 17, 33, 130])
def test_batches_of_short_rows(backend: str, rows: int) -> None:
    for d in (1, 2, 3, 10, 16, 41):
        check(make_case((rows,), d, "row", "row", torch.float32, logits=True, key=(rows, d)), backend)
        check(make_case((rows,), d, "step", "step", torch.float32, logits=True, key=(rows, d)), backend)


@LOGITS
@pytest.mark.parametrize("num_samples", [None, 1, 3])
def test_samples_and_leading_axes(backend: str, num_samples: int | None, logits: bool) -> None:
    options: dict[str, Any] = {"key": (9, 1), "row_offset": 5, "num_samples": num_samples}
    for lead in ((), (1,), (4,), (2, 3), (2, 1, 3)):
        for kinds in KINDS:
            check(make_case(lead, 6, *kinds, torch.float32, logits=logits, **options), backend)


@LOGITS
def test_broadcast_operands(backend: str, logits: bool) -> None:
    shapes = [
        ((3, 1, 6), (1, 2, 6), (1, 1, 5)),
        ((6,), (4, 1), (4, 5)),
        ((1, 6), (4, 6), (4, 1)),
        ((2, 1, 6), (1, 3, 1), (2, 3, 5)),
        ((4, 6), (4,), (3, 1, 5)),
    ]
    for mu_shape, scale_shape, rho_shape in shapes:
        generator = torch.Generator().manual_seed(0)
        mu, scale, rho = (
            torch.rand(shape, generator=generator) + 0.1 for shape in (mu_shape, scale_shape, rho_shape)
        )
        for num_samples in (None, 2):
            case = Case(mu, scale, 0.8 * rho, logits, options={"key": (1, 1), "num_samples": num_samples})
            check(case, backend)
            check(replace(case, per_dim=True), backend)


def _views_of_one_output(d: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """mu, log_s and rho_logit as models and users hold them: no layout is a copy."""
    generator = torch.Generator().manual_seed(3)
    head = torch.randn(6, 3 * d - 1 + 2, generator=generator)
    grid = torch.randn(3, 2, 3 * d, generator=generator).transpose(0, 1)
    columns = torch.randn(d, 6, generator=generator).T
    return {
        "split, per row": (head[:, :d], head[:, -2], head[:, -1]),
        "split, kept axis": (head[:, :d], head[:, -2:-1], head[:, -1:]),
        "split, per step": (head[:, :d], head[:, d : 2 * d], head[:, 2 * d : 3 * d - 1]),
        "transposed leading axes": (grid[..., :d], grid[..., d : 2 * d], grid[..., 2 * d : -1]),
        "transposed, per row": (grid[..., :d], grid[..., -1], grid[..., -2]),
        "expanded parameters": (
            head[:, :d],
            head[:1, -1].expand(6),
            head[:1, d : 2 * d - 1].expand(6, d - 1),
        ),
        "expanded mu": (head[:1, :d].expand(6, d), head[:, -1], head[:, -2]),
        "strided steps": (head[:, 0 : 2 * d : 2], head[:, 1 : 2 * d : 2], head[:, 0 : 2 * d - 2 : 2]),
        "columns": (columns, columns[:, 0], columns[:, 1:]),
        "flipped": (head[:, :d].flip(0).flip(0)[::2], head[::2, -1], head[::2, -2]),
        "value along the chain": (
            head[:, :1].expand(6, d),
            head[:, 1:2].expand(6, d),
            head[:, 2:3].expand(6, d - 1),
        ),
    }


@pytest.mark.parametrize("layout", _views_of_one_output(5))
def test_strides(backend: str, layout: str) -> None:
    for d in (2, 5, 33):
        mu, log_s, logit = _views_of_one_output(d)[layout]
        for num_samples in (None, 2):
            check(Case(mu, log_s, logit, True, options={"key": (2, 3), "num_samples": num_samples}), backend)


@pytest.mark.parametrize("num_samples", [None, 3])
@pytest.mark.parametrize("kinds", [("row", "row"), ("step", "step")], ids=["row", "step"])
def test_layout_of_the_incoming_gradients(
    backend: str, kinds: tuple[str, str], num_samples: int | None
) -> None:
    for per_dim in (False, True):
        case = make_case(
            (4, 3),
            9,
            *kinds,
            torch.float32,
            logits=True,
            per_dim=per_dim,
            key=(4, 4),
            num_samples=num_samples,
        )
        dz, dkl = cotangents(case)
        plain = results(case, backend, dz, dkl)
        layouts = [
            (
                dz.transpose(-3, -2).contiguous().transpose(-3, -2),
                dkl.transpose(0, 1).contiguous().transpose(0, 1),
            ),
            (dz.mT.contiguous().mT, torch.stack((dkl, dkl), -1)[..., 0]),
            (torch.stack((dz, dz), -1)[..., 1], dkl),
        ]
        for strided_dz, strided_dkl in layouts:
            for name, value in results(case, backend, strided_dz, strided_dkl).items():
                assert_close(value, plain[name], name, tolerance=1e-6)
        ones = results(case, backend, torch.ones_like(dz), torch.ones_like(dkl))
        expanded = results(case, backend, dz.new_ones(()).expand_as(dz), dkl.new_ones(()).expand_as(dkl))
        for name, value in expanded.items():
            assert_close(value, ones[name], name, tolerance=1e-6)


def test_sum_backward(backend: str) -> None:
    case = make_case((4,), 7, "step", "step", torch.float32, key=(1, 1)).leaves()
    z, kl = case.call(backend)
    z.sum().backward(retain_graph=True)
    assert torch.equal(case.mu.grad, torch.ones_like(case.mu))  # type: ignore[arg-type]
    kl.mean().backward()


@pytest.mark.parametrize("kinds", [("row", "row"), ("step", "step")], ids=["row", "step"])
@LOGITS
def test_one_output_alone(backend: str, kinds: tuple[str, str], logits: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = make_case((4,), 19, *kinds, dtype, logits=logits, key=(6, 6), num_samples=2)
        check(case, backend, kl=False)
        check(case, backend, z=False)
        check(with_eps(case), backend, kl=False)


@pytest.mark.parametrize(
    "kinds", [("row", "row"), ("step", "step"), ("zero_dim", "step_shared")], ids="-".join
)
def test_functions_agree(backend: str, kinds: tuple[str, str]) -> None:
    case = make_case((4,), 19, *kinds, torch.float32, key=(6, 6), num_samples=2)
    mu, s, rho, options = case.mu, case.scale, case.rho, case.options
    z, kl = rhovae_ext.ar1_reparam_kl(mu, s, rho, **options, backend=backend)
    _, per_dim = rhovae_ext.ar1_reparam_kl(mu, s, rho, **options, per_dim=True, backend=backend)
    assert torch.equal(z, rhovae_ext.ar1_reparam(mu, s, rho, **options, backend=backend))
    assert_close(rhovae_ext.ar1_kl(mu, s, rho, backend=backend), kl, "kl")
    assert_close(per_dim.sum(-1), kl, "sum of kl per dimension")
    assert_close(rhovae_ext.ar1_kl(mu, s, rho, per_dim=True, backend=backend), per_dim, "kl per dimension")


@LOGITS
@pytest.mark.parametrize("wanted", ["mu", "scale", "rho", "eps"])
def test_gradient_of_one_input_alone(backend: str, wanted: str, logits: bool) -> None:
    for kinds in (("row", "row"), ("step", "step"), ("step", "row"), ("row", "step")):
        case = with_eps(make_case((4,), 9, *kinds, torch.float32, logits=logits))
        dz, dkl = cotangents(case)
        all_of_them = results(case, backend, dz, dkl)
        alone = case.leaves()
        for name, value in alone.inputs.items():
            value.requires_grad_(name == wanted)
        z, kl = alone.call(backend)
        outputs, grads = ((z,), (dz,)) if wanted == "eps" else ((z, kl), (dz, dkl))
        (grad,) = torch.autograd.grad(outputs, alone.inputs[wanted], grads)
        assert_close(grad, all_of_them[f"d{wanted}"], wanted, tolerance=1e-6)


def test_no_gradient_wanted(backend: str) -> None:
    z, kl = make_case((4,), 9, key=(1, 1)).call(backend)
    assert not z.requires_grad
    assert not kl.requires_grad


@LOGITS
@pytest.mark.parametrize("lead", [(0,), (0, 3), (3, 0)], ids=str)
def test_empty_batch(backend: str, lead: tuple[int, ...], logits: bool) -> None:
    for kinds in KINDS:
        for num_samples in (None, 2):
            case = make_case(
                lead, 5, *kinds, torch.float32, logits=logits, key=(1, 1), num_samples=num_samples
            )
            check(case, backend)
        mu, scale, rho = case.mu, case.scale, case.rho
        log_prob = rhovae_ext.ar1_log_prob_with_logits(mu, mu, scale, rho, backend=backend)
        assert log_prob.shape == lead


@pytest.mark.parametrize("logits", [False, True], ids=["natural", "logits"])
@pytest.mark.parametrize(("dtype", "parameter_dtype"), TYPES, ids=IDS)
def test_log_prob(
    backend: str, device: str, dtype: torch.dtype, parameter_dtype: torch.dtype, logits: bool
) -> None:
    function = rhovae_ext.ar1_log_prob_with_logits if logits else rhovae_ext.ar1_log_prob
    for kinds in KINDS:
        for points in ((5,), (3, 5), (2, 3, 5), (1,), (2, 1)):
            for d in (1, 2, 17, 130):
                case = make_case((5,), d, *kinds, dtype, parameter_dtype, logits, device=device).leaves()
                z = make_case(points, d, dtype=dtype, seed=1, device=device).mu.requires_grad_()
                inputs = {"z": z, **case.inputs}
                log_prob = function(z, case.mu, case.scale, case.rho, backend=backend)
                dlogp = torch.randn(log_prob.shape, generator=torch.Generator().manual_seed(0))
                grads = torch.autograd.grad(log_prob, list(inputs.values()), dlogp.to(log_prob))

                truth, z_truth = case.truth_of_parameters().leaves(), z.detach().double().requires_grad_()
                wanted = {"z": z_truth, **truth.inputs}
                expected = function(z_truth, truth.mu, truth.scale, truth.rho, backend="reference")
                expected_grads = torch.autograd.grad(expected, list(wanted.values()), dlogp.double())
                what = f"{kinds}, z {tuple(z.shape)}"
                assert_close(log_prob, expected, f"log_prob, {what}", floor=1.0)
                for name, grad, expected_grad in zip(inputs, grads, expected_grads, strict=True):
                    assert grad.dtype == inputs[name].dtype
                    assert_close(grad, expected_grad, f"d{name}, {what}", floor=1.0)


def test_log_prob_of_strided_points(backend: str) -> None:
    case = make_case((4,), 9, "step", "step", torch.float32)
    plain = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    layouts = [
        plain.transpose(0, 1).contiguous().transpose(0, 1),
        plain.mT.contiguous().mT,
        torch.stack((plain, plain), -1)[..., 0],
    ]
    expected = rhovae_ext.ar1_log_prob(plain, case.mu, case.scale, case.rho, backend=backend)
    for z in layouts:
        assert torch.equal(
            rhovae_ext.ar1_log_prob(z, case.mu, case.scale, case.rho, backend=backend), expected
        )
