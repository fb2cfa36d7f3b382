"""Everything runs on threads with 128 KiB of stack: a server's own, and OpenMP's where made small."""

from __future__ import annotations

import threading

import pytest
import torch

import rhovae_ext
from rhovae_ext import native
from tests.children import python

STACK = 128 << 10
STEPS = (5, 100, 318, 400, 5000, 70_000)


def everything(steps: int) -> None:
    """Every function and gradient, per row and per step, in both types, with samples and without."""
    rows = {5000: 8, 70_000: 3}.get(steps, 100)
    for dtype in (torch.float32, torch.float64):
        for own in ((1, 1), (steps, steps - 1)):
            for samples in (None, 2):
                for logits in (False, True):
                    mu = torch.zeros(rows, steps, dtype=dtype, requires_grad=True)
                    scale, rho = (torch.full((rows, n), 0.5, dtype=dtype, requires_grad=True) for n in own)
                    _call(mu, scale, rho, samples, logits)


def _call(
    mu: torch.Tensor, scale: torch.Tensor, rho: torch.Tensor, samples: int | None, logits: bool
) -> None:
    reparam = rhovae_ext.ar1_reparam_kl_with_logits if logits else rhovae_ext.ar1_reparam_kl
    log_prob = rhovae_ext.ar1_log_prob_with_logits if logits else rhovae_ext.ar1_log_prob
    z, kl = reparam(mu, scale, rho, num_samples=samples, key=(1, 2))
    (z.sum() + kl.sum()).backward()
    eps = torch.ones(z.shape, dtype=mu.dtype, requires_grad=True)
    z, per_dim = reparam(mu, scale, rho, num_samples=samples, eps=eps, per_dim=True)
    (z.sum() + per_dim.sum()).backward()
    log_prob(z.detach().requires_grad_(), mu, scale, rho).sum().backward()
    per_step = scale.expand_as(mu).exp() if logits else scale.expand_as(mu)
    (rhovae_ext.ar1_entropy(per_step, 0.5).sum() + kl.detach().sum()).backward()
    grads = [leaf.grad for leaf in (mu, scale, rho, eps)]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)


def on_small_stacks(threads: int) -> None:
    """On a thread of one's own; those of OpenMP beside it are as OMP_STACKSIZE says."""
    torch.set_num_threads(threads)
    before = threading.stack_size(STACK)
    try:
        for steps in STEPS:
            failed: list[BaseException] = []

            def work(steps: int = steps, failed: list[BaseException] = failed) -> None:
                try:
                    everything(steps)
                except BaseException as error:
                    failed.append(error)

            thread = threading.Thread(target=work)
            print(f"{steps} steps, {threads} threads", flush=True)
            thread.start()
            thread.join()
            if failed:
                raise failed[0]
    finally:
        threading.stack_size(before)


@pytest.mark.parametrize("capability", ["portable", "avx2", "avx512"])
def test_small_stacks(capability: str) -> None:
    if native.unavailable is not None:
        pytest.skip(f"native: {native.unavailable}")
    done = python("-m", "tests.ext.test_small_stacks", RHOVAE_CPU_CAPABILITY=capability, OMP_STACKSIZE="128k")
    assert done.returncode == 0, f"exit {done.returncode} at {done.stdout[-100:]}\n{done.stderr[-2000:]}"
    assert "everything ran" in done.stdout


if __name__ == "__main__":
    for threads in (1, 3):
        on_small_stacks(threads)
    print("everything ran")
