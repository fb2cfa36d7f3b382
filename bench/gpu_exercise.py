"""Every kernel once on small problems of every regime: what compute-sanitizer is run over."""

from __future__ import annotations

import torch

import rhovae_ext

STEPS = (1, 9, 33, 200, 1500, 8195, 70001)


def exercise(d: int, dtype: torch.dtype, per_step: bool, device: str = "cuda") -> None:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype).requires_grad_()

    inputs = (normal(3, d), *((normal(3, d), normal(3, d - 1)) if per_step else (normal(3), normal(3))))
    for options in ({}, {"num_samples": 2}, {"eps": torch.randn(3, d, device=device, dtype=dtype)}):
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(*inputs, backend="native", **options)
        torch.autograd.grad((z.float().sum(), kl.sum()), inputs)
    z = normal(3, d)
    log_prob = rhovae_ext.ar1_log_prob_with_logits(z, *inputs, backend="native")
    torch.autograd.grad(log_prob.sum(), (z, *inputs))


def main() -> None:
    for d in STEPS:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for per_step in (False, True):
                exercise(d, dtype, per_step)
    torch.cuda.synchronize()
    print("exercised")


if __name__ == "__main__":
    main()
