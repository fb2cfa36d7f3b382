"""Derived keys: known answers, shapes, uses and refusals."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import rhovae_ext
from rhovae_ext import fold_in, split
from tests.conftest import VECTORS

KEYS = [(0, 0), (7, 0), (2**64 - 1, 2**64 - 1), (2**63, 2**32 - 1)]
DATA = [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def key_tensor(*pairs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.uint64)


def numbers(key: torch.Tensor) -> list[int]:
    assert key.dtype is torch.uint64
    return [int(value) for value in key.flatten().tolist()]


def words_in_integers(seed: int, position: int) -> list[int]:
    """Philox4x32-10 of row 0 in Python's own integers."""
    low, high = seed & 0xFFFFFFFF, seed >> 32
    w = [position & 0xFFFFFFFF, position >> 32 & 0xFFFFFFFF, 0, 0]
    for _ in range(10):
        p0, p1 = w[0] * 0xD2511F53, w[2] * 0xCD9E8D57
        w = [p1 >> 32 ^ w[1] ^ low, p1 & 0xFFFFFFFF, p0 >> 32 ^ w[3] ^ high, p0 & 0xFFFFFFFF]
        low, high = low + 0x9E3779B9 & 0xFFFFFFFF, high + 0xBB67AE85 & 0xFFFFFFFF
    return w


def folded_in_integers(key: tuple[int, int], data: int) -> list[int]:
    w = words_in_integers(key[0], (key[1] + data) % 2**64)
    return [w[0] | w[1] << 32, w[2] | w[3] << 32]


def key_answers() -> list[dict[str, Any]]:
    path = VECTORS / "keys.json"
    if not path.is_file():
        pytest.skip(f"no known answers at {path}: set RHOVAE_VECTORS to their folder")
    answers: list[dict[str, Any]] = json.loads(path.read_text())
    return answers


def test_known_answers(device: str) -> None:
    answers = key_answers()
    assert len(answers) == 5
    for answer in answers:
        seed, offset = (int(value) for value in answer["key"])
        derived = fold_in(key_tensor((seed, offset))[0].to(device), int(answer["data"]))
        assert derived.shape == (2,)
        assert derived.device.type == device
        assert numbers(derived) == [int(value) for value in answer["folded"]]
        expected = torch.tensor(answer["eps_row_3"], device=device, dtype=torch.float64)
        drawn = rhovae_ext.ar1_reparam(
            torch.zeros(1, len(expected), device=device), 1.0, 0.0, key=derived, row_offset=3
        )
        assert float((drawn[0] - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_whole_range_of_keys_and_data(key: tuple[int, int]) -> None:
    for data in DATA:
        expected = folded_in_integers(key, data)
        assert numbers(fold_in(key, data)) == expected
        assert numbers(fold_in(list(key), data)) == expected  # type: ignore[arg-type]
        assert numbers(fold_in(key_tensor(key)[0], torch.tensor(data, dtype=torch.uint64))) == expected
    assert numbers(fold_in(key, torch.tensor(-1))) == folded_in_integers(key, 2**64 - 1)
    assert numbers(fold_in(key, torch.tensor(200, dtype=torch.uint8))) == folded_in_integers(key, 200)


def test_a_seed_alone_has_offset_0() -> None:
    assert torch.equal(fold_in(2**64 - 1, 3), fold_in((2**64 - 1, 0), 3))
    assert torch.equal(split(5, 3), split((5, 0), 3))


def test_shapes_broadcast(device: str) -> None:
    keys = key_tensor(*KEYS).to(device)
    for shape, data in (
        ((4, 2), 9),
        ((4, 2), torch.arange(4, device=device)),
        ((3, 4, 2), torch.arange(3, device=device)[:, None]),
        ((0, 4, 2), torch.empty(0, 1, dtype=torch.int64, device=device)),
    ):
        derived = fold_in(keys, data)
        assert derived.shape == shape
        rows = torch.as_tensor(data, device=device).expand(shape[:-1]).flatten().tolist()
        got = [numbers(key) for key in derived.reshape(-1, 2)]
        assert got == [folded_in_integers(KEYS[i % 4], value) for i, value in enumerate(rows)]


def test_strided_keys() -> None:
    strided = key_tensor(*KEYS).T.contiguous().T
    assert strided.stride() != (2, 1)
    assert torch.equal(fold_in(strided, 5), fold_in(strided.contiguous(), 5))
    assert torch.equal(split(strided[::2], 3), split(strided[::2].clone(), 3))


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_split_folds_in_the_numbers_in_order(key: tuple[int, int], device: str) -> None:
    keys = split(key_tensor(key)[0].to(device), 5)
    assert keys.shape == (5, 2)
    assert keys.device.type == device
    assert [numbers(each) for each in keys] == [folded_in_integers(key, i) for i in range(5)]
    batch = key_tensor(*KEYS).to(device)
    assert torch.equal(split(batch, 3), torch.stack([fold_in(batch, i) for i in range(3)]))
    assert split(key).shape == (2, 2)


def test_pairs_follow_the_data(device: str) -> None:
    assert fold_in(7, torch.arange(3, device=device)).device.type == device


def test_integers_of_numpy() -> None:
    expected = fold_in((7, 2**63), 2**63)
    assert torch.equal(fold_in((np.int32(7), np.uint64(2**63)), np.uint64(2**63)), expected)
    assert torch.equal(split(np.int64(7), np.int64(3)), split(7, 3))


def test_no_keys_and_keys_without_values() -> None:
    assert fold_in(torch.empty(0, 2, dtype=torch.uint64), 1).shape == (0, 2)
    assert split(torch.empty(3, 0, 2, dtype=torch.uint64), 4).shape == (4, 3, 0, 2)
    meta = fold_in(torch.empty(5, 2, dtype=torch.uint64, device="meta"), 1)
    assert (meta.shape, meta.dtype, meta.device.type) == ((5, 2), torch.uint64, "meta")


def test_default_device_has_no_say() -> None:
    expected = fold_in(7, 1)
    with torch.device("meta"):
        assert torch.equal(fold_in(7, 1), expected)
        assert torch.equal(split((7, 0), 2)[1], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch derives keys on a GPU alone")
def test_bit_for_bit_as_torch() -> None:
    import torch.func._random as random

    keys = key_tensor(*KEYS).cuda()
    for data in DATA[:-2]:
        assert torch.equal(fold_in(keys, data), random.fold_in(keys, data))
    assert torch.equal(split(keys, 7), random.split(keys, 7))


def test_derived_streams_share_nothing() -> None:
    """Of (seed, step) every draw but the last block comes again; of fold_in nothing does."""
    mu = torch.zeros(1, 256)

    def draws(derive: Callable[[int], Any]) -> list[set[float]]:
        return [
            set(rhovae_ext.ar1_reparam(mu, 1.0, 0.0, key=derive(step)).flatten().tolist())
            for step in range(8)
        ]

    shifted = draws(lambda step: (7, step))
    assert len(shifted[0] & shifted[1]) >= 252
    for one, other in itertools.combinations(draws(lambda step: fold_in(7, step)), 2):
        assert not one & other


def test_transforms() -> None:
    keys = key_tensor(*KEYS)
    data = torch.arange(4)
    expected = fold_in(keys, data)
    assert torch.equal(torch.vmap(fold_in)(keys, data), expected)
    assert torch.equal(torch.vmap(lambda number: fold_in((7, 0), number))(data), fold_in(7, data))
    compiled = torch.compile(fold_in, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(keys, data), expected)
    for step in (1, 2, 3):
        assert torch.equal(compiled(keys, step), fold_in(keys, step))
        assert torch.equal(
            torch.compile(split, fullgraph=True, backend="aot_eager")(keys, step), split(keys, step)
        )


PAIR = key_tensor((1, 2))[0]
REFUSALS: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "negative data": (
        lambda: fold_in(1, -1),
        ValueError,
        ("fold_in: data must be an int in [0, 2^64)", "-1"),
    ),
    "data of 65 bits": (lambda: fold_in(1, 2**64), ValueError, ("data", "[0, 2^64)", str(2**64))),
    "data true": (lambda: fold_in(1, True), ValueError, ("data", "bool True")),
    "data a float": (lambda: fold_in(1, 1.0), ValueError, ("data", "float 1.0")),  # type: ignore[arg-type]
    "data None": (lambda: fold_in(1, None), ValueError, ("data", "None")),  # type: ignore[arg-type]
    "data of floats": (
        lambda: fold_in(1, torch.zeros(2)),
        TypeError,
        ("data must be an int or a tensor of integers", "torch.float32", "data.long()"),
    ),
    "data of booleans": (lambda: fold_in(1, torch.tensor(True)), TypeError, ("data", "torch.bool")),
    "data of another length": (
        lambda: fold_in(key_tensor(*KEYS), torch.arange(3)),
        ValueError,
        ("data and the leading axes of key must broadcast", "(3,)", "(4, 2)"),
    ),
    "data on another device": (
        lambda: fold_in(PAIR, torch.zeros(2, dtype=torch.int64, device="meta")),
        ValueError,
        ("data must be on key's device", "meta", "data.to(key.device)"),
    ),
    "a negative seed": (lambda: fold_in(-1, 0), ValueError, ("fold_in: key's seed", "[0, 2^64)", "-1")),
    "a wide offset": (lambda: split((0, 2**64)), ValueError, ("split: key's offset", "[0, 2^64)")),
    "a true seed": (lambda: split(True), TypeError, ("split: key must be a seed", "bool True")),
    "a key of text": (lambda: split("7"), TypeError, ("key must be", "str '7'")),  # type: ignore[arg-type]
    "a key of three": (lambda: fold_in((1, 2, 3), 0), TypeError, ("key must be", "(1, 2, 3)")),  # type: ignore[arg-type]
    "a key of int64": (
        lambda: split(PAIR.long()),
        ValueError,
        ("uint64 tensor of shape (..., 2)", "torch.int64"),
    ),
    "a key of floats": (lambda: fold_in(torch.ones(2), 0), ValueError, ("key", "torch.float32")),
    "a key of three numbers": (
        lambda: split(torch.zeros(3, dtype=torch.uint64)),
        ValueError,
        ("key must be", "shape (3,)"),
    ),
    "a scalar tensor": (lambda: split(torch.tensor(3, dtype=torch.uint64)), ValueError, ("key", "shape ()")),
    "no keys": (lambda: split(1, 0), ValueError, ("split: n must be an int >= 1", "int 0")),
    "fewer than none": (lambda: split(1, -3), ValueError, ("n must be", "-3")),
    "n a float": (lambda: split(1, 2.0), ValueError, ("n must be", "float 2.0")),  # type: ignore[arg-type]
    "n true": (lambda: split(1, True), ValueError, ("n must be", "bool True")),
    "n a tensor": (lambda: split(1, torch.tensor(2)), ValueError, ("n must be", "tensor")),  # type: ignore[arg-type]
    "n of 64 bits": (lambda: split(1, 2**63), ValueError, ("n must be", str(2**63))),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    call, error, words = REFUSALS[case]
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_traced_key_is_no_constant() -> None:
    """Plain keys are folded as numbers; what is traced, batched or scripted has none to look at."""
    keys = split(7, 3)

    def fold(key: torch.Tensor) -> torch.Tensor:
        return fold_in(key, 9)

    expected = torch.stack([fold(key) for key in keys])
    assert torch.equal(fold_in(keys, 9), expected)
    assert torch.equal(torch.func.vmap(fold)(keys), expected)
    trace: Any = make_fx
    traced = [trace(fold, tracing_mode=mode)(keys[0]) for mode in ("real", "fake", "symbolic")]
    compiling: Any = torch.compile
    compiled = compiling(fold, fullgraph=True, backend="aot_eager")
    for function in (*traced, compiled):
        assert torch.equal(function(keys[1]), expected[1])
