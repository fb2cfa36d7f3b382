"""The KL of chain to chain in 170 decimal digits, straight from conditional normals; slopes by steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext

import torch
from torch import Tensor

DIGITS = 170
_STEP = Decimal(10) ** -35
Row = Sequence[Decimal]


def decimals(values: Tensor) -> list[Decimal]:
    return [Decimal(x) for x in values.double().tolist()]


def _tanh(a: Decimal) -> Decimal:
    up, down = a.exp(), (-a).exp()
    return (up - down) / (up + down)


def of_logits(mu: Row, log_s: Row, a: Row, m: Row, log_p: Row, b: Row) -> list[Decimal]:
    """KL_k of the chain (mu, exp log_s, tanh a) to (m, exp log_p, tanh b)."""
    return of_chains(
        mu,
        [x.exp() for x in log_s],
        [_tanh(x) for x in a],
        m,
        [x.exp() for x in log_p],
        [_tanh(x) for x in b],
    )


def of_chains(mu: Row, s: Row, rho: Row, m: Row, p: Row, r: Row) -> list[Decimal]:
    """KL_k = E_q KL(q(z_k | z_{k-1}) || p(z_k | z_{k-1})), two normals of one dimension."""
    terms = []
    for k in range(len(mu)):
        variance, prior = s[k] ** 2, p[k] ** 2
        squares = (mu[k] - m[k]) ** 2
        if k:
            variance, prior = variance * (1 - rho[k - 1] ** 2), prior * (1 - r[k - 1] ** 2)
            pull = r[k - 1] * p[k] / p[k - 1]
            squares = (rho[k - 1] * s[k] - pull * s[k - 1]) ** 2
            squares += (mu[k] - m[k] - pull * (mu[k - 1] - m[k - 1])) ** 2
        terms.append(((variance + squares) / prior - 1 - (variance / prior).ln()) / 2)
    return terms


def with_gradients(
    function: Callable[..., list[Decimal]], rows: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The terms of these rows in float64, and the gradient of their sum by each row."""
    with localcontext() as context:
        context.prec = DIGITS
        exact = [decimals(row) for row in rows]
        terms = function(*exact)

        def slope(i: int, k: int) -> float:
            ends = []
            for step in (_STEP, -_STEP):
                moved = [list(row) for row in exact]
                moved[i][k] += step
                ends.append(sum(function(*moved), Decimal(0)))
            return float((ends[0] - ends[1]) / (2 * _STEP))

        gradients = [[slope(i, k) for k in range(len(row))] for i, row in enumerate(exact)]
        return (
            torch.tensor([float(t) for t in terms], dtype=torch.float64),
            [torch.tensor(g, dtype=torch.float64) for g in gradients],
        )
