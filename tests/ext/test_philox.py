"""Philox4x32-10 against all 55 answers published with Random123, and against plain integers past them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rhovae_ext import reference

Answers = list[tuple[list[int], list[int], list[int]]]


@pytest.fixture(scope="module")
def core() -> Any:
    return pytest.importorskip("rhovae_core", reason="the NumPy binding is not built: make test-native")


def test_all_published_answers_are_there(philox_answers: Answers) -> None:
    assert len(philox_answers) == 55
    assert all(
        len(words) == size for row in philox_answers for words, size in zip(row, (4, 2, 4), strict=True)
    )


def test_reference(philox_answers: Answers, device: str) -> None:
    counter, key, expected = (
        torch.tensor(column, device=device) for column in zip(*philox_answers, strict=True)
    )
    words = reference.philox(tuple(counter.unbind(-1)), (key[:, 0], key[:, 1]))
    assert torch.stack(words, -1).tolist() == expected.tolist()


def test_core(philox_answers: Answers, core: Any) -> None:
    import numpy as np

    counter, key, expected = (np.array(column, np.uint32) for column in zip(*philox_answers, strict=True))
    np.testing.assert_array_equal(core.philox(counter, key), expected)


def test_core_agrees_with_reference_on_random_words(core: Any) -> None:
    import numpy as np

    random = np.random.default_rng(0)
    counter = random.integers(0, 1 << 32, (1000, 4), np.uint32)
    key = random.integers(0, 1 << 32, (1000, 2), np.uint32)
    columns = torch.from_numpy(counter.astype(np.int64)).unbind(-1)
    k0, k1 = torch.from_numpy(key.astype(np.int64)).unbind(-1)
    words = torch.stack(reference.philox(tuple(columns), (k0, k1)), -1)
    np.testing.assert_array_equal(core.philox(counter, key), words.numpy())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_core_normals_of_every_instruction_set(core: Any, dtype: str, tolerance: float) -> None:
    import numpy as np

    for seed, offset, row, d in [
        (0, 0, 0, 1),
        (42, 2**64 - 2, 5, 67),
        (2**64 - 1, 2**32 - 1, 2**63 + 9, 1025),
    ]:
        key = torch.tensor([seed, offset], dtype=torch.uint64)
        rows = torch.tensor([row - (1 << 64) if row >> 63 else row])
        # The float64 evaluation of the same words: the stream is picked by the count of normals in a block.
        expected = _normals_in_float64(key, rows, d, dtype)
        for capability in core.capabilities():
            eps = core.normals(seed, offset, row, d, dtype, capability)
            error = np.abs(eps.astype(np.float64) - expected).max()
            assert error < tolerance, f"{capability}, d = {d}: {error:.3g}"


def _normals_in_float64(key: torch.Tensor, rows: torch.Tensor, d: int, dtype: str) -> Any:
    import numpy as np

    blocks = (d + 3) // 4 if dtype == "float32" else (d + 1) // 2
    words = reference.noise_words(key, rows, blocks)[0].numpy().astype(np.float64)
    if dtype == "float32":
        u = words * 2.0**-32 + 2.0**-33
        u1, u2 = u[:, 0::2].ravel(), u[:, 1::2].ravel()
    else:
        u = words[:, 0::2] * 2.0**-32 + (words[:, 1::2] + 0.5) * 2.0**-64
        u1, u2 = u[:, 0], u[:, 1]
    radius, angle = np.sqrt(-2 * np.log(u1)), 2 * np.pi * u2
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1).ravel()[:d]
