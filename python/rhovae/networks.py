"""Encoders and decoders of images: what the rho-VAE paper compares, and a user's own by import path."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from rhovae.files import RunError, shown

Trust: TypeAlias = "bool | frozenset[str]"
"""Whether a file may name code that is run: any, none, or these import paths, which the user named too."""


class Networks(NamedTuple):
    """The two halves of a VAE around its posterior head."""

    encoder: nn.Module
    """Images ``(batch, *image_shape)`` to features ``(batch, features)``."""
    features: int
    decoder: nn.Module
    """z ``(n, d)`` to logits of pixels, ``(n, *image_shape)`` or flat."""


def dense(image_shape: Sequence[int], latent_dim: int, hidden: int) -> Networks:
    """pixels-hidden-d and back, ReLU."""
    pixels = math.prod(image_shape)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU())
    decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, pixels))
    return Networks(encoder, hidden, decoder)


def convolutional(image_shape: Sequence[int], latent_dim: int, hidden: int) -> Networks:
    """Two strided convolutions of 32 and 64 channels, a dense layer, and their mirror image, ReLU."""
    channels, height, width = _quartered(image_shape)
    encoder = nn.Sequential(
        nn.Conv2d(channels, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * height * width, hidden),
        nn.ReLU(),
    )
    decoder = nn.Sequential(
        nn.Linear(latent_dim, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 64 * height * width),
        nn.ReLU(),
        nn.Unflatten(-1, (64, height, width)),
        nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, channels, 4, 2, 1),
    )
    return Networks(encoder, hidden, decoder)


def dcgan(image_shape: Sequence[int], latent_dim: int, hidden: int, width: int = 64) -> Networks:
    """The paper's DCGAN networks: strided and plain convolutions in turn, each with ReLU and batch norm."""
    channels, rows, columns = _quartered(image_shape)
    encoder = nn.Sequential(
        *_block(nn.Conv2d(channels, width, 4, 2, 1), width),
        *_block(nn.Conv2d(width, width, 3, 1, 1), width),
        *_block(nn.Conv2d(width, 2 * width, 4, 2, 1), 2 * width),
        # the dense layer adds up thousands of these: at their usual size one step of Adam moves log_s by tens
        *_block(nn.Conv2d(2 * width, 2 * width, 3, 1, 1), 2 * width, scale=0.05),
        nn.Flatten(),
        nn.Linear(2 * width * rows * columns, hidden),
    )
    decoder = nn.Sequential(
        nn.Linear(latent_dim, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 2 * width * rows * columns),
        nn.ReLU(),
        nn.Unflatten(-1, (2 * width, rows, columns)),
        *_block(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), width),
        *_block(nn.ConvTranspose2d(width, width, 3, 1, 1), width),
        *_block(nn.ConvTranspose2d(width, width // 2, 4, 2, 1), width // 2),
        nn.ConvTranspose2d(width // 2, channels, 3, 1, 1),
    )
    for half in (encoder, decoder):
        # a seventh quicker, on the CPU too
        half.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Networks(encoder, hidden, decoder)


def _block(convolution: nn.Module, channels: int, scale: float = 1.0) -> tuple[nn.Module, ...]:
    """Channels that begin with the standard deviation ``scale``."""
    norm = nn.BatchNorm2d(channels)
    nn.init.constant_(norm.weight, scale)
    return convolution, nn.ReLU(), norm


def _quartered(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, and height and width after two halvings."""
    if len(image_shape) != 3 or image_shape[1] % 4 or image_shape[2] % 4:
        raise ValueError(
            "convolutional networks: expected images (channels, height, width) with height and width "
            f"multiples of 4, got {tuple(image_shape)}; pad the images or use the model 'vanilla'"
        )
    return image_shape[0], image_shape[1] // 4, image_shape[2] // 4


def refuse_code(named: Mapping[str, str | None], trust_code: Trust, origin: str) -> None:
    """Refuse the networks of one's own that a file names: files are data, and importing runs code.

    Args:
        named: import paths by argument.

    Raises:
        RunError: one of them is not trusted; the message says what would have been imported.
    """
    if trust_code is True:
        return
    for argument, path in named.items():
        if path is not None and not (isinstance(trust_code, frozenset) and path in trust_code):
            raise RunError(
                f"{origin} names {shown(path)} as its {argument}: the module {shown(path.partition(':')[0])} "
                "would have been imported, and its code run. If you trust it, say --trust-code (in Python, "
                "trust_code=True)"
            )


def import_network(path: str, argument: str) -> type[nn.Module]:
    """The class or function at ``package.module:name``.

    Raises:
        ValueError: the path is not of that form, or nothing is there; the message names ``argument``.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{argument} must be an import path such as package.module:Name, got {path!r}")
    try:
        found: type[nn.Module] = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's own module raises
        raise ValueError(f"{argument}: cannot import {path!r}: {_said(error)}") from error
    return found


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _make(path: str, argument: str, call: str, *arguments: Any) -> nn.Module:
    """What ``path`` makes of these arguments, ``call`` in words."""
    factory = import_network(path, argument)
    try:
        network: object = factory(*arguments)
    except Exception as error:
        raise ValueError(f"{argument} {path}: called as {call}, it raised {_said(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{argument} {path}: called as {call}, it must give an nn.Module, got {type(network).__name__}"
        )
    return network


def _try(network: nn.Module, path: str, argument: str, example: Tensor) -> Tensor:
    """Its output for one example, with no trace left."""
    training = network.training
    try:
        with torch.no_grad():
            output: object = network.eval()(example)
    except Exception as error:
        shape = tuple(example.shape)
        raise ValueError(
            f"{argument} {path}: on an input of shape {shape} it raised {_said(error)}"
        ) from error
    network.train(training)
    if not isinstance(output, Tensor):
        raise ValueError(f"{argument} {path}: expected a tensor as output, got {type(output).__name__}")
    return output


def own_encoder(path: str, image_shape: Sequence[int]) -> tuple[nn.Module, int]:
    """The module that ``path`` makes from ``image_shape``, and how many features it gives."""
    encoder = _make(path, "encoder", "(image_shape)", tuple(image_shape))
    features = _try(encoder, path, "encoder", torch.zeros(1, *image_shape))
    if features.dim() != 2:
        raise ValueError(
            f"encoder {path}: expected features (batch, features), got {tuple(features.shape)} for one "
            "image; end it with nn.Flatten()"
        )
    return encoder, features.shape[-1]


def own_decoder(path: str, image_shape: Sequence[int], latent_dim: int) -> nn.Module:
    """The module that ``path`` makes from ``latent_dim`` and ``image_shape``."""
    decoder = _make(path, "decoder", "(latent_dim, image_shape)", latent_dim, tuple(image_shape))
    logits = _try(decoder, path, "decoder", torch.zeros(1, latent_dim))
    if logits.numel() != math.prod(image_shape):
        raise ValueError(
            f"decoder {path}: expected as many logits as an image {tuple(image_shape)} has pixels, "
            f"got {tuple(logits.shape)} for one z"
        )
    return decoder
