"""The Fréchet distance against closed forms, and the classifier that it is taken in."""

from __future__ import annotations

from pathlib import Path

import pytest
import scipy.linalg
import torch

from rhovae.data import load_dataset
from rhovae.fid import Gaussian, accuracy, fid, frechet_distance, train_classifier
from rhovae.models import make_model


def gaussian(seed: int, d: int = 5) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return Gaussian(torch.randn(d, generator=generator, dtype=torch.float64), factor @ factor.T)


def test_against_the_matrix_square_root() -> None:
    a, b = gaussian(1), gaussian(2)
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    truth = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * root.trace()
    assert frechet_distance(a, b) == pytest.approx(truth.item())
    assert frechet_distance(b, a) == pytest.approx(truth.item())
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_independent_features_in_closed_form() -> None:
    a, b = (
        Gaussian(torch.zeros(3).double(), torch.diag(torch.tensor(v).double()))
        for v in ([1, 4, 0], [9, 1, 0])
    )
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (2 - 1) ** 2)


def test_classifier_learns_is_kept_and_tells_images_from_noise(tmp_path: Path) -> None:
    data = load_dataset("digits")
    path = tmp_path / "classifier.safetensors"
    classifier = train_classifier(data, path, steps=400)
    assert accuracy(classifier, data.test) > 0.93
    written = path.read_bytes()
    again = train_classifier(data, path, steps=400)
    assert path.read_bytes() == written
    x = data.test.pixels(slice(None))
    assert torch.equal(again(x), classifier(x))

    def of(images: torch.Tensor) -> Gaussian:
        return Gaussian.of(classifier, list(images.split(100)))

    real = of(data.train.pixels(slice(None)))
    assert frechet_distance(real, of(x)) < 0.1 * frechet_distance(real, of(torch.rand_like(x)))
    model = make_model("vanilla", data.image_shape, 4, "rho", hidden=8)
    assert fid(model, classifier, data.test) == fid(model, classifier, data.test) > 0
