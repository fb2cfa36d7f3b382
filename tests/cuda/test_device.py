"""The compiled CUDA kernels on a GPU: agreement with the CPU, noise, graphs, streams, limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import rhovae_ext

_MISSING = (
    rhovae_ext.available_backends("cuda")["native"] if torch.cuda.is_available() else "no GPU is visible"
)
if _MISSING:
    pytest.skip(_MISSING, allow_module_level=True)

KEY = (7, 2**63 + 5)


def problem(
    rows: int, d: int, dtype: torch.dtype = torch.float32, per_step: bool = False, device: str = "cuda"
) -> tuple[Tensor, Tensor, Tensor]:
    """mu, log_s, rho_logit as leaves; the same values on every device."""
    generator = torch.Generator().manual_seed(rows + d)

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return drawn.to(device, dtype).requires_grad_()

    if per_step:
        return normal(rows, d), normal(rows, d), normal(rows, d - 1)
    return normal(rows, d), normal(rows), normal(rows)


def sample(mu: Tensor, log_s: Tensor, rho_logit: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return rhovae_ext.ar1_reparam_kl_with_logits(mu, log_s, rho_logit, backend="native", **options)


def with_gradients(inputs: tuple[Tensor, Tensor, Tensor], **options: Any) -> list[Tensor]:
    z, kl = sample(*inputs, **options)
    loss = (z.float() * torch.linspace(-1, 1, z.shape[-1], device=z.device)).sum() + kl.sum()
    return [z.detach(), kl.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("per_step", [False, True], ids=["row", "step"])
@pytest.mark.parametrize("d", [1, 2, 9, 64, 127, 256, 1000, 1025, 8192, 8195, 70001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_cpu_says_the_same(dtype: torch.dtype, d: int, per_step: bool) -> None:
    tolerance = {torch.float64: 1e-11, torch.float32: 5e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    found = with_gradients(problem(3, d, dtype, per_step), key=KEY)
    expected = with_gradients(problem(3, d, dtype, per_step, device="cpu"), key=KEY)
    for name, ours, truth in zip(("z", "kl", "dmu", "dlog_s", "drho_logit"), found, expected, strict=True):
        if truth.numel() == 0:
            continue
        error = (ours.cpu().double() - truth.double()).abs().max()
        assert error <= tolerance * truth.double().abs().max().clamp_min(1e-3), name


def test_generators_are_advanced_and_reproduce() -> None:
    mu, log_s, rho_logit = problem(5, 33)
    torch.manual_seed(3)
    first, second = sample(mu, log_s, rho_logit)[0], sample(mu, log_s, rho_logit)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(sample(mu, log_s, rho_logit)[0], first)
    own = torch.Generator("cuda").manual_seed(3)
    assert torch.equal(sample(mu, log_s, rho_logit, generator=own)[0], first)


def test_a_device_key_is_the_pair() -> None:
    inputs = problem(5, 200)
    words = torch.tensor([7, 2**63 + 5], dtype=torch.uint64)
    spread = torch.stack([words, words], 1)[:, 0].to("cuda")
    for key in (words, words.cuda(), spread):
        for ours, truth in zip(with_gradients(inputs, key=key), with_gradients(inputs, key=KEY), strict=True):
            assert torch.equal(ours, truth)


def test_nothing_waits_for_the_device() -> None:
    inputs = problem(64, 200)
    with_gradients(inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        z, kl = sample(*inputs)
        torch.autograd.grad((z, kl), inputs, (torch.ones_like(z), torch.ones_like(kl)))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_launch_a_pass() -> None:
    inputs = problem(64, 200)
    dz, dkl = torch.ones(64, 200, device="cuda"), torch.ones(64, device="cuda")

    def kernels() -> int:
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            torch.autograd.grad(sample(*inputs), inputs, (dz, dkl))
            torch.cuda.synchronize()
        return sum(str(event.device_type).endswith("CUDA") for event in profile.events())

    kernels()
    assert kernels() == 2


def test_every_replay_of_a_graph_draws_new_noise() -> None:
    mu, log_s, rho_logit = problem(5, 200)
    dz = torch.randn(5, 200, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.autograd.grad(sample(mu, log_s, rho_logit)[0], (log_s,), dz)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z, _ = sample(mu, log_s, rho_logit)
        (dlog_s,) = torch.autograd.grad(z, (log_s,), dz)
    seen = []
    for _ in range(3):
        graph.replay()
        # The gradient by log s is sum dz (z - mu): backward drew the forward's noise again.
        torch.testing.assert_close(dlog_s, (dz * (z - mu)).sum(-1), rtol=1e-4, atol=1e-3)
        seen.append(z.detach().clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_draw_new_noise(mode: str) -> None:
    torch.compiler.reset()
    mu, log_s, rho_logit = problem(5, 200)
    dz = torch.randn(5, 200, device="cuda")
    compiled = torch.compile(lambda *inputs: sample(*inputs)[0], fullgraph=True, mode=mode)
    seen = []
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        z = compiled(mu, log_s, rho_logit)
        (dlog_s,) = torch.autograd.grad(z, (log_s,), dz)
        torch.testing.assert_close(dlog_s, (dz * (z - mu)).sum(-1), rtol=1e-4, atol=1e-3)
        seen.append(z.detach().clone())
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))


def test_a_side_stream() -> None:
    inputs = problem(512, 256)
    expected = with_gradients(inputs, key=KEY)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = with_gradients(inputs, key=KEY)
    side.synchronize()
    for ours, truth in zip(found, expected, strict=True):
        assert torch.equal(ours, truth)


def test_a_device_that_is_not_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU alone is visible")
    inputs = tuple(t.detach().to("cuda:1").requires_grad_() for t in problem(9, 200))
    found = with_gradients(inputs, key=KEY)  # type: ignore[arg-type]
    for ours, truth in zip(found, with_gradients(problem(9, 200), key=KEY), strict=True):
        assert torch.equal(ours.cpu(), truth.cpu())


def test_mixed_devices_are_named() -> None:
    mu, log_s, rho_logit = problem(5, 7)
    with pytest.raises(ValueError, match="cpu") as refused:
        sample(mu, log_s.cpu(), rho_logit)
    assert "log_s" in str(refused.value)
    assert "cuda" in str(refused.value)


def test_out_of_memory_leaves_the_process_usable() -> None:
    mu = torch.zeros(1, 1, device="cuda").expand(2**40, 256)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sample(mu, *(torch.zeros((), device="cuda") for _ in range(2)))
    assert torch.isfinite(sample(*problem(5, 7))[0]).all()


def test_more_than_2_31_rows() -> None:
    rows, d = 2**31 + 37, 1
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("less than 16 GiB are free")
    mu = torch.zeros(1, d, dtype=torch.bfloat16, device="cuda").expand(rows, d)
    z = rhovae_ext.ar1_reparam(mu, 1.0, 0.0, key=KEY, backend="native")
    for first in (0, 2**31 - 3, rows - 5):
        few = rhovae_ext.ar1_reparam(mu[:5], 1.0, 0.0, key=KEY, row_offset=first, backend="native")
        assert torch.equal(z[first : first + 5], few)
