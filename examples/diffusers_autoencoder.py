"""An AutoencoderKL of diffusers whose posterior is correlated along each channel of the latent image.

`AutoencoderAR1` has a third group of channels in `quant_conv`, the correlations; everything else, saving and
loading included, is that of `AutoencoderKL`. `AutoencoderAR1.from_diagonal(vae)` begins where a trained
AutoencoderKL stands, with all correlations zero.

    python examples/diffusers_autoencoder.py --steps 50
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn

from rhovae import AR1Normal
from rhovae.data import load_dataset


class ChainGaussianDistribution:
    """What `DiagonalGaussianDistribution` offers, for chains in raster order, one per image and channel.

    Args:
        parameters: mean, log-variance and correlation logits, ``(batch, 3 * channels, height, width)``; the
            logit at a pixel ties it to the one before.
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, log_variance, logits = parameters.chunk(3, dim=1)
        self.logvar = log_variance.clamp(-30.0, 20.0)
        self.chain = AR1Normal.from_logits(
            self.mean.flatten(2),
            0.5 * self.logvar.flatten(2),
            logits.flatten(2)[..., 1:],
            validate_args=False,
        )

    @property
    def std(self) -> Tensor:
        return self.chain.stddev.to(self.mean.dtype).reshape(self.mean.shape)

    @property
    def var(self) -> Tensor:
        return self.chain.variance.to(self.mean.dtype).reshape(self.mean.shape)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.chain.rsample(generator=generator).reshape(self.mean.shape)

    def kl(self, other: ChainGaussianDistribution | None = None) -> Tensor:
        """To N(0, I) or another such distribution, ``(batch,)``."""
        if other is None:
            return self.chain.rsample_kl()[1].sum(1)
        return torch.distributions.kl_divergence(self.chain, other.chain).sum(1)

    def nll(self, sample: Tensor) -> Tensor:
        return -self.chain.log_prob(sample.flatten(2)).sum(1)

    def mode(self) -> Tensor:
        return self.mean


class AutoencoderAR1(AutoencoderKL):
    """AutoencoderKL with a `ChainGaussianDistribution` as its posterior."""

    # the signature is what diffusers reads a saved configuration back by
    @functools.wraps(AutoencoderKL.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        channels = self.config.latent_channels
        self.quant_conv = nn.Conv2d(2 * channels, 3 * channels, 1)

    @classmethod
    def from_diagonal(cls, vae: AutoencoderKL) -> AutoencoderAR1:
        """The same distribution as `vae` has, ready to learn correlations."""
        model: AutoencoderAR1 = cls.from_config(vae.config)
        moments = 2 * vae.config.latent_channels
        weights = vae.state_dict()
        quant = model.quant_conv
        for name, value in quant.named_parameters():
            identity = torch.eye(moments)[..., None, None] if name == "weight" else torch.zeros(moments)
            wide = torch.zeros_like(value)
            wide[:moments] = weights.get(f"quant_conv.{name}", identity)
            weights[f"quant_conv.{name}"] = wide
        model.load_state_dict(weights)
        return model

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        slices = x.split(1) if self.use_slicing else (x,)
        posterior = ChainGaussianDistribution(torch.cat([self._encode(part) for part in slices]))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)


def small() -> AutoencoderAR1:
    """A network for grey images of 8 x 8 pixels, with a latent image of 2 channels and 4 x 4."""
    model: AutoencoderAR1 = AutoencoderAR1(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(16, 32),
        latent_channels=2,
        norm_num_groups=8,
        sample_size=8,
    )
    return model


def train(steps: int, kl_weight: float = 1e-2) -> list[float]:
    """Loss of every step: squared error and weighted KL, per image."""
    torch.manual_seed(0)
    images = load_dataset("digits").train
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(steps):
        x = images.pixels(torch.randint(len(images), (64,))) * 2 - 1
        posterior = model.encode(x).latent_dist
        error = (model.decode(posterior.sample()).sample - x).square().sum((1, 2, 3))
        loss = (error + kl_weight * posterior.kl()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    for step, loss in enumerate(train(parser.parse_args().steps), start=1):
        if step % 10 == 0:
            print(f"step {step:4d}  loss {loss:.2f}")
