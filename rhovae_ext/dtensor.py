"""DTensors: every rank computes the rows it holds, with the noise that they have in the whole.

Rows may be sharded along any of their axes, evenly or not, over any dimensions of a mesh. What does not allow
that is redistributed first: a sharded chain is gathered, what is partial is reduced, and the operands follow
the first of them whose rows are sharded. A gradient has the placements of its tensor; where values are
replicated beside sharded rows it is the sum over the ranks.

All of this stands above autograd, on DTensor's own differentiable functions, so the derivatives of an op are
there for DTensors too (second ones from torch 2.13 on, whose to_local has them). Imported when the first of
them comes: torch.distributed.tensor is slow to import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from .arguments import signed
from .backends import Backend
from .shapes import broadcast, broadcast_leading, parameter_leading


def over_ranks(operation: str, backend: Backend) -> Backend:
    """The backend for DTensors: each rank calls it with the rows it holds. Errors name the operation."""
    ar1, ar1_log_prob = backend
    return Backend(partial(_ar1, operation, ar1), partial(_ar1_log_prob, operation, ar1_log_prob))


class _Operand(NamedTuple):
    """A tensor and those of its axes that are rows, which broadcast right-aligned with the others'."""

    name: str
    tensor: Tensor
    rows: Sequence[int]

    def axis(self, row_axis: int, size: int) -> int | None:
        """Its axis for a row axis (-1 the last) of that size; None where one value serves all of it."""
        if len(self.rows) < -row_axis or self.tensor.shape[self.rows[row_axis]] != size:
            return None
        return self.rows[row_axis]


def _parameters(mu: Tensor, scale: Tensor, rho: Tensor, logits: bool) -> list[_Operand]:
    scale_name, rho_name = ("log_s", "rho_logit") if logits else ("s", "rho")
    return [
        _Operand("mu", mu, range(mu.dim() - 1)),
        _Operand(scale_name, scale, range(len(parameter_leading(scale, mu)))),
        _Operand(rho_name, rho, range(len(parameter_leading(rho, mu)))),
    ]


class _Rows:
    """The rows of one call, of shape `lead`, on a mesh."""

    def __init__(
        self, operation: str, mesh: DeviceMesh, lead: list[int], operands: Sequence[_Operand]
    ) -> None:
        self.operation = operation
        self.mesh = mesh
        self.lead = lead
        for operand in operands:
            self._check(operand)
        # For each dimension of the mesh the row axis (-1 the last) that it shards, None where it shards none.
        self.sharded = [self._sharded_by(dimension, operands) for dimension in range(mesh.ndim)]
        self.held = [range(size) for size in lead]  # this rank's part of every axis, as torch.chunk cuts it
        for dimension, axis in enumerate(self.sharded):
            if axis is not None:
                each = -(-len(self.held[axis]) // mesh.size(dimension))
                start = each * mesh.get_local_rank(dimension)
                self.held[axis] = self.held[axis][start : start + each]

    def _check(self, operand: _Operand) -> None:
        name, tensor = operand.name, operand.tensor
        if isinstance(tensor, DTensor):
            if tensor.device_mesh != self.mesh:
                raise ValueError(
                    f"{self.operation}: {name} must be on mu's mesh, {self.mesh}, but got a DTensor on "
                    f"{tensor.device_mesh}. Distribute both over the same mesh."
                )
        elif tensor.dim() > 0 or tensor.requires_grad:
            raise TypeError(
                f"{self.operation}: {name} must be a DTensor, as mu is, or a number, but got a plain tensor "
                f"of shape {tuple(tensor.shape)}. Distribute it: DTensor.from_local({name}, mu.device_mesh) "
                "where all ranks have the same values."
            )

    def _sharded_by(self, dimension: int, operands: Sequence[_Operand]) -> int | None:
        for operand in operands:
            if not isinstance(operand.tensor, DTensor):
                continue
            placement = operand.tensor.placements[dimension]
            if type(placement) is Shard and placement.dim in operand.rows:
                row_axis = operand.rows.index(placement.dim) - len(operand.rows)
                if operand.axis(row_axis, self.lead[row_axis]) is not None:
                    return row_axis
        return None

    def local(self, operand: _Operand) -> _Operand:
        """The operand's values for the rows held here; its gradient returns to the placements it has now."""
        tensor = operand.tensor
        if not isinstance(tensor, DTensor):
            return operand
        placements: list[Placement] = []
        gradients: list[Placement] = []
        for row_axis in self.sharded:
            axis = None if row_axis is None else operand.axis(row_axis, self.lead[row_axis])
            placements.append(Replicate() if axis is None else Shard(axis))
            # Of values that serve the rows of several ranks, each rank knows the share of its own.
            gradients.append(Partial() if axis is None and row_axis is not None else placements[-1])
        # Even where nothing moves: it is what brings the gradient back.
        moved = tensor.redistribute(self.mesh, placements)
        local = moved.to_local(grad_placements=gradients)
        for row_axis, placement in zip(self.sharded, placements, strict=True):
            if row_axis is not None and isinstance(placement, Shard):
                self._check_part(operand.name, placement.dim, local, len(self.held[row_axis]))
        return operand._replace(tensor=local)

    def _check_part(self, name: str, axis: int, local: Tensor, rows: int) -> None:
        if local.shape[axis] != rows:  # then its rows are not those whose noise it would get
            raise ValueError(
                f"{self.operation}: {name} must be cut along axis {axis} as torch.chunk cuts it, here into "
                f"{rows} rows, but got {local.shape[axis]}. Let distribute_tensor cut it."
            )

    def whole(self, part: Tensor, before: Sequence[int], after: Sequence[int]) -> DTensor:
        """The rows of all ranks, (*before, *lead, *after), from those held here."""
        shape = torch.Size([*before, *self.lead, *after])
        axes = range(len(before), len(before) + len(self.lead))
        placements = [Replicate() if axis is None else Shard(axes[axis]) for axis in self.sharded]
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return DTensor.from_local(part, self.mesh, placements, shape=shape, stride=stride)

    def runs(self) -> tuple[int, list[int]]:
        """Runs of rows that are neighbours in the whole too: how many axes count them, and their first rows.

        A part of the first axis is one run; a part of a later axis, one for each index of the axes before it.
        """
        cut = [axis for axis, part in enumerate(self.held) if len(part) != self.lead[axis]]
        outer = cut[-1] if cut and all(self.held) else 0
        corner = [*self.held[:outer], *(part[:1] or range(1) for part in self.held[outer:])]
        firsts = [0]
        for part, size in zip(corner, self.lead, strict=True):
            firsts = [first * size + index for first in firsts for index in part]
        return outer, firsts

    def of_keys(self, key: Tensor) -> tuple[Tensor, int]:
        """The keys of the rows held here, and the number among its key's rows of the first of them."""
        own = [size > 1 for size in key.shape[:-1]]
        lead, held = self.lead, self.held
        counted = [1 if keyed else size for keyed, size in zip(own, lead, strict=True)]
        parts = [range(1) if keyed else part for keyed, part in zip(own, held, strict=True)]
        cut = [axis for axis, part in enumerate(parts) if len(part) != counted[axis]]
        if cut and math.prod(len(part) for part in parts[: cut[-1]]) > 1:
            raise ValueError(
                f"{self.operation}: rows that share a key must be sharded along the first of their axes, but "
                f"got key of shape {tuple(key.shape)} for rows {tuple(lead)} of which this rank holds "
                f"{tuple(map(len, held))}. Redistribute mu, or give every row a key of its own."
            )
        first = 0
        for part, size in zip(parts, counted, strict=True):
            first = first * size + part.start
        places = [slice(p.start, p.stop) if k else slice(None) for k, p in zip(own, held, strict=True)]
        return key[tuple(places)], first

    def split(self, operand: _Operand, outer: int) -> list[Tensor]:
        """What is held here of an operand, run by run; the first `outer` row axes stay, with size 1."""
        runs = [operand.tensor]
        for axis, part in enumerate(self.held[:outer]):
            own = operand.axis(axis - len(self.lead), len(part))
            runs = [
                piece for run in runs for piece in ([run] * len(part) if own is None else run.split(1, own))
            ]
        return runs

    def joined(
        self, runs: Sequence[Tensor], outer: int, before: Sequence[int], after: Sequence[int]
    ) -> Tensor:
        """The results of runs as one tensor: (*before, *held, *after)."""
        if len(runs) == 1:
            return runs[0]
        return torch.cat(tuple(runs), len(before) + outer - 1).reshape(*before, *map(len, self.held), *after)


def _ar1(
    operation: str,
    op: Callable[..., tuple[Tensor, Tensor]],
    mu: DTensor,
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
    steps = [mu.shape[-1]]
    samples = [] if num_samples is None else [num_samples]
    parameters = _parameters(mu, scale, rho, logits)
    noise = [] if eps is None else [_Operand("eps", eps, range(len(samples), eps.dim() - 1))]
    rows = _Rows(operation, mu.device_mesh, broadcast_leading(mu, scale, rho), [*parameters, *noise])
    eps = rows.local(noise[0]).tensor if noise else None
    if isinstance(key, DTensor):
        key = key.full_tensor()
    # Where no noise is drawn no row has a number.
    outer, firsts = 0, [0]
    if sample and eps is None and key is not None:
        if key.dim() == 1:
            outer, firsts = rows.runs()
        else:
            key, firsts[0] = rows.of_keys(key)
    runs = zip(firsts, *(rows.split(rows.local(operand), outer) for operand in parameters), strict=True)
    results = [
        op(*tensors, key, eps, num_samples, signed((row_offset + first) % (1 << 64)), logits, sample, kl)
        for first, *tensors in runs
    ]
    z, divergence = results[0]
    if sample:
        z = rows.whole(rows.joined([z for z, _ in results], outer, samples, steps), samples, steps)
    if kl:
        after = steps if kl == 2 else []
        divergence = rows.whole(rows.joined([kl for _, kl in results], outer, [], after), [], after)
    return z, divergence


def _ar1_log_prob(
    operation: str,
    op: Callable[..., Tensor],
    z: Tensor,
    mu: DTensor,
    scale: Tensor,
    rho: Tensor,
    logits: bool,
) -> Tensor:
    lead = broadcast(z.shape[:-1], broadcast_leading(mu, scale, rho))
    operands = [_Operand("z", z, range(z.dim() - 1)), *_parameters(mu, scale, rho, logits)]
    rows = _Rows(operation, mu.device_mesh, lead, operands)
    return rows.whole(op(*(rows.local(operand).tensor for operand in operands), logits), [], [])


def _draw_key(cls: type, op: Callable[..., Tensor], types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
    """The key that the mesh's first rank draws: with keys of their own ranks would share no whole."""
    like, *others = args
    mesh = like.device_mesh
    bits = op(like.to_local(), *others, **(kwargs or {}))
    # A broadcast, as a sum to which the first rank alone contributes: so torch.compile can trace it.
    share = torch.zeros_like(bits) if any(mesh.get_coordinate()) else bits
    return DTensor.from_local(share, mesh, [Partial()] * mesh.ndim).full_tensor()


for _name in ("rhovae::draw_key", "rhovae_ext::draw_key"):
    torch.library.register_torch_dispatch(_name, DTensor, _draw_key)
