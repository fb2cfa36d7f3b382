"""Every kernel, regime, type and gradient against float64 autograd through the plain reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from .problem import TOLERANCE, Array, Problem, agree, arithmetic, draw, misalign, to_numpy

# What the lengths reach in float32: lanes of a warp (1, 2, 4, 8, 16), a warp in one tile and in several, a
# block in two tiles, segments. Half types take twice as many steps a lane, float64 half as many.
LENGTHS = {
    "float32": (1, 2, 3, 5, 10, 17, 33, 64, 65, 128, 300, 1024, 1027, 2501, 8195),
    "float64": (1, 3, 7, 20, 32, 63, 300, 513, 1100, 4099),
    "bfloat16": (1, 3, 9, 31, 128, 129, 513, 2049, 16390),
    "float16": (5, 40, 300, 2100),
}
LENGTHS_AND_TYPES = [(d, name) for name, lengths in LENGTHS.items() for d in lengths]
SHAPES = [(False, False), (True, False), (False, True), (True, True)]  # scale, rho: per step?
SHAPE_NAMES = ["row-row", "step-row", "row-step", "step-step"]


def rows_for(d: int) -> int:
    return 11 if d <= 40 else 6 if d <= 300 else 2


def check_forward(cuda: Any, p: Problem, kl: int = 1) -> None:
    exact = p.exact(kl)
    z, divergence = cuda.forward(**p.common, sample=True, kl=kl)
    agree(z, exact["z"], TOLERANCE[p.name], "z")
    if kl:
        agree(divergence, exact["kl"], TOLERANCE[str(divergence.dtype)], "kl")


def incoming(p: Problem, kl: int, seed: int = 7) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    dz = torch.randn(p.samples, *p.mu.shape, generator=generator).to(p.mu.dtype)
    last = {0: None, 1: 1, 2: p.d}[kl]
    dkl = (
        None
        if last is None
        else torch.randn(*p.mu.shape[:-1], last, generator=generator, dtype=torch.float64)
    )
    return dz, None if dkl is None else dkl.to(arithmetic(p.name))


def check_backward(
    cuda: Any, p: Problem, kl: int = 1, with_dz: bool = True, deps: bool = False
) -> tuple[Array, ...]:
    dz, dkl = incoming(p, kl)
    exact = p.exact(kl, dz if with_dz else None, dkl)
    found: tuple[Array, ...] = cuda.backward(
        **p.common,
        dz=to_numpy(dz) if with_dz else None,
        dkl=None if dkl is None else to_numpy(dkl),
        needs_deps=deps,
    )
    for name, gradient in zip(("mu", "scale", "rho", "eps"), found, strict=True):
        if name == "eps" and not deps:
            continue
        expected = exact[name]
        if expected is None:
            expected = np.zeros(gradient.shape)
        if name == "rho" and p.d == 1:
            assert not np.any(gradient.astype(np.float64)), "a chain of one step has a gradient by rho"
            continue
        tolerance = max(TOLERANCE[p.name], TOLERANCE["float32"] if gradient.itemsize == 4 else 0.0)
        agree(gradient, expected, tolerance, f"gradient by {name}")
    return found


@pytest.mark.parametrize(("per_step"), SHAPES, ids=SHAPE_NAMES)
@pytest.mark.parametrize(("d", "name"), LENGTHS_AND_TYPES)
def test_forward(cuda: Any, d: int, name: str, per_step: tuple[bool, bool]) -> None:
    check_forward(cuda, draw(d, rows_for(d), name, *per_step))


@pytest.mark.parametrize(("per_step"), SHAPES, ids=SHAPE_NAMES)
@pytest.mark.parametrize(("d", "name"), LENGTHS_AND_TYPES)
def test_backward(cuda: Any, d: int, name: str, per_step: tuple[bool, bool]) -> None:
    check_backward(cuda, draw(d, rows_for(d), name, *per_step))


@pytest.mark.parametrize("rho_per_step", [False, True], ids=["row", "step"])
@pytest.mark.parametrize("d", [1500, 20_000])
def test_long_rows_that_remember(cuda: Any, d: int, rho_per_step: bool) -> None:
    """A block's rows, whole and in segments, whose rho rounds to 1: an impulse, every gradient."""
    p = draw(d, 2, "float32", True, rho_per_step, given_eps=True)
    assert p.eps is not None
    p.rho = torch.tensor([[8.75], [-9.5]]).expand(-1, d - 1 if rho_per_step else 1).contiguous()
    check_forward(cuda, p)
    check_backward(cuda, p, deps=True)
    impulse = torch.zeros_like(p.eps)
    impulse[..., 0] = 1
    p.eps, p.scale, p.mu = impulse, torch.zeros_like(p.scale), torch.zeros_like(p.mu)
    z, _ = cuda.forward(**p.common, sample=True, kl=0)
    left = np.tanh(p.rho.double().numpy()[:, :1]) ** np.arange(d)
    np.testing.assert_allclose(z[0], left, atol=2e-5)


# One length in each regime.
REGIMES = (12, 200, 1500, 8200)


@pytest.mark.parametrize(("per_step"), SHAPES, ids=SHAPE_NAMES)
@pytest.mark.parametrize("d", REGIMES)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64"])
def test_natural_parameters_in_float32(cuda: Any, d: int, name: str, per_step: tuple[bool, bool]) -> None:
    p = draw(d if name != "float64" else d // 2, 3, name, *per_step, parameters="float32", logits=False)
    check_forward(cuda, p)
    check_backward(cuda, p)


@pytest.mark.parametrize(("per_step"), SHAPES, ids=SHAPE_NAMES)
@pytest.mark.parametrize("d", [1, *REGIMES])
def test_kl_per_step_alone_and_none(cuda: Any, d: int, per_step: tuple[bool, bool]) -> None:
    p = draw(d, 3, "float32", *per_step)
    check_forward(cuda, p, kl=2)
    check_forward(cuda, p, kl=0)
    check_backward(cuda, p, kl=2)
    check_backward(cuda, p, kl=0)
    check_backward(cuda, p, kl=1, with_dz=False)
    z, divergence = cuda.forward(**p.common, sample=False, kl=1)
    assert z.size == 0
    agree(divergence, p.exact(1)["kl"], TOLERANCE["float32"], "kl alone")


@pytest.mark.parametrize(("per_step"), SHAPES, ids=SHAPE_NAMES)
@pytest.mark.parametrize("d", REGIMES)
@pytest.mark.parametrize("name", ["float32", "float16"])
def test_samples_and_given_noise(cuda: Any, d: int, name: str, per_step: tuple[bool, bool]) -> None:
    p = draw(d, 3, name, *per_step, samples=3)
    check_forward(cuda, p)
    check_backward(cuda, p)
    p = draw(d, 3, name, *per_step, samples=2, given_eps=True)
    check_forward(cuda, p)
    check_backward(cuda, p, deps=True)


@pytest.mark.parametrize("d", REGIMES)
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_key_in_memory_is_the_same_noise(cuda: Any, d: int, name: str) -> None:
    for rho_per_step in (False, True):
        p = draw(d, 3, name, rho_per_step=rho_per_step, samples=2)
        q = draw(d, 3, name, rho_per_step=rho_per_step, samples=2, key_in_memory=True)
        for a, b in zip(
            cuda.forward(**p.common, sample=True, kl=1),
            cuda.forward(**q.common, sample=True, kl=1),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(check_backward(cuda, p), check_backward(cuda, q), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("d", [12, 63, 200, 1500])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64"])
def test_misaligned_and_strided_rows(cuda: Any, d: int, name: str) -> None:
    """Views into one wide output, at every misalignment of a row; leading axes that do not collapse."""
    p = draw(d, 6, name, scale_per_step=True)
    for shift in range(1, 16 // p.mu.element_size()):
        q = Problem(misalign(p.mu, shift), misalign(p.scale, shift), p.rho, name)
        check_forward(cuda, q, kl=2)
        check_backward(cuda, q)
    wide = torch.cat((p.mu, p.scale, p.rho), -1)
    q = Problem(wide[:, :d], wide[:, d : 2 * d], wide[:, 2 * d :], name)
    check_forward(cuda, q)
    check_backward(cuda, q)
    folded = Problem(
        p.mu.view(3, 2, d).transpose(0, 1),
        p.scale.view(2, 3, d),
        p.rho[:1].view(1, 1, 1).expand(2, 3, 1),
        name,
    )
    check_forward(cuda, folded)


@pytest.mark.parametrize("d", REGIMES)
def test_a_row_is_the_same_in_any_batch(cuda: Any, d: int) -> None:
    """To the last bit, gradients too: alone, beside others, and with other orders of the threads."""
    p = draw(d, 5, "float32", scale_per_step=True, row_offset=2**64 - 2)
    dz, dkl = incoming(p, 1)
    assert dkl is not None

    def run(rows: slice) -> list[Array]:
        part = Problem(
            p.mu[rows], p.scale[rows], p.rho[rows], row_offset=(p.row_offset + (rows.start or 0)) % 2**64
        )
        forward = cuda.forward(**part.common, sample=True, kl=1)
        backward = cuda.backward(
            **part.common, dz=to_numpy(dz[:, rows]), dkl=to_numpy(dkl[rows]), needs_deps=False
        )
        return [forward[0][0], forward[1], *backward[:3]]

    whole = run(slice(0, 5))
    cuda.set_seed(12345)
    for rows in (slice(0, 2), slice(2, 5)):
        for part, all_rows in zip(run(rows), whole, strict=True):
            np.testing.assert_array_equal(part, all_rows[rows])


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("d", REGIMES)
def test_nan_stays_in_its_row(cuda: Any, d: int, logits: bool) -> None:
    for rho_per_step in (False, True):
        p = draw(d, 5, "float32", logits=logits, rho_per_step=rho_per_step)
        dz, dkl = incoming(p, 1)
        assert dkl is not None
        p.rho[1] = float("nan") if logits else 1.0
        p.scale[2] = float("nan")
        p.mu[3, d // 2] = float("nan")
        z, kl = cuda.forward(**p.common, sample=True, kl=1)
        found = [
            z[0],
            kl,
            *cuda.backward(**p.common, dz=to_numpy(dz), dkl=to_numpy(dkl), needs_deps=False)[:3],
        ]
        for values in found:
            assert np.isfinite(values[[0, 4]]).all()
        assert np.isnan(z[0, 1, 1:]).all()
        assert np.isnan(z[0, 2]).all()
        assert np.isnan(z[0, 3]).sum() == 1
        assert np.isnan(kl[1:4]).all()
        assert np.isnan(found[4][1]).all()


@pytest.mark.parametrize("d", REGIMES)
def test_saturated_logits_are_finite(cuda: Any, d: int) -> None:
    for rho_per_step in (False, True):
        p = draw(d, 4, "float32", rho_per_step=rho_per_step)
        p.rho[0], p.rho[1], p.scale[2], p.scale[3] = 500.0, -500.0, 38.0, -38.0
        dz, dkl = incoming(p, 1)
        assert dkl is not None
        found = [*cuda.forward(**p.common, sample=True, kl=1)]
        found += cuda.backward(**p.common, dz=to_numpy(dz), dkl=to_numpy(dkl), needs_deps=False)[:3]
        for values in found:
            assert np.isfinite(values).all()
        agree(found[1][:2], p.exact(1)["kl"][:2], 2e-5, "kl")  # type: ignore[index]


@pytest.mark.parametrize(("per_step"), SHAPES, ids=SHAPE_NAMES)
@pytest.mark.parametrize("d", [1, 2, *REGIMES])
@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16"])
def test_log_prob(cuda: Any, d: int, name: str, per_step: tuple[bool, bool]) -> None:
    from rhovae_ext import reference

    for logits in (True, False):
        p = draw(d, 3, name, *per_step, logits=logits)
        z = torch.randn(3, d, generator=torch.Generator().manual_seed(3)).to(p.mu.dtype)
        h = torch.tensor([[0.5], [-1.0], [2.0]], dtype=arithmetic(name))
        inputs = tuple(t.double().requires_grad_() for t in (z, p.mu, p.scale, p.rho))
        exact = reference.ar1_log_prob(inputs[0], inputs[1], inputs[2], inputs[3], logits)
        gradients = torch.autograd.grad((exact * h[:, 0].double()).sum(), inputs, allow_unused=True)
        arrays = {n: to_numpy(t) for n, t in (("z", z), ("mu", p.mu), ("scale", p.scale), ("rho", p.rho))}
        # A residual divides a difference by c: digits go in proportion.
        tolerance = 1e-11 if name == "float64" else 1e-4
        agree(cuda.log_prob(**arrays, logits=logits), exact.detach().numpy(), tolerance, "log q")
        found = cuda.log_prob_backward(dlog_prob=h.numpy(), **arrays, logits=logits)
        for what, values, expected in zip(("z", "mu", "scale", "rho"), found, gradients, strict=True):
            if d == 1 and what == "rho":
                assert not np.any(values.astype(np.float64))
                continue
            assert expected is not None
            tolerance = {"float32": 1e-4, "float64": 1e-11}.get(name, TOLERANCE[name])
            agree(values, expected.numpy(), tolerance, f"gradient by {what}")
