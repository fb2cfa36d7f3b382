"""What torch does with a module's output finds the tensors of a posterior: gradients are the plain head's."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from rhovae.posteriors import Posterior, PosteriorHead, make_posterior
from rhovae_ext import fold_in

NAMES = ["diag", "iso", "rho", "ar1", "published"]
KEY = fold_in(3, 0)


@pytest.fixture
def head(request: pytest.FixtureRequest) -> PosteriorHead:
    torch.manual_seed(1)
    return make_posterior(request.param, 5, 4, backend="reference").double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(2)).double()


heads = pytest.mark.parametrize("head", NAMES, indirect=True)


def loss(q: Posterior) -> Tensor:
    z, kl = q.rsample_kl(key=KEY)
    return (z * torch.arange(1.0, 1.0 + z.shape[-1])).sum() + kl.square().sum()


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def plain(head: PosteriorHead, x: Tensor) -> list[Tensor]:
    twin = copy.deepcopy(head)
    loss(twin(x)).backward()
    found = gradients(twin)
    assert len(found) == 2
    return found


def assert_gradients(head: PosteriorHead, expected: list[Tensor]) -> None:
    found = gradients(head)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def assert_same(a: Posterior, b: Posterior) -> None:
    assert type(a) is type(b)
    assert a.backend == b.backend
    torch.testing.assert_close(a[:2], b[:2])
    torch.testing.assert_close(a.rho, b.rho)  # of a number, vmap has one in each of its rows


@heads
def test_its_leaves_are_its_tensors(head: PosteriorHead, x: Tensor) -> None:
    q = head(x)
    leaves, spec = pytree.tree_flatten(q)
    assert all(a is b for a, b in zip(leaves, (q.mu, q.log_s, q.rho_logit), strict=True))
    assert_same(pytree.tree_unflatten(leaves, spec), q)
    assert_same(pytree.tree_map(torch.clone, q), q)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(q)[0]]
    assert paths == [".mu", ".log_s", ".rho_logit"]
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec


def test_a_tuple_of_its_arguments() -> None:
    mu, log_s = torch.zeros(2, 3), torch.zeros(2, 1)
    q = Posterior(mu, log_s, 0.5, "reference")
    assert Posterior(*q).backend == q.backend == "reference"
    assert q.mu is mu
    assert q.log_s is log_s
    assert q.rho_logit.item() == 0.5
    torch.testing.assert_close(q.rho, torch.full((2, 2), 0.5).tanh())
    assert Posterior(mu, log_s).rho_logit.item() == 0.0
    assert Posterior(mu.half(), log_s, 1e300).rho.eq(1.0).all()
    assert repr(q) == "Posterior(rows=(2,), d=3)"


def test_a_subclass_is_one_as_well() -> None:
    class Own(Posterior):
        __slots__ = ()

    q = Own(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2))
    assert isinstance(pytree.tree_map(torch.clone, q), Own)
    assert len(pytree.tree_leaves(q)) == 3


@heads
def test_copies_and_pickles(head: PosteriorHead, x: Tensor) -> None:
    q = pytree.tree_map(torch.detach, head(x))
    for copied in (copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert_same(copied, q)
    copied = copy.deepcopy(head)
    loss(copied(x)).backward()
    assert_gradients(copied, plain(head, x))


@heads
@pytest.mark.parametrize("pre", [False, True])
def test_full_backward_hooks(head: PosteriorHead, x: Tensor, pre: bool) -> None:
    expected = plain(head, x)
    seen: list[Any] = []
    if pre:
        head.register_full_backward_pre_hook(lambda module, out: seen.append(out))
    else:
        head.register_full_backward_hook(lambda module, into, out: seen.append(out))
    q = head(x.requires_grad_())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's, that it finds no tensor
        loss(q).backward()
    assert_gradients(head, expected)
    leaves, spec = pytree.tree_flatten(pytree.tree_map(lambda t: t.detach().requires_grad_(), q))
    loss(pytree.tree_unflatten(leaves, spec)).backward()
    (out,) = seen
    assert len(out) == len(q) == 4
    for mine, leaf, part in zip(out, leaves, q, strict=False):
        if part.requires_grad and leaf.grad is not None:
            torch.testing.assert_close(mine, leaf.grad)


@heads
def test_a_forward_hook_may_change_it(head: PosteriorHead, x: Tensor) -> None:
    head.register_forward_hook(lambda module, args, q: pytree.tree_map(lambda t: 2.0 * t, q))
    moved = head(x)
    torch.testing.assert_close(moved.mu, 2.0 * head.linear(x)[..., :4])


@heads
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(head: PosteriorHead, x: Tensor, reentrant: bool) -> None:
    expected = plain(head, x)
    made = checkpoint(head, x.requires_grad_(), use_reentrant=reentrant)
    q = head.posterior(*made)
    assert q.backend == "reference"
    loss(q).backward()
    assert_gradients(head, expected)


@heads
def test_vmap(head: PosteriorHead, x: Tensor) -> None:
    many = torch.stack([x, 2.0 * x])
    q = torch.func.vmap(head)(many)
    assert_same(q, head(many))
    loss(q).backward()
    assert_gradients(head, plain(head, many))


@heads
def test_an_ensemble_under_vmap(head: PosteriorHead, x: Tensor) -> None:
    heads = [head, copy.deepcopy(head)]
    with torch.no_grad():
        heads[1].linear.weight.mul_(-1.0)
    parameters, buffers = torch.func.stack_module_state(heads)

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Posterior:
        q: Posterior = torch.func.functional_call(head, (parameters, buffers), (x,))
        return q

    q = torch.func.vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    for i, one in enumerate(heads):
        torch.testing.assert_close(q.kl()[i], one(x).kl())


@heads
def test_forward_mode_and_jacobians(head: PosteriorHead, x: Tensor) -> None:
    q, tangent = torch.func.jvp(head, (x,), (torch.ones_like(x),))  # type: ignore[misc]
    assert_same(q, head(x))
    assert isinstance(tangent, Posterior)
    torch.testing.assert_close(tangent.mu, head.linear.weight[:4].sum(-1).expand(3, 4))
    jacobian = torch.func.jacrev(head)(x[0])
    torch.testing.assert_close(jacobian.mu, head.linear.weight[:4])


@heads
def test_compile(head: PosteriorHead, x: Tensor) -> None:
    expected = plain(head, x)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    q = compiled(x)
    assert_same(q, head(x))
    loss(q).backward()
    assert_gradients(head, expected)
    kl = torch.compile(lambda q: q.kl(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(kl(q), q.kl())


@heads
@pytest.mark.parametrize("strict", [False, True])
def test_export(head: PosteriorHead, x: Tensor, strict: bool, tmp_path: Path) -> None:
    rows = {0: torch.export.Dim("rows")}
    program = torch.export.export(head, (x,), dynamic_shapes=(rows,), strict=strict)
    torch.export.save(program, tmp_path / "head.pt2")
    loaded = torch.export.load(tmp_path / "head.pt2").module()
    more = torch.cat([x, x])
    assert_same(loaded(more), head(more))


class Encoder(nn.Module):
    """A layer that not every loss reaches, and a head."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = nn.Linear(3, 5)
        self.idle = nn.Linear(3, 5)
        self.head = make_posterior(name, 5, 4)

    def forward(self, x: Tensor) -> Posterior:
        q: Posterior = self.head(self.body(x))
        return q


TWO_PROCESSES = """
import copy, sys, warnings
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from rhovae_ext import fold_in
from tests.model.test_posterior_as_output import NAMES, Encoder

dist.init_process_group("gloo")
rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))

def loss(q, rows, row_offset):
    z, kl = q.rsample_kl(key=fold_in(3, 0), row_offset=row_offset)
    return ((z * torch.arange(1.0, 5.0)).sum(-1) + kl.square()).sum() / rows

for name in NAMES:
    torch.manual_seed(1)
    whole = Encoder(name).double()
    models = {how: copy.deepcopy(whole) for how in ("unused", "static", "sharded")}
    x = torch.randn(6, 3, dtype=torch.float64)
    loss(whole(x), 6, 0).backward()
    models["unused"] = DistributedDataParallel(models["unused"], find_unused_parameters=True)
    models["static"] = DistributedDataParallel(models["static"], static_graph=True)
    fully_shard(models["sharded"].head)
    fully_shard(models["sharded"])
    part = slice(0, 3) if rank == 0 else slice(3, 6)
    for how, model in models.items():
        q = model(x[part])
        loss(q, 3, 3 * rank).backward()
        mine = getattr(model, "module", model)
        for (label, a), b in zip(mine.named_parameters(), whole.parameters()):
            found = a.grad.full_tensor() if hasattr(a.grad, "full_tensor") else a.grad
            if b.grad is None:
                assert found is None or not found.any(), (name, how, label)
            else:
                torch.testing.assert_close(found, b.grad, msg=lambda m: f"{name} {how} {label}: {m}")
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    mixed = fully_shard(Encoder(name), mp_policy=policy)
    q = mixed(torch.randn(3, 3))
    assert q.mu.dtype == q.log_s.dtype == torch.float32, name
    q.kl().sum().backward()
    assert mixed.head.linear.weight.grad.full_tensor().abs().sum() > 0, name
dist.barrier()
print("done")
dist.destroy_process_group()
"""


def test_ddp_and_fsdp_on_two_processes(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    done = run_python(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--tee", "3", str(script)
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("done") == 2
