"""What DTensors, FSDP2 and tensor parallelism need a second process for: checks that two ranks run together.

Each compares with the same computation on plain tensors, which every rank makes for itself.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import rhovae_ext
from tests.ext.meshes import leaf, plain_leaf, weights

RANKS = 2
KEY = (5, 6)
CHECKS: dict[str, Callable[[DeviceMesh], None]] = {}


def check(function: Callable[[DeviceMesh], None]) -> Callable[[DeviceMesh], None]:
    CHECKS[function.__name__] = function
    return function


def main(rank: int, folder: str) -> None:
    """Runs every check, up to the first that fails; FOLDER/RANK.json has their names and tracebacks."""
    together = timedelta(seconds=20)  # where one has failed the other stops waiting
    dist.init_process_group("gloo", f"file://{folder}/store", together, RANKS, rank)
    mesh = init_device_mesh("cpu", (RANKS,))
    outcomes: dict[str, str] = {}
    for name, function in CHECKS.items():
        torch.manual_seed(0)
        try:
            function(mesh)
        except Exception:
            outcomes[name] = f"rank {rank}: {traceback.format_exc()}"
            break
        outcomes[name] = ""
    (Path(folder) / f"{rank}.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()


def full(tensor: Tensor | None) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor()


def close(here: Tensor, whole: Tensor) -> None:
    torch.testing.assert_close(here, whole, rtol=1e-12, atol=1e-12)


@check
def nobody_else_pays_for_the_import(mesh: DeviceMesh) -> None:
    rhovae_ext.ar1_kl(nn.Parameter(torch.zeros(2, 3)), 1.0, 0.0)
    assert "rhovae_ext.dtensor" not in sys.modules
    rhovae_ext.ar1_kl(leaf(torch.zeros(2, 3), mesh, [Replicate()]), 1.0, 0.0)
    assert "rhovae_ext.dtensor" in sys.modules


@check
def gradients_return_to_the_placements_of_their_tensors(mesh: DeviceMesh) -> None:
    """Also where the chain is sharded, and the sum over all rows where values are replicated."""
    mu, log_s = torch.randn(7, 3, 5).double(), torch.randn(7, 3).double()
    rho_logit = torch.full((1, 1, 1), 0.5).double()
    plain = plain_leaf(mu), plain_leaf(log_s), plain_leaf(rho_logit)
    z, kl = rhovae_ext.ar1_reparam_kl_with_logits(*plain, key=KEY)
    gradients = torch.autograd.grad((z * weights(z)).sum() + (kl * weights(kl)).sum(), plain)
    replicated: Placement = Replicate()
    for of_mu, of_log_s, expected in (
        (Shard(0), Shard(0), Shard(0)),
        (Shard(1), replicated, Shard(1)),
        (replicated, Shard(0), Shard(0)),
        (Shard(2), replicated, replicated),
        (Shard(2), Shard(1), Shard(1)),
    ):
        leaves = leaf(mu, mesh, [of_mu]), leaf(log_s, mesh, [of_log_s]), leaf(rho_logit, mesh, [replicated])
        z_here, kl_here = rhovae_ext.ar1_reparam_kl_with_logits(*leaves, key=KEY)
        assert isinstance(z_here, DTensor)
        assert z_here.placements == (expected,)
        assert torch.equal(full(z_here), z)
        assert torch.equal(full(kl_here), kl)
        dz, dkl = leaf(weights(z), mesh, [expected]), leaf(weights(kl), mesh, [replicated])
        here = torch.autograd.grad((z_here * dz).sum() + (kl_here * dkl).sum(), leaves)
        for tensor, gradient, whole in zip(leaves, here, gradients, strict=True):
            assert isinstance(gradient, DTensor)
            assert gradient.placements == tensor.placements
            close(full(gradient), whole)


@check
def what_is_partial_is_reduced(mesh: DeviceMesh) -> None:
    mu = torch.randn(7, 5)
    share = DTensor.from_local(mu / RANKS, mesh, [Partial()]).requires_grad_()
    z = rhovae_ext.ar1_reparam(share, 0.5, 0.5, key=KEY)
    assert torch.equal(full(z), rhovae_ext.ar1_reparam(mu, 0.5, 0.5, key=KEY))
    z.sum().backward()
    assert torch.equal(full(share.grad), torch.ones_like(mu))


@check
def rows_of_two_axes_in_one_are_gathered(mesh: DeviceMesh) -> None:
    """A part that torch.chunk would not cut: every second half of four."""
    mu = torch.randn(4, 6, 5)
    sharded, plain = leaf(mu, mesh, [Shard(1)]), plain_leaf(mu)
    try:
        rows = sharded.flatten(0, 1)
    except RuntimeError:  # so torch 2.11
        return
    z = rhovae_ext.ar1_reparam(rows, 1.0, 0.5, key=KEY)
    whole = rhovae_ext.ar1_reparam(plain.flatten(0, 1), 1.0, 0.5, key=KEY)
    assert torch.equal(full(z), whole)
    z.square().sum().backward()
    whole.square().sum().backward()
    assert plain.grad is not None
    assert torch.equal(full(sharded.grad), plain.grad)


@check
def ranks_seeded_differently_draw_one_key(mesh: DeviceMesh) -> None:
    """That of the first rank, from torch's generator or one of their own; every rank's goes on."""
    mu, plain = leaf(torch.zeros(7, 4), mesh, [Shard(0)]), torch.zeros(7, 4)
    torch.manual_seed(10 + dist.get_rank())
    drawn = [full(rhovae_ext.ar1_reparam(mu, 1.0, 0.5)) for _ in range(2)]
    mine = torch.Generator().manual_seed(10 + dist.get_rank())
    drawn += [full(rhovae_ext.ar1_reparam(mu, 1.0, 0.5, generator=mine)) for _ in range(2)]
    torch.manual_seed(10)
    first = [rhovae_ext.ar1_reparam(plain, 1.0, 0.5) for _ in range(2)]
    assert not torch.equal(*first)
    for here, whole in zip(drawn, first * 2, strict=True):
        assert torch.equal(here, whole)


@check
def entropies(mesh: DeviceMesh) -> None:
    """Of torch's own ops, which know DTensors."""
    s, rho = torch.rand(7, 4) + 0.5, torch.rand(7, 3) - 0.5
    whole = rhovae_ext.ar1_entropy(s, rho)
    for axis in (0, 1):
        here = rhovae_ext.ar1_entropy(leaf(s, mesh, [Shard(axis)]), leaf(rho, mesh, [Shard(axis)]))
        torch.testing.assert_close(full(here), whole)


@check
def second_derivatives(mesh: DeviceMesh) -> None:
    if torch.__version__ < "2.13":  # whose to_local ends the graph
        return
    mu, rho_logit = torch.randn(7, 4).double(), torch.full((1, 1), 0.3).double()
    seconds = []
    for tensors in (
        (plain_leaf(mu), plain_leaf(rho_logit)),
        (leaf(mu, mesh, [Shard(0)]), leaf(rho_logit, mesh, [Replicate()])),
    ):
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(
            tensors[0], 0.0, tensors[1], key=KEY, backend="reference"
        )
        dmu, drho = torch.autograd.grad(z.square().sum() + kl.sum(), tensors, create_graph=True)
        seconds.append(torch.autograd.grad(dmu.square().sum() + drho.square().sum(), tensors))
    for whole, here in zip(*seconds, strict=True):
        close(full(here), whole)


@check
def compiled(mesh: DeviceMesh) -> None:
    """One graph, the key drawn in it: of ranks seeded differently the first one's."""

    def step(mu: Tensor, rho_logit: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(2.0 * mu, 0.0, rho_logit)
        return 3.0 * z, kl

    results = []
    for function in (torch.compile(step, fullgraph=True, backend="aot_eager"), step):
        mu = leaf(torch.linspace(-1.0, 1.0, 28).reshape(7, 4), mesh, [Shard(0)])
        rho_logit = leaf(torch.zeros(1, 1), mesh, [Replicate()])
        torch.manual_seed(10 + dist.get_rank())
        z, kl = function(mu, rho_logit)
        (z.sum() + kl.sum()).backward()
        results.append([full(tensor) for tensor in (z, kl, mu.grad, rho_logit.grad)])
    for here, whole in zip(*results, strict=True):
        assert torch.equal(here, whole)


class Model(nn.Module):
    """A VAE with every parameter before or after the ops: means of an encoder, learnt scales and rho."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.log_s = nn.Parameter(torch.linspace(-0.5, 0.5, 4)[None])
        self.rho_logit = nn.Parameter(torch.full((1, 1), 0.3))
        self.decoder = nn.Linear(4, 6)

    def forward(self, x: Tensor, row_offset: int = 0) -> Tensor:
        z, kl = rhovae_ext.ar1_reparam_kl_with_logits(
            self.encoder(x), self.log_s, self.rho_logit, key=KEY, row_offset=row_offset
        )
        loss: Tensor = ((self.decoder(z) - x).square().sum(-1) + kl).mean()
        return loss


def trained(batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the plain model on the whole batch."""
    torch.manual_seed(1)
    model = Model().double()
    loss = model(batch)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return loss.detach(), {name: gradient for name, gradient in gradients.items() if gradient is not None}


@check
def fully_sharded(mesh: DeviceMesh) -> None:
    """FSDP2: each rank has half of the batch and says which rows they are; the gradients are the whole's."""
    batch = torch.randn(10, 6).double()
    loss, gradients = trained(batch)
    torch.manual_seed(1)
    model = Model().double()
    fully_shard(model.encoder, mesh=mesh)
    fully_shard(model, mesh=mesh)
    first = 5 * dist.get_rank()
    loss_here = model(batch[first : first + 5], row_offset=first)
    loss_here.backward()
    close(DTensor.from_local(loss_here.detach() / RANKS, mesh, [Partial()]).full_tensor(), loss)
    assert len(gradients) == 8
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        close(full(parameter.grad), gradients[name])


@check
def tensor_parallel(mesh: DeviceMesh) -> None:
    """An encoder of sharded features; its means come as a plain tensor, or as DTensors of each placement."""
    batch = torch.randn(9, 6).double()
    loss, gradients = trained(batch)
    whole: Placement = Replicate()
    for last in (
        RowwiseParallel(),
        RowwiseParallel(output_layouts=Shard(0), use_local_output=False),
        ColwiseParallel(input_layouts=Shard(-1), use_local_output=False),
    ):
        torch.manual_seed(1)
        model = Model().double()
        parallelize_module(model.encoder, mesh, {"0": ColwiseParallel(), "2": last})
        x: Tensor = batch
        if last.use_local_output is False:  # then all that meets it has to be a DTensor
            for module in (model, model.decoder):
                for name, parameter in list(module.named_parameters(recurse=False)):
                    setattr(module, name, nn.Parameter(leaf(parameter, mesh, [whole])))
            x = DTensor.from_local(batch, mesh)
        loss_here = model(x)
        loss_here.backward()
        close(full(loss_here) if isinstance(loss_here, DTensor) else loss_here, loss)
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            assert gradient is not None
            close(full(gradient) if isinstance(gradient, DTensor) else gradient, gradients[name])
