"""The stored answers: float64 to 1e-12, float32 to 2e-5 of the largest value, words exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rhovae_ext
from rhovae_ext import reference
from tests.ext.compare import NOISE_TOLERANCE, assert_close

DTYPES = (torch.float64, torch.float32)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logits", [False, True], ids=["natural", "logits"])
def test_chains(
    chain_answers: dict[str, Any], backend: str, device: str, dtype: torch.dtype, logits: bool
) -> None:
    for case in chain_answers["cases"]:

        def given(name: str, case: dict[str, Any] = case) -> torch.Tensor:
            return torch.tensor(case[name], dtype=dtype, device=device)

        def expected(name: str, case: dict[str, Any] = case) -> torch.Tensor:
            return torch.tensor(case[name], dtype=torch.float64, device=device)

        names = ("mu", "log_s", "rho_logit") if logits else ("mu", "s", "rho")
        inputs = [given(name).requires_grad_() for name in names]
        sample_kl = rhovae_ext.ar1_reparam_kl_with_logits if logits else rhovae_ext.ar1_reparam_kl
        log_prob = rhovae_ext.ar1_log_prob_with_logits if logits else rhovae_ext.ar1_log_prob
        divergence = rhovae_ext.ar1_kl_with_logits if logits else rhovae_ext.ar1_kl

        z, kl = sample_kl(*inputs, eps=given("eps"), backend=backend)
        grads = torch.autograd.grad((z, kl), inputs, (given("grad_z"), given("grad_kl")))

        assert_close(z, expected("z"), f"{case['name']}: z")
        assert_close(kl, expected("kl"), f"{case['name']}: kl")
        assert_close(divergence(*inputs, backend=backend), expected("kl"), f"{case['name']}: kl alone")
        for name, grad in zip(names, grads, strict=True):
            assert_close(grad, expected(f"grad_{name}"), f"{case['name']}: gradient of {name}")
        density = log_prob(given("x"), *inputs, backend=backend)
        assert_close(density, expected("log_prob_x"), f"{case['name']}: log_prob")
        entropy = rhovae_ext.ar1_entropy(given("s").expand(case["d"]), given("rho"))
        assert_close(entropy, expected("entropy"), f"{case['name']}: entropy", floor=1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_kl(chain_answers: dict[str, Any], backend: str, device: str, dtype: torch.dtype) -> None:
    cases = chain_answers["saturated_kl"]
    mu = torch.zeros(len(cases), cases[0]["d"], dtype=dtype, device=device)
    logits = torch.tensor([case["rho_logit"] for case in cases], dtype=dtype, device=device)
    kl = rhovae_ext.ar1_kl_with_logits(mu, 0.0, logits, backend=backend)
    for value, case in zip(kl, cases, strict=True):
        expected = torch.tensor(case["kl"], dtype=torch.float64, device=device)
        assert_close(value, expected, f"rho_logit = {case['rho_logit']}")


def test_words(noise_answers: list[dict[str, Any]], device: str) -> None:
    for case in noise_answers:
        key = torch.tensor([int(case["seed"]), int(case["offset"])], dtype=torch.uint64, device=device)
        rows = torch.tensor([_signed(int(case["row"]))], device=device)
        assert reference.noise_words(key, rows, len(case["words"]))[0].tolist() == case["words"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise(noise_answers: list[dict[str, Any]], backend: str, device: str, dtype: torch.dtype) -> None:
    stream = f"eps_{str(dtype).removeprefix('torch.')}_stream"
    for case in noise_answers:
        mu = torch.zeros(1, case["d"], dtype=dtype, device=device)
        key = (int(case["seed"]), int(case["offset"]))
        eps = rhovae_ext.ar1_reparam(mu, 1.0, 0.0, key=key, row_offset=int(case["row"]), backend=backend)
        expected = torch.tensor([case[stream]], dtype=torch.float64, device=device)
        assert float((eps.double() - expected).abs().max()) < NOISE_TOLERANCE[dtype]
