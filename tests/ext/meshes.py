"""What the tests of DTensors share: distributed leaves, and the parts that make up a whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard


def part_of(whole: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    """This rank's part of a tensor, a view cut by torch.chunk, one dimension of the mesh after the other."""
    part = whole
    for dimension, placement in enumerate(placements):
        if isinstance(placement, Shard):
            chunks = part.chunk(mesh.size(dimension), placement.dim)
            rank = mesh.get_local_rank(dimension)
            part = chunks[rank] if rank < len(chunks) else part.narrow(placement.dim, 0, 0)
    return part


def leaf(whole: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    """A tensor that every rank has as a distributed leaf, of which it keeps its part."""
    whole = whole.detach().contiguous()
    part = part_of(whole, mesh, placements).clone()
    distributed = DTensor.from_local(part, mesh, placements, shape=whole.shape, stride=whole.stride())
    distributed.requires_grad_()
    return distributed


def plain_leaf(whole: Tensor) -> Tensor:
    return whole.detach().clone().requires_grad_()


def behind(axes: int, placements: Sequence[Placement]) -> list[Placement]:
    """The same placements behind that many axes more."""
    return [Shard(p.dim + axes) if isinstance(p, Shard) else p for p in placements]


def weights(like: Tensor) -> Tensor:
    """Gradients of which no two are alike."""
    return torch.linspace(-1.0, 1.0, like.numel()).reshape(like.shape).to(like.dtype)
