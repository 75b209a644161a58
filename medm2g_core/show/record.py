"""What happens inside the flows: where cross-guidance looks, how much it says, and its gates.

Recording changes nothing of what is drawn: the weights of the fused attention are computed a
second time beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from medm2g_core.flows.guidance import (
    CrossGuidedAttnProcessor,
    GuidanceInput,
    Guide,
    guided_layers,
    level_grid,
)
from medm2g_core.model import MedM2G
from medm2g_core.streams import MODALITIES, STREAMS

__all__ = ["Gate", "Look", "Tape", "gate_table", "record", "sites"]


@dataclass(frozen=True)
class Look:
    """One look of one flow at one guide, at one site.

    Attributes:
        flow: the stream that is being drawn.
        site: name of the cross-attention layer, see `sites`.
        guide: the stream that is looked at.
        level: noise level of the drawn stream in [0, 1].
        weights: (B, heads, N, M) attention of its N places to the guide's M tokens, each row of sum
            1; B counts the copies that classifier-free guidance makes.
        share: (B, N) length of what the guide adds to a place, gate included, over the length of
            what stood there.
        query_grid, key_grid: (rows, columns) of the N places and of the M tokens; ``None`` where
            they are of a text or pooled to one.
    """

    flow: str
    site: str
    guide: str
    level: float
    weights: torch.Tensor
    share: torch.Tensor
    query_grid: tuple[int, int] | None
    key_grid: tuple[int, int] | None


@dataclass
class Tape:
    """All looks while `record` was on, in the order in which they happened."""

    looks: list[Look] = field(default_factory=list)

    def select(
        self, *, flow: str | None = None, site: str | None = None, guide: str | None = None
    ) -> list[Look]:
        """The looks of a flow, at a site, at a guide; those that are not named are not compared."""
        wanted = {"flow": flow, "site": site, "guide": guide}
        return [
            look
            for look in self.looks
            if all(v is None or getattr(look, k) == v for k, v in wanted.items())
        ]


@dataclass(frozen=True)
class Gate:
    """One adaptive cross-guidance parameter.

    Attributes:
        flow, guide: modality that looks, and the one that is looked at.
        site: name of the layer, see `sites`.
        value: what the guide's contribution is multiplied with.
        trained: whether the flow was trained with that guide.
        inherited: not trained here, but moved from its start: it came with the weights of the flow
            that this one began as.
    """

    flow: str
    guide: str
    site: str
    value: float
    trained: bool
    inherited: bool


def sites(model: MedM2G, modality: str) -> dict[str, CrossGuidedAttnProcessor]:
    """`guided_layers` of a modality's flow."""
    return guided_layers(model.flows[modality])


@contextmanager
def record(model: MedM2G) -> Iterator[Tape]:
    """Write down every look of cross-guidance inside the ``with`` block.

    >>> with record(pipe.model) as tape:
    ...     pipe({"ct": ct}, ["mri_t2"], guidance_scale=1.0)
    >>> tape.looks[0].weights.shape

    Raises:
        ValueError: the profile's guidance is no attention (``adapter`` or ``off``).
    """
    if model.profile.flow.guidance not in ("tokens", "pooled"):
        raise ValueError(
            f"guidance {model.profile.flow.guidance!r} has no attention to record;"
            " needed 'tokens' or 'pooled'"
        )
    tape, hooks, changed = Tape(), [], []
    for modality in MODALITIES:
        now: dict[str, Any] = {}
        hook = _tell_what_is_drawn(modality, now)
        hooks.append(model.flows[modality].register_forward_pre_hook(hook))
        for name, site in sites(model, modality).items():
            site._look = _listening(site, name, now, tape)  # type: ignore[method-assign]
            changed.append(site)
    try:
        yield tape
    finally:
        for site in changed:
            del site._look
        for handle in hooks:
            handle.remove()


def _tell_what_is_drawn(modality: str, now: dict[str, Any]) -> Any:
    def before_flow(_: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        _, level, _, _, contrast = arguments
        now["level"] = float(level.flatten()[0])
        now["stream"] = next(
            s.name
            for s in STREAMS.values()
            if s.modality == modality and s.contrast == int(contrast.flatten()[0])
        )

    return before_flow


def _listening(site: CrossGuidedAttnProcessor, name: str, now: dict[str, Any], tape: Tape) -> Any:
    look = site._look

    def look_and_write(h: torch.Tensor, guide: Guide, guidance: GuidanceInput) -> torch.Tensor:
        said = look(h, guide, guidance)  # (B, N, C)
        with torch.no_grad():
            grid = level_grid(h.shape[1], guidance.latent_size)
            q, k, _ = site.query_key_value(h, guide, grid)  # (B, n, N, c), (B, n, M, c)
            weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)  # (B, n, N, M)
            gate = site.gate[guide.modality].abs() * guide.present[:, None]  # (B, 1)
            share = gate * said.norm(dim=-1) / h.norm(dim=-1)  # (B, N)
        tape.looks.append(
            Look(now["stream"], name, guide.stream, now["level"], weights, share, grid, guide.grid)
        )
        return said

    return look_and_write


def gate_table(model: MedM2G) -> list[Gate]:
    """Every gate of the model, flow by flow, guide by guide, in the order of computation.

    Pairs that can never meet (a report guiding itself) are not in it; two MR contrasts can.
    """
    start = model.profile.flow.gate_start
    streams_of = [s.modality for s in STREAMS.values()]
    out = []
    for flow in MODALITIES:
        trained_with = model.prompt_projection(flow).was_trained_with
        for guide in MODALITIES:
            if guide == flow and streams_of.count(flow) == 1:
                continue
            for name, site in sites(model, flow).items():
                if site.mode == "off":
                    continue
                value = cast(torch.Tensor, site.gate[guide]).item()
                trained = trained_with(guide)
                out.append(Gate(flow, guide, name, value, trained, not trained and value != start))
    return out
