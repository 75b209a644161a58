"""One image autoencoder for all image streams."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from medm2g_core.profiles import ImageCodecConfig
from medm2g_core.storage import check_shapes

__all__ = ["ImageCodec", "image_codec_loss"]

MSE_WEIGHT = 4.0
"""Weighs large errors up against the L1 term; at an error of a quarter both count alike."""

GRADIENT_SCALES = 2
"""Resolutions, each half of the one before, at which gradients are compared."""


class ImageCodec(nn.Module):
    """Pixel unshuffle, then diffusers' `AutoencoderKL`; one network for X-ray, CT and MR.

    Moving ``unshuffle``^2 pixels into channels first makes the same latent grid at a fraction of
    the cost on a CPU. With ``unshuffle=1`` and three pixel channels it is Stable Diffusion's
    autoencoder, and its weights fit.
    """

    def __init__(self, config: ImageCodecConfig) -> None:
        super().__init__()
        self.config = config
        levels = len(config.channels)
        channels = config.pixel_channels * config.unshuffle**2
        self.vae = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            mid_block_add_attention=config.mid_attention,
            sample_size=config.resolution // config.unshuffle,
        )

    def posterior(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of q(z|x).

        Args:
            image: (B, 1, H, W), values -1..1, H and W multiples of ``config.factor``.

        Returns:
            two tensors (B, latent_channels, H / factor, W / factor), not standardised.

        Raises:
            ValueError: if the size does not fit.
        """
        if image.shape[-1] % self.config.factor or image.shape[-2] % self.config.factor:
            raise ValueError(
                f"image of {tuple(image.shape[-2:])} px: both sides must be multiples of"
                f" {self.config.factor}"
            )
        x = image.expand(-1, self.config.pixel_channels, -1, -1)  # (B, p, H, W)
        x = F.pixel_unshuffle(x, self.config.unshuffle)  # (B, p u^2, H/u, W/u)
        q = self.vae.encode(x).latent_dist
        return q.mean, q.logvar  # (B, C, h, w)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Posterior mean, shapes as in `posterior`."""
        return self.posterior(image)[0]

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) to (B, 1, H, W); not clipped."""
        x = self.vae.decode(latent).sample  # (B, p u^2, H/u, W/u)
        x = F.pixel_shuffle(x, self.config.unshuffle)  # (B, p, H, W)
        return x.mean(1, keepdim=True)  # (B, 1, H, W)

    @torch.no_grad()
    def load_stable_diffusion(self, folder: str) -> None:
        """Take the weights of a Stable Diffusion ``vae`` folder on disk.

        Raises:
            OSError: the folder holds no autoencoder.
            ValueError: it has other sizes than this profile; the message names the shapes.
        """
        source = AutoencoderKL.from_pretrained(
            folder, subfolder="vae", local_files_only=True
        ).state_dict()
        check_shapes(self.vae.state_dict(), source, f"{folder}/vae")
        self.vae.load_state_dict(source)


def _gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def image_codec_loss(
    codec: ImageCodec, image: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """L1 + squared error + L1 of the image gradient at two scales + a small KL.

    The gradient terms keep ribs and vessels: on pixels alone a small autoencoder spends its
    capacity on grey areas.

    Args:
        image: (B, 1, H, W) in -1..1.
        noise: standard normal of the latent's shape (B, C, h, w), drawn by the caller.
    """
    mean, logvar = codec.posterior(image)
    out = codec.decode(mean + (0.5 * logvar).exp() * noise)
    l1 = (out - image).abs().mean()
    mse = (out - image).square().mean()
    gradient = image.new_zeros(())
    a, b = out, image
    for _ in range(GRADIENT_SCALES):
        gradient = gradient + sum(
            (p - q).abs().mean() for p, q in zip(_gradients(a), _gradients(b), strict=True)
        )
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = l1 + MSE_WEIGHT * mse + gradient + codec.config.kl_weight * kl
    psnr = (
        10
        * torch.log10(
            4 / (out.clamp(-1, 1) - image).square().mean((1, 2, 3)).clamp_min(1e-10)
        ).mean()
    )
    return loss, {"l1": l1, "psnr": psnr, "kl": kl}
