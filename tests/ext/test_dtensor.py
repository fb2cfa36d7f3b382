"""DTensors: every rank has its part of the whole's noise, KL and gradients, bit for bit.

What needs no other rank runs on meshes of pretended ranks, one after the other in this process: their
collectives return what a rank puts in. What needs them runs on two real ones (two_ranks.py).
"""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import rhovae_ext
from rhovae_ext import native
from tests.ext import two_ranks
from tests.ext.meshes import behind, leaf, part_of, plain_leaf, weights

KEY = (3, 2**64 - 1)
AXES = (Shard(0), Shard(1), Replicate())
EVERYWHERE = list(product(AXES, AXES))
MESHES = count()


def every_rank(*shape: int) -> Iterator[DeviceMesh]:
    """The mesh as each of its ranks sees it."""
    for rank in range(math.prod(shape)):
        dist.init_process_group("fake", rank=rank, world_size=math.prod(shape), store=FakeStore())
        try:
            # torch takes meshes of one shape and name for one mesh, and remembers its rank
            names = tuple(f"mesh{next(MESHES)}" for _ in shape)
            yield init_device_mesh("cpu", shape, mesh_dim_names=names)
        finally:
            dist.destroy_process_group()


def is_part(here: Tensor, whole: Tensor, placements: Sequence[Placement]) -> bool:
    """Whether a DTensor lies as told, and is bit for bit its part of the whole."""
    assert isinstance(here, DTensor)
    assert here.shape == whole.shape
    assert here.placements == tuple(placements)
    part = part_of(whole, here.device_mesh, placements)
    if native.unavailable is None:
        return torch.equal(here.to_local(), part)
    return torch.allclose(here.to_local(), part)  # plain PyTorch may sum in another order


@pytest.mark.parametrize("placements", EVERYWHERE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_samples", [None, 3])
def test_samples_and_gradients(
    placements: tuple[Placement, ...], dtype: torch.dtype, num_samples: int | None
) -> None:
    """A mesh of 2 x 2 over two axes of rows that it does not divide; a rho that the first of them shares."""
    samples = [] if num_samples is None else [num_samples]
    mu, log_s = torch.randn(7, 5, 6, dtype=dtype), 0.3 * torch.randn(7, 5, dtype=dtype)
    rho_logit = torch.randn(1, 5, 5)
    # Of 35 rows the last three have numbers beyond what a signed integer holds.
    options: dict[str, Any] = {"key": KEY, "num_samples": num_samples, "row_offset": 2**63 - 32}

    plain = [plain_leaf(tensor) for tensor in (mu, log_s, rho_logit)]
    z, kl = rhovae_ext.ar1_reparam_kl_with_logits(*plain, **options)
    dz, dkl = weights(z), weights(kl)
    gradients = torch.autograd.grad((z, kl), plain, (dz, dkl))

    of_z = behind(len(samples), placements)
    of_rho = [placement if placement == Shard(1) else Replicate() for placement in placements]
    gradient_of_rho = torch.zeros_like(rho_logit)
    for mesh in every_rank(2, 2):
        leaves = leaf(mu, mesh, placements), leaf(log_s, mesh, placements), leaf(rho_logit, mesh, of_rho)
        z_here, kl_here = rhovae_ext.ar1_reparam_kl_with_logits(*leaves, **options)
        assert is_part(z_here, z, of_z)
        assert is_part(kl_here, kl, placements)
        dmu, dlog_s, drho = torch.autograd.grad(
            (z_here, kl_here), leaves, (leaf(dz, mesh, of_z), leaf(dkl, mesh, placements))
        )
        assert is_part(dmu, gradients[0], placements)
        assert is_part(dlog_s, gradients[1], placements)
        assert isinstance(drho, DTensor)
        assert drho.placements == tuple(of_rho)
        part_of(gradient_of_rho, mesh, of_rho).add_(drho.to_local())
    gradient_of_rho /= 2 ** placements.count(Replicate())  # those have the whole's, all of them
    torch.testing.assert_close(gradient_of_rho, gradients[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_ranks_without_rows(rows: int) -> None:
    mu, rho_logit = torch.randn(rows, 5), plain_leaf(torch.tensor([[0.4]]))
    z, kl = rhovae_ext.ar1_reparam_kl_with_logits(mu, 0.1, rho_logit, key=KEY)
    dz, dkl = weights(z), weights(kl)
    (whole,) = torch.autograd.grad((z, kl), rho_logit, (dz, dkl))
    gradient = torch.zeros(1, 1)
    for mesh in every_rank(4):
        shared = leaf(rho_logit.detach(), mesh, [Replicate()])
        z_here, kl_here = rhovae_ext.ar1_reparam_kl_with_logits(
            leaf(mu, mesh, [Shard(0)]), 0.1, shared, key=KEY
        )
        assert is_part(z_here, z, [Shard(0)])
        assert is_part(kl_here, kl, [Shard(0)])
        (share,) = torch.autograd.grad(
            (z_here, kl_here), shared, (leaf(dz, mesh, [Shard(0)]), leaf(dkl, mesh, [Shard(0)]))
        )
        assert isinstance(share, DTensor)
        gradient += share.to_local()
    torch.testing.assert_close(gradient, whole)


def test_one_chain_has_no_rows_to_share() -> None:
    mu = torch.randn(6)
    z, kl = rhovae_ext.ar1_reparam_kl(mu, 0.5, 0.3, key=KEY)
    for mesh in every_rank(2):
        z_here, kl_here = rhovae_ext.ar1_reparam_kl(leaf(mu, mesh, [Replicate()]), 0.5, 0.3, key=KEY)
        assert is_part(z_here, z, [Replicate()])
        assert is_part(kl_here, kl, [Replicate()])


@pytest.mark.parametrize("placements", EVERYWHERE, ids=str)
def test_divergences_densities_and_given_noise(placements: tuple[Placement, ...]) -> None:
    mu, s, rho = torch.randn(7, 5, 6), torch.rand(7, 5, 6) + 0.5, torch.rand(1, 5, 1) - 0.5
    z, eps = torch.randn(4, 7, 5, 6), torch.randn(3, 7, 5, 6)
    of_rho = [placement if placement == Shard(1) else Replicate() for placement in placements]

    def every_result(mu: Tensor, s: Tensor, rho: Tensor, z: Tensor, eps: Tensor) -> tuple[list[Tensor], ...]:
        return (
            [
                rhovae_ext.ar1_kl(mu, s, rho),
                rhovae_ext.ar1_kl(mu, s, rho, per_dim=True),
                rhovae_ext.ar1_kl_with_logits(mu, s, 0.5),
            ],
            [
                rhovae_ext.ar1_log_prob(z, mu, s, rho),
                rhovae_ext.ar1_log_prob_with_logits(z, mu, 0.0, rho),
                rhovae_ext.ar1_reparam(mu, s, rho, num_samples=3, eps=eps),
            ],
        )

    wholes = every_result(mu, s, rho, z, eps)
    for mesh in every_rank(2, 2):
        here = every_result(
            leaf(mu, mesh, placements),
            leaf(s, mesh, placements),
            leaf(rho, mesh, of_rho),
            leaf(z, mesh, behind(1, placements)),
            leaf(eps, mesh, behind(1, placements)),
        )
        for axes in (0, 1):
            for result, whole in zip(here[axes], wholes[axes], strict=True):
                assert is_part(result, whole, behind(axes, placements))


def test_all_follow_the_first_that_is_sharded() -> None:
    z, mu, rho = torch.randn(3, 7, 5), torch.randn(7, 5), torch.rand(7, 1) - 0.5
    density = rhovae_ext.ar1_log_prob(z, mu, 1.5, rho)
    sample = rhovae_ext.ar1_reparam(mu[:1], 1.5, rho, key=KEY)
    whole, rows, samples = Replicate(), Shard(0), Shard(0)
    for mesh in every_rank(2):
        for of_z, of_rho, expected in (
            (samples, whole, Shard(0)),
            (whole, rows, Shard(1)),
            (Shard(1), whole, Shard(1)),
        ):
            here = rhovae_ext.ar1_log_prob(
                leaf(z, mesh, [of_z]), leaf(mu, mesh, [whole]), 1.5, leaf(rho, mesh, [of_rho])
            )
            assert is_part(here, density, [expected])
        shared = leaf(mu[:1], mesh, [whole])
        assert is_part(
            rhovae_ext.ar1_reparam(shared, 1.5, leaf(rho, mesh, [rows]), key=KEY), sample, [Shard(0)]
        )


def test_what_no_rank_can_know_is_refused() -> None:
    for mesh in every_rank(2):
        mu, other = leaf(torch.zeros(4, 3), mesh, [Shard(0)]), init_device_mesh("cpu", (1, 2))
        with pytest.raises(TypeError, match=r"ar1_kl: s must be a DTensor, as mu is, or a number, but got a"):
            rhovae_ext.ar1_kl(mu, torch.ones(4), 0.0)
        with pytest.raises(TypeError, match=r"ar1_kl_with_logits: rho_logit must .*from_local\(rho_logit, "):
            rhovae_ext.ar1_kl_with_logits(mu, 0.0, torch.zeros((), requires_grad=True))
        with pytest.raises(TypeError, match=r"ar1_reparam: eps must be a DTensor"):
            rhovae_ext.ar1_reparam(mu, 1.0, 0.0, eps=torch.zeros(4, 3))
        with pytest.raises(TypeError, match=r"ar1_log_prob: z must be a DTensor"):
            rhovae_ext.ar1_log_prob(torch.zeros(4, 3), mu, 1.0, 0.0)
        with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
            rhovae_ext.ar1_kl(torch.zeros(4, 3), 1.0, leaf(torch.zeros(4), mesh, [Shard(0)]))
        with pytest.raises(ValueError, match=r"ar1_kl: rho must be on mu's mesh, .*, but got a DTensor on"):
            rhovae_ext.ar1_kl(mu, 1.0, leaf(torch.zeros(4), other, [Replicate(), Shard(0)]))


def test_parts_that_torch_would_not_cut_are_refused() -> None:
    """Three rows and four in place of four and three: the noise would be that of other rows."""
    for mesh in every_rank(2):
        rows = 3 + mesh.get_local_rank()
        mu = DTensor.from_local(
            torch.zeros(rows, 5), mesh, [Shard(0)], shape=torch.Size((7, 5)), stride=(5, 1)
        )
        with pytest.raises(
            ValueError, match=rf"mu must be cut .* here into {7 - rows} rows, but got {rows}\."
        ):
            rhovae_ext.ar1_reparam(mu, 1.0, 0.5, key=KEY)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each check came to on every rank: nothing where it held."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    context, ranks = multiprocessing.get_context("spawn"), range(two_ranks.RANKS)
    processes = [context.Process(target=two_ranks.main, args=(rank, str(folder))) for rank in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in ranks]
    return {name: [of.get(name, "not run") for of in found] for name in two_ranks.CHECKS}


@pytest.mark.parametrize("name", two_ranks.CHECKS)
def test_on_two_ranks(name: str, outcomes: dict[str, list[str]]) -> None:
    assert not any(outcomes[name]), "\n".join(outcomes[name])


@pytest.mark.parametrize("own", [(7, 1), (1, 5), (7, 5), (1, 1)], ids=str)
def test_rows_with_keys_of_their_own(own: tuple[int, int]) -> None:
    mu = torch.randn(7, 5, 6)
    keys = rhovae_ext.split(3, own[0] * own[1]).reshape(*own, 2)
    z = rhovae_ext.ar1_reparam(mu, 0.7, 0.5, key=keys, num_samples=2)
    for placements in EVERYWHERE:
        of_first, of_second = (Shard(axis) in placements for axis in (0, 1))
        for mesh in every_rank(2, 2):
            here = leaf(mu, mesh, placements)
            if own == (1, 1) and of_second and (not of_first or here.to_local().shape[0] > 1):
                if here.to_local().numel() == mu.numel():
                    continue
                with pytest.raises(ValueError, match="rows that share a key must be sharded along the first"):
                    rhovae_ext.ar1_reparam(here, 0.7, 0.5, key=keys, num_samples=2)
                continue
            sharded = rhovae_ext.ar1_reparam(here, 0.7, 0.5, key=keys, num_samples=2)
            assert is_part(sharded, z, behind(1, placements))
