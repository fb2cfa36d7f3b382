"""PNG pictures of a run."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from torch import Tensor

from rhovae.data import ImageSet
from rhovae.files import write_atomically
from rhovae.models import VAE

matplotlib.use("Agg")

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_samples(model: VAE, path: Path, *, count: int = 64, seed: int = 0) -> Path:
    """A grid of pixel means decoded from draws of the prior."""
    draws = model.generate(count, generator=torch.Generator().manual_seed(seed))
    columns = max(1, round(count**0.5))
    return _write_grid(draws, columns, path)


def write_reconstructions(model: VAE, images: ImageSet, path: Path, *, count: int = 10) -> Path:
    """Originals above, their reconstructions from the posterior mean below."""
    weight = model.head.linear.weight
    x = images.pixels(slice(0, count), weight.dtype)
    return _write_grid(torch.cat([x, model.reconstruct(x.to(weight.device)).to(x)]), len(x), path)


def write_curves(history: list[dict[str, float]], path: Path) -> Path:
    """Loss and KL against the epoch, training and test."""
    figure, (loss, kl) = _axes(2, (9.0, 3.5))
    epochs = [row["epoch"] for row in history]
    for axes, quantity, title in ((loss, "loss", "negative ELBO"), (kl, "kl", "KL")):
        for part, style in (("train", "-"), ("test", "--")):
            axes.plot(epochs, [row[f"{part}_{quantity}"] for row in history], style, label=part)
        axes.set(xlabel="epoch", ylabel="nats per image", title=title)
        axes.legend()
    losses = [row["test_loss"] for row in history] + [row["train_loss"] for row in history[1:]]
    if len(losses) > 2:
        # the first epochs would flatten the rest
        low, high = min(losses), float(np.quantile(losses, 0.95))
        loss.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.2 * (high - low) + 1e-3)
    return _save(figure, path)


@torch.no_grad()
def write_rho(model: VAE, images: ImageSet, path: Path) -> Path:
    """Histogram of the correlations that the posterior has over a data set."""
    weight = model.head.linear.weight
    rho = model.encode(images.pixels(slice(0, 10_000), weight.dtype).to(weight.device)).rho
    values = rho.flatten().float().cpu().numpy()
    figure, (axes,) = _axes(1, (5.0, 3.5))
    axes.hist(values, bins=np.linspace(-1.0, 1.0, 81).tolist(), density=True)
    axes.set(xlabel="rho", ylabel="density", title=f"lag-1 correlation, {len(rho):,} images", xlim=(-1, 1))
    return _save(figure, path)


def write_all(model: VAE, images: ImageSet, history: list[dict[str, float]], folder: Path) -> list[Path]:
    """Every picture that suits the model."""
    written = [
        write_samples(model, folder / "samples.png"),
        write_reconstructions(model, images, folder / "reconstructions.png"),
        write_curves(history, folder / "curves.png"),
    ]
    if model.head.num_rhos(model.latent_dim):
        written.append(write_rho(model, images, folder / "rho.png"))
    return written


def write_mean_curves(histories: dict[str, list[list[dict[str, float]]]], path: Path) -> Path:
    """Test negative ELBO and KL against the epoch: means over the runs of a name, with standard errors."""
    figure, (loss, kl) = _axes(2, (9.0, 3.5))
    for axes, quantity, title in ((loss, "loss", "test negative ELBO"), (kl, "kl", "test KL")):
        for name, runs in histories.items():
            values = np.array([[row[f"test_{quantity}"] for row in run] for run in runs])
            epochs, mean = [row["epoch"] for row in runs[0]], values.mean(0)
            (line,) = axes.plot(epochs, mean, label=name)
            if len(runs) > 1:
                error = values.std(0, ddof=1) / len(runs) ** 0.5
                axes.fill_between(epochs, mean - error, mean + error, color=line.get_color(), alpha=0.25)
        axes.set(xlabel="epoch", ylabel="nats per image", title=title)
        axes.legend()
    return _save(figure, path)


def write_sample_rows(models: list[VAE], path: Path, *, count: int = 12, seed: int = 0) -> Path:
    """One row of samples for each model, from the same draws of the prior."""
    rows = [model.generate(count, generator=torch.Generator().manual_seed(seed)).float() for model in models]
    return _write_grid(torch.cat(rows), count, path)


def rehearse() -> None:
    """Draw a picture and throw it away: what is missing for it is found out before it is needed."""
    figure, (axes,) = _axes(1, (1.0, 1.0))
    axes.set(title="rehearsal")
    _drawn(figure)


def _axes(count: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, [figure.add_subplot(1, count, i + 1) for i in range(count)]


def sheet_bytes(model: VAE, count: int) -> int:
    """About the memory that a grid of this many samples takes."""
    pixels = math.prod(model.image_shape)
    wide = max(p.numel() // p.shape[0] if p.dim() else 1 for p in model.parameters())
    return count * (4 * (3 * pixels + model.latent_dim + wide) + 24 * pixels * _zoom(model.image_shape) ** 2)


def _zoom(image_shape: Sequence[int]) -> int:
    return max(1, 48 // max(image_shape[-2:]))


def _write_grid(images: Tensor, columns: int, path: Path) -> Path:
    grey = images.float().mean(1).clamp(0, 1).cpu().numpy()
    height, width = grey.shape[1:]
    rows = -(-len(grey) // columns)
    # a line between the images, and small images enlarged without smoothing
    zoom = _zoom((height, width))
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), 0.5, dtype=np.float32)
    for i, image in enumerate(grey):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = image
    sheet = np.kron(sheet, np.ones((zoom, zoom), dtype=np.float32))
    picture = io.BytesIO()
    matplotlib.image.imsave(picture, sheet, format="png", cmap="gray", vmin=0.0, vmax=1.0)
    return _write(picture, path)


def _save(figure: Figure, path: Path) -> Path:
    return _write(_drawn(figure), path)


def _drawn(figure: Figure) -> io.BytesIO:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture


def _write(picture: io.BytesIO, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, picture.getbuffer())
    return path
