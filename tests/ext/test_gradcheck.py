"""Every gradient of every function against finite differences in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import rhovae_ext
from tests.ext.cases import TENSOR_KINDS, Case, make_case, with_eps

LENGTHS = (1, 2, 5)
LOGITS = pytest.mark.parametrize("logits", [False, True], ids=["natural", "logits"])


def _tensors(case: Case) -> tuple[Tensor, ...]:
    return tuple(case.leaves().inputs.values())


def _sample_kl(case: Case, backend: str) -> Any:
    """(z, kl) as a function of the case's tensors."""

    def function(mu: Tensor, scale: Tensor, rho: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        options = case.options if eps is None else {**case.options, "eps": eps}
        return Case(mu, scale, rho, case.logits, case.per_dim, options).call(backend)

    return function


@LOGITS
@pytest.mark.parametrize("rho_kind", TENSOR_KINDS)
@pytest.mark.parametrize("scale_kind", TENSOR_KINDS)
def test_sample_and_kl(backend: str, scale_kind: str, rho_kind: str, logits: bool) -> None:
    for d in LENGTHS:
        drawn = make_case((2,), d, scale_kind, rho_kind, logits=logits, key=(7, d), num_samples=3)
        given = with_eps(make_case((2,), d, scale_kind, rho_kind, logits=logits, per_dim=True))
        for case in (drawn, given):
            assert gradcheck(_sample_kl(case, backend), _tensors(case))


@LOGITS
@pytest.mark.parametrize("per_dim", [False, True])
def test_kl_alone(backend: str, per_dim: bool, logits: bool) -> None:
    function = rhovae_ext.ar1_kl_with_logits if logits else rhovae_ext.ar1_kl
    for kinds in (("row", "row"), ("zero_dim", "step"), ("step", "row_kept"), ("step_shared", "step_shared")):
        for d in LENGTHS:
            inputs = _tensors(make_case((2,), d, *kinds, logits=logits))
            assert gradcheck(lambda *x: function(*x, per_dim=per_dim, backend=backend), inputs)


@LOGITS
@pytest.mark.parametrize("points", [(2,), (3, 2), (1,)], ids=["rows", "samples", "one_for_all"])
def test_log_prob(backend: str, points: tuple[int, ...], logits: bool) -> None:
    function = rhovae_ext.ar1_log_prob_with_logits if logits else rhovae_ext.ar1_log_prob
    for kinds in (("row", "row"), ("zero_dim", "step"), ("step", "row_kept"), ("step_shared", "step_shared")):
        for d in LENGTHS:
            z = torch.randn(*points, d, dtype=torch.float64, requires_grad=True)
            inputs = _tensors(make_case((2,), d, *kinds, logits=logits))
            assert gradcheck(lambda *x: function(*x, backend=backend), (z, *inputs))


@pytest.mark.parametrize("rho_kind", TENSOR_KINDS)
def test_entropy(rho_kind: str) -> None:
    for d in LENGTHS:
        _, scale, rho = _tensors(make_case((2,), d, "step", rho_kind))
        assert gradcheck(rhovae_ext.ar1_entropy, (scale, rho))


@LOGITS
def test_broadcast_leading_axes(backend: str, logits: bool) -> None:
    shapes = [((3, 1, 4), (1, 2, 4), (1, 2, 3)), ((4,), (2, 4), (3, 1, 1)), ((1, 2, 4), (3, 1, 1), (3, 2, 3))]
    for mu_shape, scale_shape, rho_shape in shapes:
        generator = torch.Generator().manual_seed(0)
        mu, scale, rho = (
            torch.rand(shape, generator=generator, dtype=torch.float64) * 0.8 + 0.1
            for shape in (mu_shape, scale_shape, rho_shape)
        )
        case = Case(mu, scale, rho, logits, options={"key": (3, 4), "num_samples": 2})
        assert gradcheck(_sample_kl(case, backend), _tensors(case))


def test_no_singularity_at_zero_logit(backend: str) -> None:
    case = make_case((2,), 5, "step", "step", logits=True, key=(1, 2))
    assert isinstance(case.rho, Tensor)
    assert isinstance(case.scale, Tensor)
    case.rho.zero_()
    case.scale.zero_()
    assert gradcheck(_sample_kl(case, backend), _tensors(case))
