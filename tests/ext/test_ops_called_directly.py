"""The ops themselves, `torch.ops.rhovae.*`, with what no function of ours would hand them: answered rightly
or refused in one sentence, by the kernels and by the fake ones alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import rhovae_ext as R
from rhovae_ext import native
from tests.ext.conftest import DEVICES

pytestmark = pytest.mark.skipif(native.unavailable is not None, reason="needs the compiled module")

OPS = torch.ops.rhovae
MU, ROW = torch.zeros(4, 6), torch.ones(4)
HUGE = torch.zeros(1, 1)
KEY = torch.tensor([1, 2], dtype=torch.uint64)

FORWARD: dict[str, Any] = {
    "mu": MU,
    "scale": ROW,
    "rho": torch.zeros(4),
    "key": KEY,
    "eps": None,
    "num_samples": None,
    "row_offset": 0,
    "logits": False,
    "sample": True,
    "kl": 1,
}
BACKWARD: dict[str, Any] = {
    "dz": MU,
    "dkl": ROW,
    **{name: value for name, value in FORWARD.items() if name != "sample"},
    "needs_deps": False,
}
LOG_PROB: dict[str, Any] = {"z": MU, "mu": MU, "scale": ROW, "rho": torch.zeros(4), "logits": False}
LOG_PROB_BACKWARD: dict[str, Any] = {"dlog_prob": ROW, **LOG_PROB}
ARGUMENTS = {
    "ar1": FORWARD,
    "ar1_backward": BACKWARD,
    "ar1_log_prob": LOG_PROB,
    "ar1_log_prob_backward": LOG_PROB_BACKWARD,
}

# The op, what is changed of its arguments, the error, and the argument that the message names.
Hostile = tuple[str, dict[str, Any], type[Exception], str]
HOSTILE: dict[str, Hostile] = {
    "mu a scalar": ("ar1", {"mu": torch.tensor(1.0)}, ValueError, "mu"),
    "mu without steps": ("ar1", {"mu": torch.zeros(4, 0)}, ValueError, "mu"),
    "mu of integers": ("ar1", {"mu": MU.long()}, TypeError, "mu"),
    "mu of eight bits": ("ar1", {"mu": MU.to(torch.float8_e4m3fn)}, TypeError, "mu"),
    "mu complex": ("ar1", {"mu": MU.to(torch.complex64)}, TypeError, "mu"),
    "mu past all": ("ar1", {"mu": HUGE.expand(2**60, 1)}, ValueError, "mu"),
    "scale of float64": ("ar1", {"scale": ROW.double()}, TypeError, "scale"),
    "scale of d + 1": ("ar1", {"scale": torch.ones(4, 7)}, ValueError, "scale"),
    "scale of a rank too few": ("ar1", {"mu": MU[None], "scale": ROW}, ValueError, "scale"),
    "scale of other rows": ("ar1", {"scale": torch.ones(3, 1)}, ValueError, "scale"),
    "rho of d values": ("ar1", {"rho": torch.zeros(4, 6)}, ValueError, "rho"),
    "rho of another half": ("ar1", {"mu": MU.bfloat16(), "rho": ROW.half()}, TypeError, "rho"),
    "no samples": ("ar1", {"num_samples": 0}, ValueError, "num_samples"),
    "fewer than none": ("ar1", {"num_samples": -(2**63)}, ValueError, "num_samples"),
    "samples past the address space": ("ar1", {"num_samples": 2**62}, ValueError, "num_samples"),
    "as many with no z": ("ar1", {"num_samples": 2**62, "sample": False}, ValueError, "num_samples"),
    "kl 3": ("ar1", {"kl": 3}, ValueError, "kl"),
    "kl -1": ("ar1", {"kl": -1}, ValueError, "kl"),
    "kl 2^40 + 1": ("ar1", {"kl": 2**40 + 1}, ValueError, "kl"),
    "kl -2^63": ("ar1_backward", {"kl": -(2**63)}, ValueError, "kl"),
    "no noise": ("ar1", {"key": None}, ValueError, "key"),
    "no noise backward": ("ar1_backward", {"key": None}, ValueError, "key"),
    "a key of floats": ("ar1", {"key": torch.zeros(2)}, ValueError, "key"),
    "a long key": ("ar1", {"key": torch.zeros(3, dtype=torch.uint64)}, ValueError, "key"),
    "keys of other rows": ("ar1", {"key": torch.zeros(3, 2, dtype=torch.uint64)}, ValueError, "key"),
    "keys of more axes": ("ar1", {"key": torch.zeros(1, 1, 2, dtype=torch.uint64)}, ValueError, "key"),
    "too few eps": ("ar1", {"num_samples": 3, "eps": torch.zeros(2, 4, 6)}, ValueError, "eps"),
    "eps without samples": ("ar1", {"num_samples": 3, "eps": MU}, ValueError, "eps"),
    "eps of samples": ("ar1", {"eps": torch.zeros(3, 4, 6)}, ValueError, "eps"),
    "eps of other rows": ("ar1", {"eps": torch.zeros(1, 6)}, ValueError, "eps"),
    "eps of float64": ("ar1", {"eps": MU.double()}, TypeError, "eps"),
    "eps of bfloat16": ("ar1", {"eps": MU.bfloat16()}, TypeError, "eps"),
    "too few dz": ("ar1_backward", {"num_samples": 3, "dz": torch.zeros(2, 4, 6)}, ValueError, "dz"),
    "dz without samples": ("ar1_backward", {"num_samples": 2}, ValueError, "dz"),
    "too few eps backward": (
        "ar1_backward",
        {"num_samples": 3, "dz": torch.zeros(3, 4, 6), "eps": torch.zeros(2, 4, 6)},
        ValueError,
        "eps",
    ),
    "dz of float64": ("ar1_backward", {"dz": MU.double()}, TypeError, "dz"),
    "dz of float32 for bfloat16": ("ar1_backward", {"mu": MU.bfloat16()}, TypeError, "dz"),
    "samples of dz past all": (
        "ar1_backward",
        {"num_samples": 2**58, "dz": HUGE.expand(2**58, 4, 6)},
        ValueError,
        "num_samples",
    ),
    "dkl of the other kind": ("ar1_backward", {"dkl": MU}, ValueError, "dkl"),
    "and the other way": ("ar1_backward", {"kl": 2}, ValueError, "dkl"),
    "dkl to be broadcast": ("ar1_backward", {"dkl": ROW[:1]}, ValueError, "dkl"),
    "dkl of no kind": ("ar1_backward", {"kl": 0}, ValueError, "dkl"),
    "dkl of float64": ("ar1_backward", {"dkl": ROW.double()}, TypeError, "dkl"),
    "deps of no eps": ("ar1_backward", {"needs_deps": True}, ValueError, "eps"),
    "z of float64": ("ar1_log_prob", {"z": MU.double()}, TypeError, "z"),
    "z of float16": ("ar1_log_prob_backward", {"z": MU.half()}, TypeError, "z"),
    "z of d + 1": ("ar1_log_prob", {"z": torch.zeros(4, 7)}, ValueError, "z"),
    "z a scalar": ("ar1_log_prob", {"z": torch.zeros(())}, ValueError, "z"),
    "z of other rows": ("ar1_log_prob", {"z": torch.zeros(3, 6)}, ValueError, "z"),
    "z past all": ("ar1_log_prob", {"z": HUGE.expand(2**58, 4, 6)}, ValueError, "mu"),
    "dlog_prob of other rows": ("ar1_log_prob_backward", {"dlog_prob": ROW[:3]}, ValueError, "dlog_prob"),
    "dlog_prob one for all": ("ar1_log_prob_backward", {"dlog_prob": ROW[0]}, ValueError, "dlog_prob"),
    "dlog_prob of float64": ("ar1_log_prob_backward", {"dlog_prob": ROW.double()}, TypeError, "dlog_prob"),
}


def refused(call: Callable[[], Any], error: type[Exception], op: str, argument: str) -> None:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(f"rhovae::{op}: "), message
    assert argument in message
    assert "but got" in message
    assert len(message) < 600
    assert "\n" not in message


def changed(what: str) -> tuple[str, dict[str, Any], type[Exception], str]:
    op, changes, error, argument = HOSTILE[what]
    return op, {**ARGUMENTS[op], **changes}, error, argument


def on(device: str, arguments: dict[str, Any]) -> list[Any]:
    moves = device != "cpu"
    return [
        value.to(device) if moves and isinstance(value, Tensor) else value for value in arguments.values()
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("what", HOSTILE)
def test_refused(what: str, device: str) -> None:
    op, arguments, error, argument = changed(what)
    if device != "cpu" and "past all" in what:
        pytest.skip("so many are not moved")
    given = on(device, arguments)
    refused(lambda: getattr(OPS, op)(*given), error, op, argument)
    with torch.inference_mode():  # past the autograd
        refused(lambda: getattr(OPS, op)(*given), error, op, argument)


@pytest.mark.parametrize("prefix", ["", "triton_"])
@pytest.mark.parametrize("what", HOSTILE)
def test_the_fake_kernels_refuse_the_same(what: str, prefix: str) -> None:
    op, arguments, error, argument = changed(what)
    as_meta = [
        torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        if isinstance(value, Tensor)
        else value
        for value in arguments.values()
    ]
    refused(lambda: getattr(OPS, prefix + op)(*as_meta), error, prefix + op, argument)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in arguments.values()]
        refused(lambda: getattr(OPS, prefix + op)(*fake), error, prefix + op, argument)


@pytest.mark.parametrize("prefix", ["", "triton_"])
@pytest.mark.parametrize("op", ARGUMENTS)
def test_every_tensor_on_one_device(op: str, prefix: str) -> None:
    """One tensor elsewhere, among others on the CPU or the other way round."""
    arguments = {**ARGUMENTS[op]}
    if "eps" in arguments:
        arguments["eps"] = MU
    tensors = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    for name in tensors:
        one = {**arguments, name: arguments[name].to("meta")}
        refused(lambda one=one: getattr(OPS, prefix + op)(*one.values()), ValueError, prefix + op, "on")  # type: ignore[misc]
        if name != "key":
            others = {n: v.to("meta") if n in tensors and n != name else v for n, v in arguments.items()}
            refused(
                lambda others=others: getattr(OPS, prefix + op)(*others.values()),  # type: ignore[misc]
                ValueError,
                prefix + op,
                "on",
            )


def _odd_tensors() -> dict[str, tuple[Tensor, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of prototypes
        return {
            "coo": (MU.to_sparse(), "Sparse"),
            "csr": (MU.to_sparse_csr(), "SparseCsr"),
            "mkldnn": (MU.to_mkldnn(), "Mkldnn"),
            "quantised": (torch.quantize_per_tensor(MU, 0.1, 0, torch.quint8), "quantized"),
            "nested": (torch.nested.nested_tensor([MU[0], MU[1]]), "nested"),
            "jagged": (torch.nested.nested_tensor([MU[0], MU[1, :3]], layout=torch.jagged), "nested"),
        }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["coo", "csr", "mkldnn", "quantised", "nested", "jagged"])
@pytest.mark.parametrize("prefix", ["", "triton_"])
def test_dense_tensors_alone(kind: str, prefix: str) -> None:
    odd, said = _odd_tensors()[kind]
    for op, arguments in ARGUMENTS.items():
        for name in (n for n, value in arguments.items() if isinstance(value, Tensor) and n != "key"):
            one = {**arguments, name: odd}
            call = lambda one=one, op=op: getattr(OPS, prefix + op)(*one.values())  # noqa: E731
            refused(call, TypeError, prefix + op, f"{name} must be a dense tensor")
            refused(call, TypeError, prefix + op, f"a {said} tensor")
            with torch.inference_mode():
                refused(call, TypeError, prefix + op, f"a {said} tensor")
    refused(lambda: OPS.draw_key(odd), TypeError, "draw_key", f"a {said} tensor")
    for function in (R.ar1_kl, R.ar1_reparam, R.ar1_kl_with_logits):
        with pytest.raises(TypeError, match=rf"^{function.__name__}: mu must be (a dense tensor|float32)"):
            function(odd, 0.5, 0.5)
        with pytest.raises((TypeError, ValueError)) as caught:  # by the function or by the op
            function(MU, odd, 0.5)
        message = str(caught.value)
        assert message.startswith((f"{function.__name__}: ", "rhovae::ar1: "))
        assert "must be" in message
        assert len(message) < 600


def test_more_than_the_memory() -> None:
    for n, mu in ((2**45, MU), (None, HUGE.expand(1, 2**45))):
        refused(
            lambda n=n, mu=mu: OPS.ar1(mu, ROW[:1, None], ROW[0] * 0, KEY, None, n, 0, False, True, 1),  # type: ignore[misc]
            torch.OutOfMemoryError,
            "ar1",
            "memory",
        )


def test_a_generator_of_another_device() -> None:
    refused(lambda: OPS.draw_key(MU.to("meta"), torch.Generator()), ValueError, "draw_key", "generator")


def test_answers_at_the_edge() -> None:
    """What is allowed comes out as by the functions: zero and negated tensors, views, any row offset."""
    torch.manual_seed(0)
    mu = torch.randn(4, 6)
    expected = R.ar1_reparam_kl(mu, ROW, ROW * 0.5, key=(1, 2), row_offset=2**64 - 1)

    def ar1(mu: Tensor, scale: Tensor, offset: int) -> Any:
        return OPS.ar1(mu, scale, ROW * 0.5, KEY, None, None, offset, False, True, 1)

    negated = torch.complex(MU, -mu).conj().imag
    assert negated.is_neg()
    for given in (mu, negated, mu.t().contiguous().t(), torch.cat((mu, mu), 1)[:, :6]):
        for actual, wanted in zip(ar1(given, ROW, -1), expected, strict=True):
            assert torch.equal(actual, wanted)
    zero = torch._efficientzerotensor(4, 6)
    assert torch.equal(ar1(zero, ROW, 0)[0], ar1(MU, ROW, 0)[0])
    assert torch.equal(ar1(mu, torch.ones(1).expand(4), 7)[0], ar1(mu, ROW, 7)[0])
    nothing = OPS.ar1_backward(None, None, mu, ROW, ROW * 0.5, None, None, None, 0, False, 1, False)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in nothing)
    many = OPS.ar1(mu, ROW, ROW * 0.5, None, None, 2**40, 0, False, False, 1)
    assert torch.equal(many[1], R.ar1_kl(mu, ROW, ROW * 0.5))
    kl_alone = OPS.ar1_backward(None, ROW, mu, ROW, ROW * 0.5, None, None, 2**40, 0, False, 1, False)
    assert torch.equal(kl_alone[0], mu)


@pytest.mark.parametrize("size", [1, 2])
def test_more_axes_than_are_followed(size: int) -> None:
    """Nine leading axes that no two operands walk alike; an axis of one may have any stride."""
    lead = (2, 2, 2, 2, 2, 2, 2, 2, size)
    torch.manual_seed(1)
    whole = torch.randn(*reversed(lead), 6).permute(*range(8, -1, -1), 9)
    mu = whole.as_strided(whole.shape, (*whole.stride()[:8], 1 << 20 if size == 1 else whole.stride(8), 1))
    scale = torch.rand(*lead[:4], 1, 1, 1, 1, 1, 1) + 0.5
    eps = torch.randn(3, *lead, 6)
    z, kl = OPS.ar1(mu, scale, torch.tensor(0.5), None, eps, 3, 0, False, True, 1)
    expected = R.ar1_reparam_kl(mu.contiguous(), scale, 0.5, eps=eps, num_samples=3, backend="reference")
    torch.testing.assert_close(z, expected[0])
    torch.testing.assert_close(kl, expected[1])


def test_the_default_device_changes_nothing(backend: str) -> None:
    mu = torch.randn(4, 6)
    expected = R.ar1_reparam(mu, 1.0, 0.5, key=(1, 2), num_samples=2, backend=backend)
    with torch.device("meta"):
        actual = R.ar1_reparam(mu, 1.0, 0.5, key=(1, 2), num_samples=2, backend=backend)
        drawn = R.ar1_reparam(mu, 1.0, 0.5, backend=backend)
    assert torch.equal(actual, expected)
    assert drawn.device == mu.device


def test_meta_tensors_give_shapes_in_silence() -> None:
    mu = torch.zeros(4, 6, device="meta")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z, kl = R.ar1_reparam_kl(mu, 1.0, 0.5, num_samples=3, key=(1, 2))
        log_prob = R.ar1_log_prob(z, mu, 1.0, 0.5)
    assert (z.shape, kl.shape, log_prob.shape) == ((3, 4, 6), (4,), (3, 4))
    assert z.is_meta
