"""torch.export, decompositions, compiled graphs that serve every number, torch.jit.trace: as eager."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

import rhovae_ext


class Model(nn.Module):
    def __init__(self, backend: str, key: tuple[int, int] | None = None, samples: int | None = None) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"backend": backend, "key": key, "num_samples": samples}

    def forward(self, mu: Tensor, log_s: Tensor, rho_logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(mu, log_s, rho_logit, **self.options)
        log_q = rhovae_ext.ar1_log_prob_with_logits(z, mu, log_s, rho_logit, backend=self.options["backend"])
        return z, kl, log_q


def _inputs(rows: int, d: int, per_step: bool) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + d)
    steps = d if per_step else 1
    shapes = (rows, d), (rows, steps), (rows, d - 1 if per_step else 1)
    mu, log_s, rho_logit = (torch.randn(*shape, generator=generator) * 0.5 for shape in shapes)
    return mu, log_s, rho_logit


def _dynamic(per_step: bool) -> tuple[dict[int, Any], ...]:
    rows, d = Dim("rows", min=2, max=4096), Dim("d", min=3, max=2048)
    if per_step:
        return {0: rows, 1: d}, {0: rows, 1: d}, {0: rows, 1: d - 1}
    return {0: rows, 1: d}, {0: rows}, {0: rows}


@pytest.mark.parametrize(
    ("key", "per_step", "strict"),
    [(None, True, False), ((3, 4), False, False), ((3, 4), False, True)],
    ids=["drawn", "key", "dynamo"],
)
def test_export_with_any_batch_and_length(
    backend: str, key: tuple[int, int] | None, per_step: bool, strict: bool
) -> None:
    model = Model(backend, key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = export(model, _inputs(8, 6, per_step), dynamic_shapes=_dynamic(per_step), strict=strict)
        plain = program.run_decompositions(rhovae_ext.decompositions())
    assert not [node for node in plain.graph.nodes if "rhovae" in str(node.target)]
    for rows, d in ((8, 6), (3, 3), (5, 11), (2, 300)):
        inputs = _inputs(rows, d, per_step)
        torch.manual_seed(1)
        expected = model(*inputs)
        torch.manual_seed(1)
        found = program.module()(*inputs)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
        decomposed = plain.module()(*inputs)
        if key is not None:
            torch.testing.assert_close(decomposed, expected, rtol=2e-5, atol=2e-5)
        assert torch.equal(decomposed[1].isfinite(), expected[1].isfinite())
        torch.testing.assert_close(decomposed[1], expected[1], rtol=2e-6, atol=2e-6)


def test_draws_of_a_decomposed_program_are_new_and_normal(backend: str) -> None:
    inputs = _inputs(64, 256, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = export(Model(backend), inputs).run_decompositions(rhovae_ext.decompositions()).module()
    (first, *_), (second, *_) = plain(*inputs), plain(*inputs)
    assert not torch.equal(first, second)
    mu, log_s, rho_logit = inputs
    x = (first - mu) / log_s.exp()
    eps = (x[:, 1:] - rho_logit.tanh() * x[:, :-1]) * rho_logit.cosh()
    assert abs(eps.mean()) < 5 / eps.numel() ** 0.5
    assert abs(eps.square().mean() - 1) < 5 * (2 / eps.numel()) ** 0.5


def _compilations(function: Any, calls: list[tuple[Any, ...]]) -> int:
    """How often torch.compile had to trace for these calls, each compared with eager."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled: Any = torch.compile(function, backend=backend, fullgraph=True)
    for call in calls:
        torch.testing.assert_close(compiled(*call), function(*call), rtol=0, atol=0)
    return len(graphs)


def test_no_recompilation_for_another_number(backend: str) -> None:
    mu, numbers = torch.randn(4, 6), [0.5 + i / 7 for i in range(12)]

    def of_row(mu: Tensor, first: int) -> Tensor:
        return rhovae_ext.ar1_reparam(mu, 1.0, 0.5, key=(1, 2), row_offset=first, backend=backend)

    def of_s(mu: Tensor, s: float) -> Tensor:
        return rhovae_ext.ar1_reparam(mu, s, 0.5, key=(1, 2), backend=backend)

    def of_rho(mu: Tensor, rho: float) -> tuple[Tensor, Tensor]:
        return rhovae_ext.ar1_reparam_kl(mu, 1.0, rho, key=(1, 2), backend=backend)

    def of_seed(mu: Tensor, seed: int, step: int) -> Tensor:
        key = rhovae_ext.fold_in(seed, step)
        z: Tensor = rhovae_ext.ar1_reparam(mu, 1.0, 0.5, key=key, backend=backend)
        return z

    assert (
        _compilations(of_row, [(mu, first) for first in (0, 1, 2, 5, 9, 17, 33, 2**40, 2**62, 2**62 + 9)])
        <= 3
    )
    assert _compilations(of_s, [(mu, s) for s in numbers]) <= 2
    assert _compilations(of_rho, [(mu, s - 1.4) for s in numbers]) <= 3
    assert _compilations(of_seed, [(mu, 3 * step, step) for step in range(2, 14)]) <= 2


def test_a_trace_keeps_two_draws_apart(backend: str) -> None:
    mu = torch.zeros(4, 6)

    def function(mu: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (rhovae_ext.ar1_reparam(mu, 1.0, 0.5, backend=backend) for _ in range(2))
        return first, second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(function, (mu,), check_trace=False)
    drawn = [z for _ in range(4) for z in traced(mu)]  # the later calls run what was optimised
    assert len({tuple(z.flatten().tolist()) for z in drawn}) == len(drawn)
