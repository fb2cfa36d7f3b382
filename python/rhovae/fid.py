"""Fréchet distance between images and samples, in the features of a small classifier trained on the spot.

Heusel et al. 2017 (arXiv 1706.08500), equation 6, with a classifier of the data set itself in place of
Inception: grey images of 28 x 28 are nothing that Inception knows. The figures compare models of one report
only, which share one classifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from rhovae.checkpoints import load_weights
from rhovae.data import ImageData, ImageSet
from rhovae.files import RunError, open_regular, write_atomically
from rhovae.models import VAE

_FEATURES = 64


class Classifier(nn.Module):
    """Two strided convolutions, a layer of features and a layer of classes."""

    def __init__(self, image_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        pixels = ((height + 3) // 4) * ((width + 3) // 4)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * pixels, _FEATURES),
            nn.ReLU(),
        )
        self.classes = nn.Linear(_FEATURES, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classes(self.features(x))
        return logits


def train_classifier(data: ImageData, path: Path, *, steps: int = 1800, seed: int = 0) -> Classifier:
    """The classifier in this file, trained first if there is none."""
    classes = int(data.train.labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(data.image_shape, classes)
        if path.exists():
            open_regular(path).close()
            try:
                weights = load_file(path)
            except SafetensorError as error:
                raise RunError(f"{path} is damaged ({error}); delete it, and it is trained again") from error
            load_weights(classifier, weights, path)
            return classifier.eval()
        optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
        for _ in range(steps):
            rows = torch.randint(len(data.train), (100,))
            loss = F.cross_entropy(classifier(data.train.pixels(rows)), data.train.labels[rows].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(classifier.state_dict()))
    return classifier.eval()


@torch.no_grad()
def accuracy(classifier: Classifier, images: ImageSet) -> float:
    """The share of images that it names rightly."""
    right = 0
    for rows in torch.arange(len(images)).split(1000):
        right += int((classifier(images.pixels(rows)).argmax(-1) == images.labels[rows]).sum())
    return right / len(images)


@dataclass(frozen=True)
class Gaussian:
    """Mean ``(f,)`` and covariance ``(f, f)`` of features, in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, classifier: Classifier, batches: list[Tensor]) -> Gaussian:
        features = torch.cat([classifier.features(batch) for batch in batches]).double()
        return cls(features.mean(0), features.T.cov())


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``: the squared 2-Wasserstein distance."""
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # C_a C_b has the eigenvalues of this symmetric matrix
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean - b.mean).square().sum()
    distance: float = (shift + a.covariance.trace() + b.covariance.trace() - 2.0 * cross).item()
    return max(0.0, distance)


def fid(model: VAE, classifier: Classifier, images: ImageSet, *, seed: int = 0) -> float:
    """Between the images and as many pixel means decoded from draws of the prior."""
    parts = torch.arange(len(images)).split(1000)
    generator = torch.Generator().manual_seed(seed)
    drawn = [model.generate(len(rows), generator=generator).float() for rows in parts]
    real = Gaussian.of(classifier, [images.pixels(rows) for rows in parts])
    return frechet_distance(real, Gaussian.of(classifier, drawn))
