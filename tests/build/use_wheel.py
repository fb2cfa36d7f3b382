"""An installed wheel under whatever Python runs this: its module loads, and agrees with dense algebra.

cd / && python /path/to/tests/build/use_wheel.py
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import torch
from torch.distributions import MultivariateNormal, kl_divergence

import rhovae
import rhovae_ext

ROWS, STEPS = 5, 4


def dense(mu: torch.Tensor, s: torch.Tensor, rho: torch.Tensor) -> MultivariateNormal:
    """The chain by its covariance: s_i s_j rho^|i - j|."""
    k = torch.arange(STEPS)
    correlation = rho[:, None, None] ** (k[:, None] - k).abs()
    return MultivariateNormal(mu, s[:, None, None] ** 2 * correlation)


def main() -> None:
    sources = Path(__file__).resolve().parents[2]
    for package in (rhovae, rhovae_ext):
        folder = Path(str(package.__file__)).resolve().parents[1]
        assert folder not in (sources, sources / "python"), f"{package.__file__} is not the wheel's"

    torch.manual_seed(0)
    mu = torch.randn(ROWS, STEPS, dtype=torch.float64, requires_grad=True)
    s = torch.linspace(0.3, 1.2, ROWS, dtype=torch.float64, requires_grad=True)
    rho = torch.linspace(-0.9, 0.8, ROWS, dtype=torch.float64, requires_grad=True)
    eps = torch.randn(ROWS, STEPS, dtype=torch.float64)
    z, kl = rhovae_ext.ar1_reparam_kl(mu, s, rho, eps=eps, backend="native")

    posterior = dense(mu, s, rho)
    expected_z = posterior.loc + (posterior.scale_tril @ eps[..., None])[..., 0]
    prior = MultivariateNormal(torch.zeros(STEPS, dtype=torch.float64), torch.eye(STEPS, dtype=torch.float64))
    expected_kl = kl_divergence(posterior, prior)
    torch.testing.assert_close(z, expected_z)
    torch.testing.assert_close(kl, expected_kl)
    weight = torch.randn_like(z)
    gradients = torch.autograd.grad((weight * z).sum() + kl.sum(), (mu, s, rho))
    expected = torch.autograd.grad((weight * expected_z).sum() + expected_kl.sum(), (mu, s, rho))
    torch.testing.assert_close(gradients, expected)
    drawn = rhovae_ext.ar1_reparam(torch.zeros(2, 3), 1.0, 0.5, key=(1, 2), backend="native")
    again = rhovae_ext.ar1_reparam(torch.zeros(2, 3), 1.0, 0.5, key=(1, 2), backend="reference")
    torch.testing.assert_close(drawn, again)

    asked = next(line for line in metadata.requires("rhovae-ext") or [] if line.startswith("torch"))
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}: the wheel ({asked}) is right")


if __name__ == "__main__":
    main()
