"""The stored answers: float64 to 1e-12, float32 to 2e-5 of the largest value; the noise of every key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .problem import TOLERANCE, agree

TYPES = ("float64", "float32")
NOISE_TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("logits", [False, True], ids=["natural", "logits"])
def test_chains(cuda: Any, chain_answers: dict[str, Any], name: str, logits: bool) -> None:
    for case in chain_answers["cases"]:
        d = case["d"]
        mu = np.array(case["mu"], name).reshape(-1, d)
        rows = len(mu)

        def per_row(key: str, case: dict[str, Any] = case, rows: int = rows) -> Any:
            return np.array(case[key], name).reshape(rows, -1)

        names = ("mu", "log_s", "rho_logit") if logits else ("mu", "s", "rho")
        parameters = {"mu": mu, "scale": per_row(names[1]), "rho": per_row(names[2])}
        if parameters["rho"].size == 0:  # a chain of one step
            parameters["rho"] = np.zeros((rows, 1), name)
        common = {
            **parameters,
            "eps": per_row("eps")[None],
            "key": (0, 0),
            "key_in_memory": False,
            "row_offset": 0,
            "samples": 1,
            "logits": logits,
        }
        what = case["name"]
        z, kl = cuda.forward(**common, sample=True, kl=1)
        agree(z, per_row("z"), TOLERANCE[name], f"{what}: z")
        agree(kl, np.array(case["kl"]), TOLERANCE[name], f"{what}: kl")
        gradients = cuda.backward(
            **common, dz=per_row("grad_z")[None], dkl=per_row("grad_kl"), needs_deps=False
        )
        for of, found in zip(names, gradients, strict=False):
            if d > 1 or of == "mu" or "s" in of:
                agree(found, np.array(case[f"grad_{of}"]), TOLERANCE[name], f"{what}: gradient by {of}")
        density = cuda.log_prob(z=per_row("x"), **parameters, logits=logits)
        agree(density, np.array(case["log_prob_x"]), TOLERANCE[name], f"{what}: log q")


@pytest.mark.parametrize("name", TYPES)
def test_noise(cuda: Any, noise_answers: list[dict[str, Any]], name: str) -> None:
    for case in noise_answers:
        mu = np.zeros((1, case["d"]), name)
        z, _ = cuda.forward(
            mu=mu,
            scale=np.ones((1, 1), name),
            rho=np.zeros((1, 1), name),
            eps=None,
            key=(int(case["seed"]), int(case["offset"])),
            key_in_memory=False,
            row_offset=int(case["row"]),
            samples=1,
            logits=False,
            sample=True,
            kl=0,
        )
        expected = np.array(case[f"eps_{name}_stream"])
        assert np.abs(z.ravel() - expected).max() < NOISE_TOLERANCE[name]
