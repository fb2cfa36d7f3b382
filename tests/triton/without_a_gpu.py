"""Run by test_compiled in a process of its own, where Triton compiles and does not interpret: what
torch.compile traces, and how many compilations fifty shapes ask for. No kernel is run. Prints a line of JSON.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
from torch import Tensor
from torch._functorch.aot_autograd import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from rhovae_ext.triton import ops


class Target:
    """In place of a driver: it names a GPU, and has none."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def traced(d: int, dynamic: bool) -> dict[str, list[str]]:
    """The calls in the graphs of a forward and a backward."""
    graphs: dict[str, list[str]] = {}

    def keep(name: str) -> Any:
        def compiler(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
            graphs[name] = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
            return graph.forward

        return compiler

    def function(mu: Tensor, log_s: Tensor, logit: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        z, kl = torch.ops.rhovae.triton_ar1.default(mu, log_s, logit, key, None, 2, 0, True, True, 1)
        return z, kl, torch.ops.rhovae.triton_ar1_log_prob.default(z, mu, log_s, logit, True)

    with FakeTensorMode():
        inputs = [torch.empty(shape, requires_grad=True) for shape in ((8, d), (8,), (8, d - 1))]
        key = torch.empty(2, dtype=torch.uint64)
        compiled: Any = aot_function(
            function, fw_compiler=keep("forward"), bw_compiler=keep("backward"), dynamic=dynamic
        )
        torch.autograd.grad([value.sum() for value in compiled(*inputs, key)], inputs)
    return graphs


def compilations() -> dict[str, int]:
    """Of each kernel, over fifty shapes of one set of options, strides of every alignment among them."""
    counts: dict[str, int] = {}

    def count(self: JITFunction, key: Any, *_rest: Any, **_options: Any) -> None:
        counts[self.fn.__name__] = counts.get(self.fn.__name__, 0) + 1
        self.device_caches[0][0][key] = object()

    JITFunction._do_compile = count

    def launch(kernel: Any, grid: Any, _like: Tensor, arguments: dict[str, Any]) -> None:
        kernel.warmup(grid=grid, **arguments)

    shapes = [(rows, d) for rows in (1, 2, 7, 16, 513) for d in (1, 5, 10, 16, 33, 64, 200, 255, 256, 1000)]
    assert len(shapes) == 50
    for rows, d in shapes:
        head = torch.zeros(rows, d + 2)
        mu, log_s, logit = head[:, :d], head[:, d], head[:, d + 1]
        key, sums = torch.zeros(2, dtype=torch.uint64), torch.zeros(rows)
        for number in range(3):
            ops.ar1(launch, mu, log_s, logit, key, None, None, 2**40 * number, True, True, 1)
            ops.ar1_backward(launch, mu, sums, mu, log_s, logit, key, None, None, number, True, 1, False)
            mu = mu.contiguous()
    return counts


if __name__ == "__main__":
    triton.runtime.driver.set_active(Target())
    graphs = {
        "short": traced(10, dynamic=False),
        "dynamic": traced(10, dynamic=True),
        "long": traced(10_000, dynamic=False),
    }
    print(json.dumps({"graphs": graphs, "compilations": compilations()}))
