"""Image flow: diffusers' UNet on latents, prompted and cross-guided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from medm2g_core.flows.environment import map_width
from medm2g_core.flows.guidance import GuidanceInput, Guide, install
from medm2g_core.flows.prompt import Prompt, PromptProjection
from medm2g_core.flows.schedule import TRAIN_STEPS
from medm2g_core.profiles import AlignmentConfig, FlowConfig, ImageCodecConfig
from medm2g_core.storage import check_shapes
from medm2g_core.streams import IMAGE_STREAMS, stream

__all__ = ["ImageFlow"]


class MapConv(nn.Conv2d):
    """The UNet's first convolution: a latent (B, in, h, w) to (B, out, h, w); or a latent and
    behind it the map (B, out, h, w) to add to the result.

    Both in one tensor, because the UNet hands one tensor to its first layer.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == self.in_channels:
            return super().forward(x)
        z, added = x.split(
            [self.in_channels, self.out_channels], 1
        )  # (B, in, h, w), (B, out, h, w)
        return super().forward(z) + added


class ImageFlow(nn.Module):
    """eps_m (or the velocity) of an image modality.

    z: (B, C, h, w) standardised latent at noise level t (B,) in [0, 1]; the output has z's shape.

    With ``aligned_map`` the maps of image guides enter at the first convolution. conv(z) + sum_n
    W_n map_n is a convolution of the channels of z and all maps together: channel concatenation,
    with a matrix of its own for every modality or, with ``map_entries="stream"``, every stream. It
    starts at 0, and its bias says that the guide is there: any set of guides may be, and the UNet
    keeps the shape of Stable Diffusion's.
    """

    def __init__(
        self,
        codec: ImageCodecConfig,
        alignment: AlignmentConfig,
        config: FlowConfig,
        contrasts: int = 1,
    ) -> None:
        super().__init__()
        self.contrasts = contrasts
        # Our levels 1/1000 .. 1 are Stable Diffusion's timesteps 0 .. 999. The rectified flow is
        # not one of its objectives, and takes 1000 t as it is.
        self.first_timestep = 0 if config.objective == "flow" else 1
        self.unet = UNet2DConditionModel(
            sample_size=codec.latent_size,
            in_channels=codec.latent_channels,
            out_channels=codec.latent_channels,
            down_block_types=tuple(
                "CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention
            ),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)
            ),
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            cross_attention_dim=alignment.embed_dim,
            attention_head_dim=config.head_dim,
            norm_num_groups=config.norm_groups,
            num_class_embeds=contrasts if contrasts > 1 else None,
        )
        first = self.unet.conv_in
        self.unet.conv_in = MapConv(
            first.in_channels, first.out_channels, first.kernel_size, padding=first.padding
        )
        install(self.unet, config, is_grid=True)
        self.maps, self.per_stream = nn.ModuleDict(), config.map_entries == "stream"
        for key in dict.fromkeys(map(self._entry, IMAGE_STREAMS)) if config.aligned_map else ():
            entry = nn.Conv2d(map_width(config), config.channels[0], 1)
            nn.init.zeros_(entry.weight)
            nn.init.zeros_(cast(torch.Tensor, entry.bias))
            self.maps[key] = entry
        self.prompt = PromptProjection(alignment)

    def _entry(self, name: str) -> str:
        """Where the map of a stream enters, in ``maps``."""
        return name if self.per_stream else stream(name).modality

    def _entry_of(self, guide: Guide) -> nn.Module | None:
        """Where the map of a guide enters; ``None`` if it has none, or none may."""
        if guide.map is None or not len(self.maps):
            return None
        return self.maps[guide.stream if self.per_stream else guide.modality]

    def entries(self, modality: str) -> Iterator[nn.Module]:
        """The entries of the maps of a modality."""
        keys = dict.fromkeys(
            self._entry(n) for n in IMAGE_STREAMS if stream(n).modality == modality
        )
        return (self.maps[key] for key in keys if key in self.maps)

    def forward(
        self,
        z: torch.Tensor,
        t: torch.Tensor,
        prompt: Prompt,
        guides: Sequence[Guide],
        contrast: torch.Tensor,
    ) -> torch.Tensor:
        context, bias = self.prompt(prompt)  # (B, N, D), (B, N)
        size = (z.shape[-2], z.shape[-1])
        maps = [
            g.present[:, None, None, None] * entry(g.map)  # (B, channels[0], h, w)
            for g in guides
            if (entry := self._entry_of(g)) is not None
        ]
        return self.unet(
            torch.cat([z, torch.stack(maps).sum(0).to(z.dtype)], 1) if maps else z,
            (t.float() * TRAIN_STEPS - self.first_timestep).clamp(min=0),
            encoder_hidden_states=context,
            class_labels=contrast if self.contrasts > 1 else None,
            cross_attention_kwargs={"guidance": GuidanceInput(bias, guides, size)},
        ).sample  # (B, C, h, w)

    @torch.no_grad()
    def load_stable_diffusion(self, folder: str) -> None:
        """Take the UNet of a Stable Diffusion folder on disk; guidance and prompt projections stay
        fresh.

        Raises:
            OSError: the folder holds no UNet.
            ValueError: it has other sizes than this profile; the message names the shapes.
        """
        source = UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", local_files_only=True
        ).state_dict()
        own = {
            name: weight
            for name, weight in self.unet.state_dict().items()
            if ".processor." not in name and "class_embedding" not in name
        }
        check_shapes(own, source, f"{folder}/unet")
        self.unet.load_state_dict(source, strict=False)
