"""Empty batches, saturated logits, values that are no numbers, and what the ops promise to torch."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import rhovae_ext
from tests.ext.cases import Case, cotangents, make_case, results
from tests.ext.compare import assert_close
from tests.ext.test_saturation import LOGITS as EXTREMES
from tests.ext.test_types_and_strides import KINDS, check
from tests.triton.conftest import DEVICE

KEY = torch.tensor([3, 4], dtype=torch.uint64)


@pytest.mark.parametrize("lead", [(0,), (3, 0)], ids=str)
def test_empty_batch(lead: tuple[int, ...]) -> None:
    for kinds in KINDS:
        for d in (5, 40):
            case = make_case(
                lead, d, *kinds, torch.float32, logits=True, device=DEVICE, key=(1, 1), num_samples=2
            )
            check(case, "triton")
        mu, scale, rho = case.mu, case.scale, case.rho
        assert rhovae_ext.ar1_log_prob_with_logits(mu, mu, scale, rho, backend="triton").shape == lead


@pytest.mark.parametrize("per_step", [False, True], ids=["row", "step"])
def test_logits_of_any_size(per_step: bool) -> None:
    d = 5
    column = torch.tensor(EXTREMES, device=DEVICE).unsqueeze(-1)
    logits = column.expand(-1, d - 1).contiguous() if per_step else column
    mu = torch.randn(len(EXTREMES), d, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    case = Case(mu, mu.new_zeros(len(EXTREMES)), logits, True, options={"key": (1, 1), "num_samples": None})
    outputs = results(case, "triton", torch.ones_like(mu), mu.new_ones(len(EXTREMES)))
    truth = results(
        case.truth(), "reference", torch.ones_like(mu).double(), mu.new_ones(len(EXTREMES)).double()
    )
    for name, value in outputs.items():
        assert value.isfinite().all(), name
        assert_close(value, truth[name], name)
    mean = torch.zeros_like(mu).requires_grad_()  # a point of the chain itself: z - mu without a rounding
    z = rhovae_ext.ar1_reparam_kl_with_logits(mean, 0.0, logits, key=(1, 1), backend="triton")[0].detach()
    log_prob = rhovae_ext.ar1_log_prob_with_logits(z, mean, 0.0, logits, backend="triton")
    assert log_prob.isfinite().all()
    assert torch.autograd.grad(log_prob.sum(), mean)[0].isfinite().all()


@pytest.mark.parametrize("name", ["mu", "scale", "rho"])
@pytest.mark.parametrize("per_step", [False, True], ids=["row", "step"])
def test_nan_stays_in_its_row(per_step: bool, name: str) -> None:
    rows, bad = 3, 1
    for d in (6, 20):
        mu = torch.randn(rows, d, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        inputs = {
            "mu": mu,
            "scale": torch.full((rows, d if per_step else 1), 0.5, device=DEVICE),
            "rho": torch.full((rows, d - 1 if per_step else 1), 0.5, device=DEVICE),
        }
        options = {"key": (1, 1), "num_samples": None}
        case = Case(inputs["mu"], inputs["scale"], inputs["rho"], options=options)
        gradients = torch.ones_like(mu), mu.new_ones(rows)
        clean = results(case, "triton", *gradients)
        inputs[name][bad, 0] = math.nan if name != "rho" else 1.5
        spoilt = results(case, "triton", *gradients)
        others = [row for row in range(rows) if row != bad]
        for output, value in spoilt.items():
            assert torch.equal(value[others], clean[output][others]), output
        assert spoilt["kl"][bad].isnan()
        if name == "rho":
            assert spoilt["z"][bad, 1:].isnan().all()
            assert spoilt["drho"][bad].isnan().any()


def test_rho_has_no_effect_on_a_chain_of_one() -> None:
    for rho in (0.3, 5.0, math.nan):
        given = torch.full((4,), rho, device=DEVICE, requires_grad=True)
        mu = torch.zeros(4, 1, device=DEVICE)
        z, kl = rhovae_ext.ar1_reparam_kl(mu, 0.5, given, key=(1, 1), backend="triton")
        log_prob = rhovae_ext.ar1_log_prob(z, mu, 0.5, given, backend="triton")
        (grad,) = torch.autograd.grad(z.sum() + kl.sum() + log_prob.sum(), given)
        assert torch.equal(grad, torch.zeros_like(given))


def test_opcheck() -> None:
    ops = torch.ops.rhovae
    case = make_case((2,), 5, "row", "step", torch.float32, logits=True, device=DEVICE)
    for grad in (False, True):
        inputs = tuple(value.requires_grad_(grad) for value in case.leaves().inputs.values())
        torch.library.opcheck(ops.triton_ar1.default, (*inputs, KEY, None, 2, 0, True, True, 1))
        eps = torch.randn(2, 5, device=DEVICE, requires_grad=grad)
        torch.library.opcheck(ops.triton_ar1.default, (*inputs, None, eps, None, 0, True, True, 2))
        z = torch.randn(3, 2, 5, device=DEVICE, requires_grad=grad)
        torch.library.opcheck(ops.triton_ar1_log_prob.default, (z, *inputs, True))
    plain = tuple(case.inputs.values())
    dz, dkl = torch.randn(2, 5, device=DEVICE), torch.randn(2, device=DEVICE)
    torch.library.opcheck(
        ops.triton_ar1_backward.default, (dz, dkl, *plain, None, eps.detach(), None, 0, True, 1, True)
    )
    torch.library.opcheck(
        ops.triton_ar1_log_prob_backward.default, (torch.randn(3, 2, device=DEVICE), z.detach(), *plain, True)
    )


def test_compiled_is_eager() -> None:
    torch._dynamo.reset()
    case = make_case((3,), 6, "row", "step", torch.float32, logits=True, device=DEVICE, key=(5, 6)).leaves()
    function = partial(
        rhovae_ext.ar1_reparam_kl_with_logits, key=KEY.to(DEVICE), num_samples=2, backend="triton"
    )
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager" if DEVICE == "cpu" else "inductor")
    inputs = tuple(case.inputs.values())
    dz, dkl = cotangents(
        make_case((3,), 6, "row", "step", torch.float32, device=DEVICE, key=(5, 6), num_samples=2)
    )
    outputs = []
    for call in (function, compiled):
        z, kl = call(*inputs)
        outputs.append((z, kl, *torch.autograd.grad((z, kl), inputs, (dz, dkl))))
    for actual, expected in zip(*outputs, strict=True):
        assert_close(actual, expected.detach(), "value", tolerance=1e-6)
    torch._dynamo.reset()


def test_more_samples_than_a_grid_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from rhovae_ext.triton import launch

    case = make_case((2,), 5, "row", "row", torch.float32, device=DEVICE, key=(5, 6), num_samples=5)
    whole = case.call("triton")
    monkeypatch.setattr(launch, "MOST_SAMPLES", 2)
    for actual, expected in zip(case.call("triton"), whole, strict=True):
        assert torch.equal(actual, expected)
