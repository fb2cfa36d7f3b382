"""Kernels work in memory that a thread keeps: nothing that a call has left there reaches the next one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import rhovae_ext
from tests.ext.cases import Case, make_case, with_eps

LENGTHS = (1, 2, 3, 15, 16, 17, 31, 33, 318, 319, 320, 321, 356, 4094, 4096, 4097, 8200)


def _everything(case: Case) -> list[Tensor]:
    leaves = case.leaves()
    z, kl = leaves.call("native")
    density = rhovae_ext.ar1_log_prob_with_logits if case.logits else rhovae_ext.ar1_log_prob
    log_q = density(
        z.detach()[..., : case.mu.shape[-1]], leaves.mu, leaves.scale, leaves.rho, backend="native"
    )
    inputs = list(leaves.inputs.values())
    of_sample = torch.autograd.grad((z * z).sum() + kl.sum(), inputs)
    of_density = torch.autograd.grad(log_q.sum(), inputs[:3], allow_unused=True)
    return [z.detach(), kl.detach(), log_q.detach(), *of_sample, *(g for g in of_density if g is not None)]


def _spoil(dtype: torch.dtype) -> None:
    """Every buffer full of NaN: rows of every length that has buffers of its own."""
    for d in (200, 40_000):
        for kinds in (("row", "row"), ("step", "step")):
            case = with_eps(make_case((17 if d == 200 else 1,), d, *kinds, dtype=dtype, logits=True))
            for tensor in case.inputs.values():
                tensor.fill_(math.nan)
            _everything(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "kinds", [("row", "row"), ("step", "step"), ("row", "step"), ("step", "row")], ids=str
)
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_nothing_is_left_of_the_call_before(kinds: tuple[str, str], given: bool, dtype: torch.dtype) -> None:
    if rhovae_ext.available_backends("cpu")["native"] is not None:
        pytest.skip("no compiled kernels")
    near_one: Callable[[Tensor], Tensor] = lambda rho: rho * 0 + 1000.0  # noqa: E731
    for d in LENGTHS:
        for change in (None, near_one):
            case = make_case((3,), d, *kinds, dtype=dtype, logits=True, key=(1, d))
            if given:
                case = with_eps(case)
            if change and isinstance(case.rho, Tensor):
                case.rho.copy_(change(case.rho))
            _spoil(dtype)
            found = _everything(case)
            for result in found:
                assert not result.isnan().any(), (d, change)
            again = _everything(case)
            assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), (d, change)
