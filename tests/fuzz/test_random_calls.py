"""Random calls, ordinary and hostile: a fixed few here, and as many as one likes in `make fuzz`."""

from __future__ import annotations

import numpy as np
import pytest

from rhovae_ext import native
from tests.children import python
from tests.fuzz.noise import Words, philox

SEED = 13
CALLS = 400


def random_calls(first: int, **environment: str) -> None:
    command = ["-m", "tests.fuzz", "--seed", str(SEED), "--workers", "1"]
    done = python(*command, "--first", str(first), "--calls", str(CALLS), **environment)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"seed {SEED}: {CALLS} calls, 0 findings" in done.stdout


@pytest.fixture(autouse=True)
def compiled() -> None:
    if native.unavailable is not None:
        pytest.skip(f"native: {native.unavailable}")


@pytest.mark.parametrize("block", range(2))
def test_random_calls(block: int) -> None:
    random_calls(block * CALLS)


@pytest.mark.parametrize(("block", "capability"), [(2, "portable"), (3, "avx2")])
def test_other_instruction_sets(block: int, capability: str) -> None:
    """The widest one of this processor is what the test above ran."""
    ask = "import torch, rhovae_ext; print(torch.ops.rhovae.cpu_capability())"
    answer = python("-c", ask, RHOVAE_CPU_CAPABILITY=capability)
    assert answer.stdout.strip() == capability, answer.stderr
    random_calls(block * CALLS, RHOVAE_CPU_CAPABILITY=capability)


def test_the_noise_of_the_truth(philox_answers: list[tuple[list[int], list[int], list[int]]]) -> None:
    """Its Philox is Random123's."""
    for counter, (low, high), words in philox_answers:
        columns: list[Words] = [np.array([word], np.uint64) for word in counter]
        assert [int(word[0]) for word in philox(columns, high << 32 | low)] == words
