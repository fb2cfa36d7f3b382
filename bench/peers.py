"""What is timed: the fused kernel and everything a user would run in its place, on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import rhovae_ext

KERNEL = "fused AR(1)"
DIAGONAL = "diagonal, eager"
LOOP = "paper's loop"
STACKED = "the loop, stacked once"
COPY = "copy of mu"

# The dense factor needs d^2 numbers a row and the loop d calls: beyond these they only cost patience.
CHOLESKY_NUMBERS = 2**23
LOOP_STEPS, LOOP_ELEMENTS = 256, 2**21


@dataclass(frozen=True)
class Peer:
    """One competitor: `call` gives the outputs, `wrt` the inputs that backward differentiates."""

    name: str
    call: Callable[[], tuple[Tensor, ...]]
    reads: tuple[Tensor, ...]
    differentiable: bool = True

    def forward(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self.call()

    def forward_backward(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outputs = self.call()
        return (*outputs, *torch.autograd.grad(outputs, self.reads, gradients))


def diagonal(mu: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """The ordinary VAE posterior, as its users write it."""
    z = mu + torch.exp(log_var / 2) * torch.randn_like(mu)
    return z, 0.5 * (log_var.exp() + mu.square() - 1 - log_var).sum(-1)


def _with_kl(mu: Tensor, x: Tensor, log_s: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    d = mu.shape[-1]
    scales = d * ((2 * log_s).exp() - 1 - 2 * log_s)
    return mu + x, 0.5 * (scales + mu.square().sum(-1) - (d - 1) * torch.log(1 - rho * rho))


def paper_loop(mu: Tensor, log_s: Tensor, rho_logit: Tensor) -> tuple[Tensor, Tensor]:
    """The rho-VAE's sampler (arXiv 1909.06236) in the manner of its authors' code, with its slips put right.

    In that manner every step works out the scale, draws its own noise and appends itself by `torch.cat`.
    """
    rho = rho_logit.tanh()
    x = (log_s.exp() * torch.randn_like(rho))[:, None]
    for _ in range(1, mu.shape[-1]):
        innovation = log_s.exp() * torch.sqrt(1 - rho * rho) * torch.randn_like(rho)
        x = torch.cat((x, (rho * x[:, -1] + innovation)[:, None]), 1)
    return _with_kl(mu, x, log_s, rho)


def stacked_loop(mu: Tensor, log_s: Tensor, rho_logit: Tensor) -> tuple[Tensor, Tensor]:
    """The same recursion as one would write it with speed in mind: one draw before it, one `stack` after."""
    rho = rho_logit.tanh()
    innovation = log_s.exp() * torch.sqrt(1 - rho * rho)
    eps = torch.randn_like(mu)
    x = [log_s.exp() * eps[:, 0]]
    for k in range(1, mu.shape[-1]):
        x.append(rho * x[-1] + innovation * eps[:, k])
    return _with_kl(mu, torch.stack(x, dim=-1), log_s, rho)


def dense_cholesky(mu: Tensor, log_s: Tensor, rho_logit: Tensor) -> tuple[Tensor, Tensor]:
    """The same Gaussian through its dense covariance s^2 rho^|i-j|."""
    d = mu.shape[-1]
    steps = torch.arange(d, device=mu.device)
    lag = (steps[:, None] - steps).abs()
    covariance = log_s.exp().square()[:, None, None] * rho_logit.tanh()[:, None, None] ** lag
    factor = torch.linalg.cholesky(covariance)
    z = mu + (factor @ torch.randn_like(mu)[..., None])[..., 0]
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    return z, 0.5 * (trace + mu.square().sum(-1) - d - log_det)


def peers(
    rows: int,
    d: int,
    *,
    device: torch.device,
    backend: str,
    compiled: bool,
    dtype: torch.dtype = torch.float32,
) -> list[Peer]:
    """The competitors that fit this size, all on the same mu, the kernel first."""
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        drawn = scale * torch.randn(shape, generator=generator, device=device)
        return drawn.to(dtype).requires_grad_()

    mu, log_s, rho_logit = inputs = normal(rows, d), normal(rows, scale=0.3), normal(rows, scale=0.5)
    log_var = normal(rows, d, scale=0.6)
    s, rho = log_s.detach().exp().requires_grad_(), rho_logit.detach().tanh().requires_grad_()
    uncorrelated = torch.zeros(rows, device=device, dtype=dtype, requires_grad=True)
    logits = partial(rhovae_ext.ar1_reparam_kl_with_logits, backend=backend)
    natural = partial(rhovae_ext.ar1_reparam_kl, backend=backend)

    found = [
        Peer(KERNEL, partial(logits, *inputs), inputs),
        Peer(f"{KERNEL}, natural form", partial(natural, mu, s, rho), (mu, s, rho)),
        Peer(f"{KERNEL} at rho = 0", partial(logits, mu, log_s, uncorrelated), (mu, log_s, uncorrelated)),
        Peer(DIAGONAL, partial(diagonal, mu, log_var), (mu, log_var)),
    ]
    if compiled:
        # One graph for each size, as a training run with its fixed batch has; the cache is dropped so that
        # no size falls back to eager for having been one shape too many.
        torch.compiler.reset()
        fused = torch.compile(diagonal, dynamic=False, fullgraph=True)
        found.append(Peer("diagonal, torch.compile", partial(fused, mu, log_var), (mu, log_var)))
    if d <= LOOP_STEPS and rows * d <= LOOP_ELEMENTS:
        found.append(Peer(LOOP, partial(paper_loop, *inputs), inputs))
        found.append(Peer(STACKED, partial(stacked_loop, *inputs), inputs))
    if rows * d * d <= CHOLESKY_NUMBERS and dtype.itemsize >= 4:  # of half types there is no factorisation
        found.append(Peer("dense Cholesky", partial(dense_cholesky, *inputs), inputs))

    def torch_noise() -> tuple[Tensor]:
        return (torch.randn(rows, d, device=device, dtype=dtype),)

    def own_noise() -> tuple[Tensor]:
        return (rhovae_ext.ar1_reparam(mu, 1.0, 0.0, backend=backend),)

    def copy() -> tuple[Tensor]:
        return (mu.clone(),)

    return [
        *found,
        Peer("noise: torch.randn", torch_noise, (), differentiable=False),
        Peer("noise: rhovae", own_noise, (mu,), differentiable=False),
        Peer(COPY, copy, (mu,), differentiable=False),
    ]


def output_gradients(rows: int, d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """dL/dz and dL/dkl of a loss that averages the rows."""
    generator = torch.Generator(device).manual_seed(2)
    dz = torch.randn(rows, d, generator=generator, device=device) / math.sqrt(d)
    return dz, torch.full((rows,), 1.0 / rows, device=device)
