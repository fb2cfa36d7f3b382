"""A decomposed program in ONNX: what its runtime computes is what the model does."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rhovae_ext

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")


class Head(nn.Module):
    """z, its KL and its density from given noise, and samples of a key and of the runtime's own noise."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.linear = nn.Linear(4, 12)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        mu, log_s, rho_logit = self.linear(x).split((6, 1, 5), -1)

        def sample(**options: Any) -> tuple[Tensor, Tensor]:
            return rhovae_ext.ar1_reparam_kl_with_logits(
                mu, log_s, rho_logit, backend=self.backend, **options
            )

        z, kl = sample(eps=eps)
        log_q = rhovae_ext.ar1_log_prob_with_logits(z, mu, log_s, rho_logit, backend=self.backend)
        return z, kl, log_q, sample(key=(3, 2**64 - 4))[0], sample()[0]


def test_onnx_runtime_gives_what_the_model_gives(backend: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Head(backend), (torch.randn(64, 4), torch.randn(64, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, inputs).run_decompositions(rhovae_ext.decompositions())
        converted = torch.onnx.export(program, inputs, dynamo=True, verbose=False)
    assert converted is not None
    path = os.fspath(tmp_path / "model.onnx")
    converted.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    *found, drawn = (torch.from_numpy(value) for value in session.run(None, feed))
    with torch.no_grad():
        *expected, like = model(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    # Whatever generator the runtime has: new noise, of the right spread.
    again = torch.from_numpy(session.run(None, feed)[-1])
    assert not torch.equal(drawn, again)
    assert 0.7 < (drawn - again).std() / (like - expected[3]).std() < 1.4
