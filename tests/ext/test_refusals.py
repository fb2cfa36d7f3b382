"""Bad input is refused before any work: the operation, the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import rhovae_ext as R

MU = torch.zeros(4, 5)
S = torch.ones(4)
RHO = torch.zeros(4)
META = {"device": "meta"}

Call = Callable[..., Any]

SAMPLERS = (R.ar1_reparam, R.ar1_reparam_kl, R.ar1_reparam_kl_with_logits)
DIVERGENCES = (R.ar1_kl, R.ar1_kl_with_logits)

# mu, s, rho, the error, and the words of the message in their order.
PARAMETERS: dict[str, tuple[Any, Any, Any, type[Exception], tuple[str, ...]]] = {
    "mu is a list": ([0.0], S, RHO, TypeError, ("mu must be a tensor", "list")),
    "mu of integers": (MU.long(), S, RHO, TypeError, ("mu must be float32", "torch.int64", "mu.float()")),
    "mu complex": (MU.to(torch.complex64), S, RHO, TypeError, ("mu must be float32", "torch.complex64")),
    "mu a scalar": (torch.tensor(1.0), 1.0, 0.0, ValueError, ("mu must be of shape (..., d)", "shape ()")),
    "d = 0": (torch.zeros(4, 0), S, RHO, ValueError, ("mu must be of shape (..., d) with d >= 1", "(4, 0)")),
    "scale is text": (MU, "1", RHO, TypeError, ("{s} must be a tensor or a number", "str '1'")),
    "scale is a bool": (MU, True, RHO, TypeError, ("{s} must be a tensor or a number", "bool True")),
    "scale of integers": (MU, S.long(), RHO, TypeError, ("{s} must be float32", "torch.int64")),
    "scale of more digits": (MU, S.double(), RHO, TypeError, ("{s} must be float32", "torch.float64")),
    "scale in another half type": (
        MU.bfloat16(),
        S.half(),
        RHO,
        TypeError,
        ("{s} must be torch.bfloat16 (as mu) or float32", "torch.float16"),
    ),
    "scale of d values": (
        MU,
        torch.ones(5),
        RHO,
        ValueError,
        ("{s} must be", "mu.shape[:-1] = (4,)", "shape (5,)", "{s}[None]", "{s}[..., None]"),
    ),
    "scale of d + 1": (
        MU,
        torch.ones(4, 6),
        RHO,
        ValueError,
        ("{s} must be a number, one value per row", "(..., 5)", "(4, 6)", "(4, 5)"),
    ),
    "scale of another rank": (
        torch.zeros(2, 4, 5),
        torch.ones(4, 1)[0],
        RHO[:1],
        ValueError,
        ("{s} must be", "(1,)"),
    ),
    "rho of d values": (
        MU,
        S,
        torch.zeros(4, 5),
        ValueError,
        ("{rho} must be", "(..., d-1) = (..., 4)", "shape (4, 5)"),
    ),
    "rho of other rows": (
        MU,
        S,
        torch.zeros(3, 1),
        ValueError,
        ("leading axes of mu, {s} and {rho}", "(3, 1)"),
    ),
    "rho of integers": (MU, S, RHO.int(), TypeError, ("{rho} must be float32", "torch.int32")),
    "scale elsewhere": (MU, S.to("meta"), RHO, ValueError, ("{s} must be on mu's device, cpu", "meta")),
    "rho elsewhere": (MU, S, RHO.to("meta"), ValueError, ("{rho} must be on mu's device, cpu", "meta")),
}

KEY_EXPECTED = "key must be a seed, a (seed, offset) pair of ints or a uint64 tensor of shape (2,)"
SAMPLING: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "no samples": ({"num_samples": 0}, ValueError, ("num_samples must be an int >= 1", "int 0")),
    "half a sample": ({"num_samples": 1.5}, ValueError, ("num_samples must be an int >= 1", "float 1.5")),
    "true samples": ({"num_samples": True}, ValueError, ("num_samples must be an int >= 1", "bool True")),
    "rows before the first": (
        {"row_offset": -1},
        ValueError,
        ("row_offset must be an int in [0, 2^64)", "-1"),
    ),
    "rows past the last": ({"row_offset": 2**64}, ValueError, ("row_offset must be an int in [0, 2^64)",)),
    "samples past 64 bits": ({"num_samples": 2**63}, ValueError, ("num_samples must be an int", "2^56")),
    "a float of samples": ({"num_samples": 1e3}, ValueError, ("num_samples must be an int >= 1", "1000.0")),
    "samples as text": ({"num_samples": "3"}, ValueError, ("num_samples must be an int >= 1", "str '3'")),
    "a tensor of samples": (
        {"num_samples": torch.tensor(3)},
        ValueError,
        ("num_samples must be an int >= 1", "torch.int64 tensor"),
    ),
    "the first row as a float": ({"row_offset": 0.0}, ValueError, ("row_offset must be an int", "float 0.0")),
    "rows as a bool": ({"row_offset": False}, ValueError, ("row_offset must be an int", "bool False")),
    "a tensor of rows": (
        {"row_offset": torch.arange(4)},
        ValueError,
        ("row_offset must be an int", "torch.int64 tensor of shape (4,)"),
    ),
    "an array of rows": ({"row_offset": np.arange(4)}, ValueError, ("row_offset must be an int", "ndarray")),
    "a row of too many digits": ({"row_offset": 10**5000}, ValueError, ("row_offset must be", "digits")),
    "a seed of floats": ({"key": (0.0, 1)}, ValueError, ("key's seed must be an int", "float 0.0")),
    "an offset as a bool": ({"key": (0, True)}, ValueError, ("key's offset must be an int", "bool True")),
    "a pair in a pair": ({"key": ((1, 2), 3)}, ValueError, ("key's seed must be an int", "tuple (1, 2)")),
    "a key as text": ({"key": "12"}, ValueError, (KEY_EXPECTED, "str '12'")),
    "a key of floats": ({"key": np.zeros(2)}, ValueError, ("key's seed must be an int",)),
    "an array of three": ({"key": np.zeros(3, np.uint64)}, ValueError, (KEY_EXPECTED, "ndarray")),
    "half a row": ({"row_offset": 0.5}, ValueError, ("row_offset must be an int", "float 0.5")),
    "a negative seed alone": ({"key": -7}, ValueError, ("key's seed must be an int in [0, 2^64)", "int -7")),
    "a broken seed": ({"key": 7.0}, ValueError, (KEY_EXPECTED, "float 7.0")),
    "keys of too few axes": (
        {"key": torch.zeros(1, 2, dtype=torch.uint64)[None, None]},
        ValueError,
        ("key must be of shape (2,), or a key per row: of shape (", "shape (1, 1, 1, 2)", "key[:, None]"),
    ),
    "three numbers": ({"key": (1, 2, 3)}, ValueError, (KEY_EXPECTED, "tuple (1, 2, 3)")),
    "a signed key": ({"key": torch.zeros(2, dtype=torch.int64)}, ValueError, (KEY_EXPECTED, "torch.int64")),
    "a long key": ({"key": torch.zeros(3, dtype=torch.uint64)}, ValueError, (KEY_EXPECTED, "(3,)")),
    "a key elsewhere": (
        {"key": torch.zeros(2, dtype=torch.uint64, **META)},  # type: ignore[call-overload]
        ValueError,
        ("key must be on mu's device, cpu", "meta"),
    ),
    "a negative seed": ({"key": (-1, 0)}, ValueError, ("key's seed must be an int in [0, 2^64)", "-1")),
    "a large offset": ({"key": (0, 2**64)}, ValueError, ("key's offset must be an int in [0, 2^64)",)),
    "two sources": (
        {"key": (1, 2), "generator": torch.Generator()},
        ValueError,
        ("at most one of key, eps and generator", "key and generator"),
    ),
    "eps and key": ({"key": (1, 2), "eps": MU}, ValueError, ("at most one", "key and eps")),
    "a seed as generator": (
        {"generator": 7},
        TypeError,
        ("generator must be a torch.Generator", "int 7", "key="),
    ),
    "eps of another shape": ({"eps": torch.zeros(4, 1)}, ValueError, ("eps", "z's shape (4, 5)", "(4, 1)")),
    "eps without samples": (
        {"eps": MU, "num_samples": 3},
        ValueError,
        ("eps must be a tensor of z's shape (3, 4, 5)", "(4, 5)"),
    ),
    "eps a number": ({"eps": 0.0}, ValueError, ("eps must be a tensor of z's shape (4, 5)", "float 0.0")),
    "eps of more digits": ({"eps": MU.double()}, TypeError, ("eps must be torch.float32", "torch.float64")),
    "eps elsewhere": ({"eps": MU.to("meta")}, ValueError, ("eps must be on mu's device, cpu", "meta")),
    "an unknown backend": (
        {"backend": "cuda"},
        ValueError,
        ("backend must be one of 'auto', 'native', 'triton', 'reference'", "'cuda'"),
    ),
}


def refused(call: Callable[[], Any], error: type[Exception], operation: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(f"{operation}: "), message
    place = 0
    for part in parts:
        place = message.find(part, place)
        assert place >= 0, f"{part!r} is not (in this order) in {message!r}"


@pytest.mark.parametrize("what", PARAMETERS)
def test_parameters(what: str, backend: str) -> None:
    mu, s, rho, error, parts = PARAMETERS[what]
    for function in (*SAMPLERS, *DIVERGENCES):
        logits = function.__name__.endswith("logits")
        names = {"s": "log_s", "rho": "rho_logit"} if logits else {"s": "s", "rho": "rho"}
        expected = tuple(part.replace("{s}", names["s"]).replace("{rho}", names["rho"]) for part in parts)
        refused(lambda f=function: f(mu, s, rho, backend=backend), error, function.__name__, expected)  # type: ignore[misc]


@pytest.mark.parametrize("what", SAMPLING)
@pytest.mark.parametrize("function", SAMPLERS, ids=lambda f: f.__name__)
def test_sampling(what: str, function: Call) -> None:
    options, error, parts = SAMPLING[what]
    refused(lambda: function(MU, S, RHO, **options), error, function.__name__, parts)


@pytest.mark.parametrize("function", [R.ar1_log_prob, R.ar1_log_prob_with_logits], ids=lambda f: f.__name__)
def test_points(function: Call, backend: str) -> None:
    for z, error, parts in (
        ([0.0], TypeError, ("z must be a tensor", "list")),
        (MU.double(), TypeError, ("z must be torch.float32 (as mu)", "torch.float64")),
        (MU.to("meta"), ValueError, ("z must be on mu's device, cpu", "meta")),
        (torch.zeros(4, 6), ValueError, ("z must be of shape (..., d) with d = 5", "(4, 6)")),
        (torch.zeros(()), ValueError, ("z must be of shape (..., d) with d = 5", "shape ()")),
        (torch.zeros(3, 5), ValueError, ("z must be of leading axes that broadcast with (4,)", "(3, 5)")),
    ):
        refused(lambda z=z: function(z, MU, S, RHO, backend=backend), error, function.__name__, parts)  # type: ignore[misc]


def test_entropy() -> None:
    for s, rho, error, parts in (
        (1.0, 0.0, TypeError, ("s must be a tensor", "float 1.0")),
        (MU.long(), 0.0, TypeError, ("s must be float32", "torch.int64", "s.float()")),
        (torch.ones(()), 0.0, ValueError, ("s must be of shape (..., d)", "shape ()")),
        (MU, torch.zeros(4, 5), ValueError, ("rho must be", "s.shape[:-1]", "s has shape (4, 5)")),
        (MU, torch.zeros(3), ValueError, ("rho must be", "s.shape[:-1] = (4,)", "shape (3,)")),
        (MU, torch.zeros(3, 1), ValueError, ("leading axes of s and rho", "(4, 5) and (3, 1)")),
        (MU, RHO.to("meta"), ValueError, ("rho must be on s's device", "meta")),
    ):
        refused(lambda s=s, rho=rho: R.ar1_entropy(s, rho), error, "ar1_entropy", parts)  # type: ignore[misc]


NUMBERS: dict[str, tuple[str, Any]] = {
    "s -1": ("s", -1),
    "s -0.5": ("s", np.float32(-0.5)),
    "s infinite": ("s", float("inf")),
    "s past float32": ("s", 1e39),
    "s of many digits": ("s", 10**400),
    "rho 1": ("rho", 1),
    "rho -1.5": ("rho", -1.5),
    "rho rounds to 1": ("rho", 1.0 - 2.0**-25),
    "rho infinite": ("rho", np.float64("-inf")),
    "rho of many digits": ("rho", -(10**400)),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_out_of_range(what: str, backend: str) -> None:
    name, number = NUMBERS[what]
    values = {"s": 1.0, "rho": 0.5, name: number}
    for function in (R.ar1_reparam, R.ar1_reparam_kl, R.ar1_kl):
        refused(
            lambda f=function: f(MU, **values, backend=backend),  # type: ignore[misc]
            ValueError,
            function.__name__,
            (f"{name} must be",),
        )
    refused(
        lambda: R.ar1_log_prob(MU, MU, **values, backend=backend),
        ValueError,
        "ar1_log_prob",
        (f"{name} must",),
    )
    if name == "rho":
        refused(lambda: R.ar1_entropy(MU + 1, number), ValueError, "ar1_entropy", ("rho must be",))


def test_numbers_within_range(backend: str) -> None:
    """NaN in, NaN out; s = 0 draws mu; float64 is as near to 1 as it can be; any logit will do."""
    assert R.ar1_reparam(MU, float("nan"), 0.5, backend=backend).isnan().all()
    assert R.ar1_kl(MU, 1.0, float("nan"), backend=backend).isnan().all()
    assert torch.equal(R.ar1_reparam(MU, 0, 0.5, backend=backend), MU)
    refused(lambda: R.ar1_log_prob(MU, MU, 0.0, 0.5), ValueError, "ar1_log_prob", ("s must be", "> 0"))
    assert R.ar1_kl(MU.double(), 1.0, 1.0 - 2.0**-53, backend=backend).isfinite().all()
    for logit in (1.5, -90, 1e39, -(10**400)):
        z, _ = R.ar1_reparam_kl_with_logits(MU, 0, logit, backend=backend)
        assert z.isfinite().all()


def test_numbers_of_numpy(backend: str) -> None:
    """NumPy's scalars, arrays of none and integers stand for Python's."""
    key = (2**64 - 1, 7)
    numbers: list[tuple[Any, Any]] = [
        (2, np.float64(0.5)),
        (np.float32(2), np.array(0.5)),
        (np.int64(2), np.float16(0.5)),
    ]
    pairs: list[Any] = [np.array(key, np.uint64), tuple(np.array(key, np.uint64)), list(key)]
    expected = R.ar1_reparam_kl(MU, 2.0, 0.5, key=key, num_samples=3, row_offset=2**63, backend=backend)
    for s, rho in numbers:
        for pair in pairs:
            actual = R.ar1_reparam_kl(
                MU,
                s,
                rho,
                key=pair,
                num_samples=np.int64(3),
                row_offset=np.uint64(2**63),
                backend=backend,
            )
            for one, other in zip(actual, expected, strict=True):
                assert torch.equal(one, other)
    for truth in (True, np.bool_(True)):
        refused(lambda t=truth: R.ar1_kl(MU, t, 0.5), TypeError, "ar1_kl", ("s must be a tensor", "True"))  # type: ignore[misc]


def test_ranks_decide_when_the_batch_is_as_long_as_d() -> None:
    """s of rank one less than mu's is one value per row, even where it could be one per step."""
    mu = torch.zeros(5, 5)
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    kl = R.ar1_kl(mu, values, 0.0, backend="reference")
    assert torch.equal(kl, R.ar1_kl(mu, values[:, None].expand(5, 5), 0.0, backend="reference"))
    assert not torch.equal(kl, R.ar1_kl(mu, values[None, :], 0.0, backend="reference"))


def test_a_generator_on_another_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a second device with generators of its own: no CUDA")
    generator = torch.Generator("cuda")
    parts = ("generator must be on mu's device, cpu", "cuda", "torch.Generator('cpu')")
    refused(lambda: R.ar1_reparam(MU, S, RHO, generator=generator), ValueError, "ar1_reparam", parts)
