"""The mathematics in plain PyTorch: any device, every derivative, what the kernels are compared with.

The functions take what the ops `rhovae::ar1`, `rhovae::ar1_log_prob` and their backwards take and return what
they return.
They work in float64 (float32 where a device has no other) and round once, at the end: so the formulas stay
plain where float32 would need care, next to the prior, at rho = 1 and over long rows.
Arguments are checked by the callers. Sources: rho-VAE (arXiv 1909.06236) for the model; Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3" (2011) for Philox.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .correlation import cosh, held, innovation, inside, log_cosh, sign
from .shapes import align_parameter, arithmetic_dtype, broadcast_leading, widest_dtype

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# Past this |logit| the innovations have no digits left in mu's type. Holding cosh there keeps the density and
# its gradients finite; below it nothing changes.
_LARGEST_LOGIT = {torch.float32: 40.0, torch.float64: 100.0}
# A log s that has run away: s is held where its products are float64's, and the density divides by no less
# than exp(-150), or -200, which leaves room for squares.
_LARGEST_LOG_SCALE = {torch.float32: 150.0, torch.float64: 700.0}
_LARGEST_LOG_PRECISION = {torch.float32: 150.0, torch.float64: 200.0}


# Where the length of a chain is a symbol without an upper bound.
_LONGEST = 1 << 31

# Sizes


def _known(holds: Any) -> bool:
    """A comparison of sizes; of symbolic ones, what holds for all of their range, so that none is fixed."""
    if isinstance(holds, Tensor):  # while torch.jit traces
        return bool(holds)
    if type(holds) is bool and not torch.compiler.is_exporting():
        return holds
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(holds))


# Noise

Word = TypeVar("Word", Tensor, int)


def philox(counter: tuple[Word, ...], key: tuple[Word, Word]) -> tuple[Word, ...]:
    """Philox4x32-10: four 32-bit words from a counter of four and a key of two: ints, or int64 tensors."""
    c0, c1, c2, c3 = counter
    for turn in range(_ROUNDS):
        # A 32 x 32 product may pass 2^63: int64 wraps, and masking after the shift restores the high word.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        k0 = (key[0] + turn * _WEYL[0]) & _MASK
        k1 = (key[1] + turn * _WEYL[1]) & _MASK
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
    return c0, c1, c2, c3


def _halves(pattern: Tensor) -> tuple[Tensor, Tensor]:
    return pattern & _MASK, (pattern >> 32) & _MASK


def _bits(key: Tensor) -> Tensor:
    """A key's words as int64 patterns, in which torch can compute."""
    return key if key.dtype is torch.int64 else key.view(torch.int64)


def noise_words(key: Tensor, rows: Tensor, blocks: int) -> Tensor:
    """Words (*rows.shape, blocks, 4) for rows' numbers, 64-bit patterns in int64, and keys (..., 2) that
    broadcast with them."""
    seed, offset = _bits(key).to(rows.device).unsqueeze(-2).unbind(-1)
    position = _halves(offset + torch.arange(blocks, device=rows.device))
    words = philox((*position, *_halves(rows.unsqueeze(-1))), _halves(seed))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1)


def fold_in_numbers(seed: int, offset: int, data: int) -> tuple[int, int]:
    """The same for plain numbers: unsigned words."""
    position = (offset + data) & ((1 << 64) - 1)
    counter = (position & _MASK, position >> 32, 0, 0)
    w0, w1, w2, w3 = philox(counter, (seed & _MASK, seed >> 32))
    return w0 | w1 << 32, w2 | w3 << 32


def fold_in(key: Tensor, data: Tensor) -> Tensor:
    """The keys that the words of block `data` of row 0 make: uint64 keys (..., 2), int64 patterns."""
    seed, offset = _bits(key).unbind(-1)
    position = _halves(offset + data)
    first_row = torch.zeros_like(position[0])
    w0, w1, w2, w3 = philox((*position, first_row, first_row), _halves(seed))
    return torch.stack((w0 | w1 << 32, w2 | w3 << 32), dim=-1).view(torch.uint64)


def _box_muller(u1: Tensor, u2: Tensor) -> Tensor:
    """Pairs (r cos 2 pi u2, r sin 2 pi u2) on a new last axis."""
    radius, angle = torch.sqrt(-2.0 * torch.log(u1)), (2.0 * math.pi) * u2
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)


def normals(key: Tensor, rows: Tensor, d: int, dtype: torch.dtype) -> Tensor:
    """Standard normals (*rows.shape, d) of dtype's stream: float32 has four a block, float64 two."""
    inner = widest_dtype(rows)  # a uniform next to 1 keeps too few digits in float32
    per_block = 2 if dtype == torch.float64 else 4
    blocks = (d + per_block - 1) // per_block
    if not (_known(d <= per_block) or _known(d > per_block)):
        blocks = blocks + 1  # a symbol that may be 1 would be fixed
    words = noise_words(key, rows, blocks).to(inner)
    if dtype == torch.float64:
        uniforms = words[..., 0::2] * 2.0**-32 + (words[..., 1::2] + 0.5) * 2.0**-64
        eps = _box_muller(uniforms[..., 0], uniforms[..., 1])
    else:
        uniforms = words * 2.0**-32 + 2.0**-33
        eps = _box_muller(uniforms[..., 0::2], uniforms[..., 1::2]).flatten(-2)
    eps = eps.flatten(-2)
    if not _known(eps.shape[-1] == d):  # by index: a slice would ask whether it is the whole
        eps = eps.index_select(-1, torch.arange(d, device=eps.device))
    return eps.to(dtype)


def draw(
    key: Tensor, row_offset: int, num_samples: int | None, lead: list[int], d: int, like: Tensor
) -> Tensor:
    """eps, (*lead, d) or (num_samples, *lead, d), in the arithmetic's type."""
    # Rows are numbered over the axes along which they share a key.
    own = [1] * len(lead) if key.dim() == 1 else key.shape[:-1]
    counted = [size if keys == 1 else 1 for size, keys in zip(lead, own, strict=True)]
    rows = torch.arange(math.prod(counted), device=like.device).reshape(counted) + row_offset
    rows = rows.expand(lead)
    if num_samples is not None:
        each = torch.arange(num_samples, device=like.device)
        rows = rows * num_samples + each.reshape(-1, *(1 for _ in lead))
    return normals(key, rows, d, arithmetic_dtype(like))


# The chain


class _Chain(NamedTuple):
    """What the parameters mean; last axes are 1 or what the shape rule says."""

    s: Tensor
    rho: Tensor
    c: Tensor  # sqrt(1 - rho^2)
    log_s: Tensor
    kl_of_s: Tensor  # 1/2 (s^2 - 1) - log s
    minus_log_c2: Tensor  # -log(1 - rho^2)


def _beyond_linear_of_exp(x: Tensor) -> Tensor:
    """e^x - 1 - x: next to 0 by its series, where the difference would lose its digits."""
    small, series = held(x, 0.3), torch.ones_like(x)
    for n in range(14, 2, -1):
        series = 1.0 + series * small / n
    return torch.where(x.abs() < 0.3, 0.5 * small * small * series, torch.expm1(x) - x)


def _beyond_linear_of_log(m: Tensor) -> Tensor:
    """m - log(1 + m): next to 0 through log(1 + m) = 2t + 2/3 t^3 + 2/5 t^5 + ..., t = m/(2 + m)."""
    small = held(m, 0.3)
    t = small / (2.0 + small)
    series = torch.zeros_like(m)
    for n in range(25, 1, -2):
        series = series * t * t + 2.0 / n
    return torch.where(m.abs() < 0.3, small * t - t * t * t * series, m - torch.log1p(m))


def _chain_from_logits(log_s: Tensor, logit: Tensor, largest: float) -> _Chain:
    """rho = tanh(a) and c = 1/cosh(a) through t = exp(-|a|): no overflow, no lost digit, derivatives too."""
    t = torch.exp(-sign(logit) * logit)
    q = t * t
    tanh = (1.0 - q) / (1.0 + q)  # not by expm1, whose derivative loses its digits as q vanishes
    rho = torch.where(logit >= 0, tanh, -tanh)
    s = torch.exp(held(log_s, largest))
    less_one = torch.expm1(log_s)
    kl_of_s = 0.5 * less_one * less_one + _beyond_linear_of_exp(log_s)
    return _Chain(s, rho, 2.0 * t / (1.0 + q), log_s, kl_of_s, 2.0 * log_cosh(logit))


def _chain_from_natural(s: Tensor, rho: Tensor) -> _Chain:
    rho = inside(rho)
    log_s, c = torch.log(s), torch.sqrt((1.0 - rho) * (1.0 + rho))
    less_one = s - 1.0
    kl_of_s = 0.5 * less_one * less_one + _beyond_linear_of_log(less_one)
    small = held(rho, 0.5)  # there the two logarithms of the other form would cancel
    minus_log_c2 = torch.where(
        rho.abs() < 0.5, -torch.log1p(-small * small), -(torch.log1p(-rho) + torch.log1p(rho))
    )
    return _Chain(s, rho, c, log_s, kl_of_s, minus_log_c2)


def _operands(mu: Tensor, scale: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three in the widest type, converted once each so that gradients round once."""
    dtype = widest_dtype(mu)
    scale, rho = align_parameter(scale, mu), align_parameter(rho, mu)
    # A chain of one step has no correlation: its value is dropped, its gradient is zero whatever the value.
    rho = rho[..., :0] if mu.shape[-1] == 1 else rho
    return mu.to(dtype), scale.to(dtype), rho.to(dtype)


def _chain(scale: Tensor, rho: Tensor, logits: bool, dtype: torch.dtype) -> _Chain:
    if not logits:
        return _chain_from_natural(scale, rho)
    return _chain_from_logits(scale, rho, _LARGEST_LOG_SCALE[dtype])


def _shift(x: Tensor, steps: int) -> Tensor:
    kept = x.shape[-1] - steps
    plain = type(kept) is int and not torch.compiler.is_exporting()
    if plain or _known(kept == 1) or _known(kept > 1):  # a symbol that may be 1 would be fixed
        return torch.nn.functional.pad(x[..., :-steps], (steps, 0))
    later = torch.arange(x.shape[-1], device=x.device) >= steps
    return torch.where(later, x.roll(steps, -1), 0.0)


def _scan(rho: Tensor, increments: Tensor) -> Tensor:
    """x_k = rho_k x_{k-1} + increments_k by doubling: log2(d) levels, each a shifted multiply-add of rows.

    rho: (..., 1), or (..., d) with anything finite in front: the shift brings zeros there.
    """
    x, weight, reach = increments, rho, 1
    while not _known(x.shape[-1] <= reach) and reach < _LONGEST:
        x = x + weight * _shift(x, reach)
        weight = weight * weight if weight.shape[-1] == 1 else weight * _shift(weight, reach)
        reach *= 2
    return x


def _steps(values: Tensor) -> Tensor:
    """Per-step values (..., d-1) moved to the steps 2..d they lead to; one per row stays as it is."""
    return values if values.shape[-1] == 1 else torch.nn.functional.pad(values, (1, 0))


def _chain_of(chain: _Chain, eps: Tensor) -> Tensor:
    """x, the chain of unit variance that the innovations make."""
    return _scan(_steps(chain.rho), torch.cat((eps[..., :1], chain.c * eps[..., 1:]), dim=-1))


def _kl_per_dimension(chain: _Chain, mu: Tensor, d: int) -> Tensor:
    kl = chain.kl_of_s + 0.5 * mu * mu
    tied = (0.5 * chain.minus_log_c2).expand(*chain.minus_log_c2.shape[:-1], d - 1)
    return kl + torch.nn.functional.pad(tied, (1, 0))


def _total(values: Tensor, count: int) -> Tensor:
    """Sum along the chain of `count` values, of which one may stand for all."""
    return values[..., 0] * count if values.shape[-1] == 1 else values.sum(-1)


# The operations


def ar1(
    mu: Tensor,
    scale: Tensor,
    rho: Tensor,
    key: Tensor | None,
    eps: Tensor | None,
    num_samples: int | None,
    row_offset: int,
    logits: bool,
    sample: bool,
    kl: int,
) -> tuple[Tensor, Tensor]:
    """z and the KL to N(0, I); kl: 0 none, 1 per row, 2 per dimension. Not asked for: of shape (0,)."""
    d, dtype = mu.shape[-1], arithmetic_dtype(mu)
    lead = broadcast_leading(mu, scale, rho)
    mean, scale, rho = _operands(mu, scale, rho)
    chain = _chain(scale, rho, logits, dtype)
    z, divergence = mu.new_empty(0), mu.new_empty(0, dtype=dtype)
    if sample:
        if eps is None:
            assert key is not None
            eps = draw(key, row_offset, num_samples, lead, d, mu)
        z = (mean + chain.s * _chain_of(chain, eps.to(mean.dtype))).to(mu.dtype)
    if kl:
        divergence = _kl_per_dimension(chain, mean, d).expand(*lead, d)
        divergence = (divergence.sum(-1) if kl == 1 else divergence.contiguous()).to(dtype)
    return z, divergence


def ar1_backward(
    dz: Tensor | None,
    dkl: Tensor | None,
    mu: Tensor,
    scale: Tensor,
    rho: Tensor,
    key: Tensor | None,
    eps: Tensor | None,
    num_samples: int | None,
    row_offset: int,
    logits: bool,
    kl: int,
    needs_deps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by mu, scale, rho and eps (of shape (0,) if not asked for), in closed form.

    With g = dL/dz, h = dL/dKL and the adjoint lambda_k = g_k s_k + rho_{k+1} lambda_{k+1}:
    dmu = g + h mu, dlog_s = g s x + h (s^2 - 1), da_k = lambda_k c_k (c_k x_{k-1} - rho_k eps_k) + h rho_k
    (of a = atanh(rho)), deps_k = c_k lambda_k.
    """
    d, dtype = mu.shape[-1], arithmetic_dtype(mu)
    lead = broadcast_leading(mu, scale, rho)
    mean, wide_scale, wide_rho = _operands(mu, scale, rho)
    chain = _chain(wide_scale, wide_rho, logits, dtype)
    by_mu, by_log_s, by_logit = (mean.new_zeros([*lead, steps]) for steps in (d, d, d - 1))
    deps = eps.new_zeros(eps.shape) if eps is not None and needs_deps else mu.new_zeros(0)
    if dz is not None:
        if eps is None:
            assert key is not None
            eps = draw(key, row_offset, num_samples, lead, d, mu)
        noise, g = eps.to(mean.dtype), dz.to(mean.dtype)
        x = _chain_of(chain, noise)
        turned = chain.rho if chain.rho.shape[-1] == 1 else chain.rho.flip(-1)
        adjoint = _scan(_steps(turned), (g * chain.s).flip(-1)).flip(-1)
        tied = adjoint[..., 1:] * chain.c
        tilted = tied * (chain.c * x[..., :-1] - chain.rho * noise[..., 1:])
        by_mu, by_log_s, by_logit = g, g * chain.s * x, tilted
        if num_samples is not None:
            by_mu, by_log_s, by_logit = by_mu.sum(0), by_log_s.sum(0), by_logit.sum(0)
        if needs_deps:
            deps = torch.cat((adjoint[..., :1], tied), dim=-1).to(eps.dtype)
    if dkl is not None:
        h = (dkl if kl == 2 else dkl.unsqueeze(-1)).to(mean.dtype)
        by_mu = by_mu + h * mean
        squared_less_one = torch.expm1(2.0 * wide_scale) if logits else chain.s * chain.s - 1.0
        by_log_s = by_log_s + h * squared_less_one
        by_logit = by_logit + (h if h.shape[-1] == 1 else h[..., 1:]) * chain.rho
    by_scale = by_log_s if logits else by_log_s / chain.s
    by_rho = by_logit if logits else by_logit / (chain.c * chain.c)
    return (
        _reduced(by_mu, mean, mu),
        _reduced(by_scale, wide_scale, scale),
        _reduced(by_rho, wide_rho, rho),
        deps,
    )


def _reduced(gradient: Tensor, wide: Tensor, given: Tensor) -> Tensor:
    """A gradient (*lead, steps) summed over what was broadcast from `wide`, in the shape and type given."""
    shape = wide.shape
    if shape[-1] == 0 and given.numel() > 0:  # the rho of a chain of one step: a sum of no terms
        gradient, shape = gradient.sum(-1, keepdim=True), torch.Size([*shape[:-1], 1])
    return gradient.sum_to_size(shape).reshape(given.shape).to(given.dtype)


def _standardised(centred: Tensor, chain: _Chain, logits: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x = (z - mu)/s, and 1/s."""
    largest = _LARGEST_LOG_PRECISION[dtype]
    over_s = torch.exp(-held(chain.log_s, largest)) if logits else 1.0 / chain.s
    return centred * over_s if logits else centred / chain.s, over_s


def _innovations(
    x: Tensor, chain: _Chain, logit: Tensor, logits: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(x_k - rho_k x_{k-1})/c_k for k > 1, the same backwards in time, and 1/c_k."""
    now, before = x[..., 1:], x[..., :-1]
    if not logits:
        return (now - chain.rho * before) / chain.c, (before - chain.rho * now) / chain.c, 1.0 / chain.c
    largest = _LARGEST_LOGIT[dtype]
    over_c = cosh(held(sign(logit) * logit, largest))
    return innovation(now, before, logit, largest), innovation(before, now, logit, largest), over_c


def ar1_log_prob(z: Tensor, mu: Tensor, scale: Tensor, rho: Tensor, logits: bool) -> Tensor:
    """log N(z; mu, C) in nats: the standardised innovations eps, and the logs of the change of variables."""
    d, dtype = mu.shape[-1], arithmetic_dtype(mu)
    mu, scale, rho = _operands(mu, scale, rho)
    chain = _chain(scale, rho, logits, dtype)
    x, _ = _standardised(z.to(mu.dtype) - mu, chain, logits, dtype)
    eps, _, _ = _innovations(x, chain, rho, logits, dtype)
    squares = (x[..., 0] * x[..., 0]) + (eps * eps).sum(-1)
    logs = _total(chain.log_s, d) - 0.5 * _total(chain.minus_log_c2, d - 1)
    return -(0.5 * squares + logs + 0.5 * d * math.log(2.0 * math.pi)).to(dtype)


def ar1_log_prob_backward(
    dlog_prob: Tensor, z: Tensor, mu: Tensor, scale: Tensor, rho: Tensor, logits: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by z, mu, scale and rho, in closed form.

    By x_k: rho_{k+1} eps_{k+1}/c_{k+1} - eps_k/c_k. By a = atanh(rho): rho_k + eps_k times
    (x_{k-1} - rho_k x_k)/c_k, the innovation backwards in time.
    """
    dtype = arithmetic_dtype(mu)
    mean, wide_scale, wide_rho = _operands(mu, scale, rho)
    chain = _chain(wide_scale, wide_rho, logits, dtype)
    point, h = z.to(mean.dtype), dlog_prob.to(mean.dtype).unsqueeze(-1)
    x, over_s = _standardised(point - mean, chain, logits, dtype)
    x = x.expand(*dlog_prob.shape, x.shape[-1])  # rho may have rows that none of the others has
    eps, backwards, over_c = _innovations(x, chain, wide_rho, logits, dtype)
    pad = torch.nn.functional.pad
    by_x = -torch.cat((x[..., :1], eps * over_c), dim=-1) + pad(eps * over_c * chain.rho, (0, 1))
    by_z = h * by_x * over_s
    by_log_s = -h * (by_x * x + 1.0)
    by_logit = h * (chain.rho + eps * backwards)
    by_scale = by_log_s if logits else by_log_s / chain.s
    by_rho = by_logit if logits else by_logit / (chain.c * chain.c)
    return (
        _reduced(by_z, point, z),
        _reduced(-by_z, mean, mu),
        _reduced(by_scale, wide_scale, scale),
        _reduced(by_rho, wide_rho, rho),
    )


def ar1_entropy(s: Tensor, rho: Tensor) -> Tensor:
    """Entropy in nats of the chain with scales s, one per step."""
    d, dtype = s.shape[-1], arithmetic_dtype(s)
    s, _, rho = _operands(s, s, rho)
    chain = _chain_from_natural(s, rho)
    logs = _total(chain.log_s, d) - 0.5 * _total(chain.minus_log_c2, d - 1)
    return (0.5 * d * (1.0 + math.log(2.0 * math.pi)) + logs).to(dtype)
