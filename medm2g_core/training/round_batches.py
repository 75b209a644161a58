"""What a step of a round sees: noised latents, guides at levels of their own, and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from medm2g_core.alignment.encoders import Embedding
from medm2g_core.alignment.objective import normal
from medm2g_core.flows.prompt import Prompt, weighted_prompt
from medm2g_core.profiles import ConditioningConfig
from medm2g_core.streams import stream
from medm2g_core.training.draws import integer, integers, some_of, there, where_chosen
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.rounds import Mix, Round

__all__ = ["Levels", "RoundBatch", "RoundBatches", "draw_guide_sets", "draw_targets"]

Levels = Callable[[int, torch.Generator], torch.Tensor]
"""(n, generator) -> n training noise levels on the CPU, as `NoiseSchedule.sample_levels`."""


@dataclass
class RoundBatch:
    """Studies of one mix of a round.

    Attributes:
        targets: streams with a loss.
        latents: stream -> z_0 (B, ...).  noise: stream -> eps in the same shape.
        level: (B,) noise level t of all targets of a study, as in joint sampling (and in CoDi).
        guide_levels: stream -> (B,) noise level s at which it guides; empty for a single stream.
        guide_latents: stream -> clean latent (B, ...) of what guides: z_0, or where the guide has
            no noise, so is given, that of a prompt, or of another acquisition of the picture.
        present: target -> guide -> (B,) 1 where the guide is there for this target, else 0.
        prompts: target -> its prompt.
    """

    targets: tuple[str, ...]
    latents: dict[str, torch.Tensor]
    noise: dict[str, torch.Tensor]
    level: torch.Tensor
    guide_levels: dict[str, torch.Tensor]
    guide_latents: dict[str, torch.Tensor]
    present: dict[str, dict[str, torch.Tensor]]
    prompts: dict[str, Prompt]


def draw_guide_sets(
    n_guides: int, batch: int, config: ConditioningConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which guides and whether the prompt is there, for each study of a batch.

    A guide that is dropped on its own is hardly ever dropped together with all others, yet every
    flow must draw without any. So the set is drawn as a set: how many guides, from none to all,
    then which. In a share ``drop_all`` there is neither prompt nor guide; in all other studies at
    least one of them stays.

    Returns:
        (n_guides, batch) and (batch,), 1 where the guide, or the prompt, is there, else 0.
    """
    nothing = torch.rand(batch, generator=generator) < config.drop_all  # (B,)
    none = torch.rand(batch, generator=generator) < config.drop_guides
    count = 1 + torch.randint(max(n_guides, 1), (batch,), generator=generator)  # 1 .. n_guides
    whole = torch.rand(batch, generator=generator) < config.all_guides
    count = torch.where(whole, n_guides, count)
    count = torch.where(nothing | none, 0, count)
    guides = some_of(n_guides, count, generator)  # (S, B)
    alone = ~guides.any(0)
    no_prompt = torch.rand(batch, generator=generator) < config.drop_prompt
    prompt = ~nothing & (alone | ~no_prompt)
    return guides.float(), prompt.float()


class RoundBatches:
    """Studies of a round's mixes, their latents noised, with the guides and prompts they get.

    Args:
        levels: draws training noise levels.
    """

    def __init__(
        self,
        corpora: Sequence[LatentCorpus],
        plan: Round,
        config: ConditioningConfig,
        levels: Levels,
    ) -> None:
        self.corpora = {c.name: c for c in corpora}
        self.plan, self.config, self.levels = plan, config, levels

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> RoundBatch:
        weights = torch.tensor([each.weight for each in self.plan.mixes])
        chosen = self.plan.mixes[int(torch.multinomial(weights, 1, generator=generator))]
        streams, batch = chosen.streams, n * chosen.batch
        corpus = self.corpora[chosen.corpus]
        index = integers(len(corpus), batch, generator)
        wording = integers(corpus.wordings, batch, generator)  # of the report that is written
        prompt = integers(corpus.prompts, batch, generator)  # of the text that is given
        targets = draw_targets(chosen, generator)
        latents = {s: corpus.latent(s, index, wording).to(device) for s in streams}
        embeddings = {s: corpus.embedding(s, index, prompt).to(device) for s in streams}
        others = self.draw_acquisitions(corpus, streams, index, embeddings, generator)
        given = {s: corpus.given_latent(s, index, prompt) for s in streams if s in corpus.given}
        every = torch.ones(batch, dtype=torch.bool, device=device)
        others |= {s: (every, z.to(device)) for s, z in given.items()}
        level = self.levels(batch, generator)  # (B,)
        noise = {s: normal(z.shape, generator, device) for s, z in latents.items()}
        guide_levels = {
            s: there(x, device)
            for s, x in self.draw_guide_levels(streams, level, generator).items()
        }
        guide_latents = {
            s: where_chosen(others[s][0] & (guide_levels[s] == 0), others[s][1], latents[s])
            if s in others
            else latents[s]
            for s in guide_levels
        }
        present, prompts = {}, {}
        for m in targets:
            guides = [s for s in streams if s != m]
            sets, prompted = draw_guide_sets(len(guides), batch, self.config, generator)
            present[m] = dict(zip(guides, there(sets, device), strict=True))
            prompts[m] = self.draw_prompt(m, embeddings, prompted, generator)
        return RoundBatch(
            targets,
            latents,
            noise,
            there(level, device),
            guide_levels,
            guide_latents,
            present,
            prompts,
        )

    def draw_acquisitions(
        self,
        corpus: LatentCorpus,
        streams: Sequence[str],
        index: torch.Tensor,
        embeddings: dict[str, Embedding],
        generator: torch.Generator,
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Pictures that were taken by another scanner, in a share ``acquired`` of the studies.

        ``embeddings`` get theirs in place.

        Returns:
            stream -> (B,) bool where, and latents (B, ...) of such a picture for every study.
        """
        out = {}
        for s in streams:
            chosen = torch.rand(len(index), generator=generator) < self.config.acquired
            which = integers(2**15, len(index), generator)
            found = corpus.other_acquisition(s, index, which)
            if found is None:
                continue
            like = embeddings[s]
            z, e = found[0].to(like.pooled.device), found[1].to(like.pooled.device)
            chosen = there(chosen, like.pooled.device)
            embeddings[s] = Embedding(
                where_chosen(chosen, e.pooled, like.pooled),
                where_chosen(chosen, e.tokens, like.tokens),
                like.mask,
            )
            out[s] = (chosen, z)
        return out

    def draw_guide_levels(
        self, streams: Sequence[str], level: torch.Tensor, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Every stream as a guide at a noise level s (B,).

        In a share ``guides_clean`` of the studies all guides are clean (they are given), in a
        share ``guides_alike`` all are as noisy as the target (all are drawn together); in the rest
        each is either of these or at a level of its own.
        """
        if len(streams) < 2:
            return {}
        clean, settled = (
            self.config.guides_clean,
            self.config.guides_clean + self.config.guides_alike,
        )
        batch, out = len(level), {}
        alike = torch.rand(batch, generator=generator)
        for s in streams:
            own = torch.rand(batch, generator=generator)
            kind = torch.where(alike < settled, alike, own)
            free = self.levels(batch, generator)
            out[s] = torch.where(kind < clean, 0.0, torch.where(kind < settled, level, free))
        return out

    def draw_prompt(
        self,
        target: str,
        embeddings: Mapping[str, Embedding],
        prompted: torch.Tensor,
        generator: torch.Generator,
    ) -> Prompt:
        """A prompt for one stream: a random mix of the other streams, or its own embedding with
        noise; only where ``prompted`` (B,) is 1.

        The self prompt is what lets pairs that never train together work: the flow learns to follow
        a point of the aligned space, and text is aligned with every modality.
        """
        config, like = self.config, embeddings[target].pooled  # (B, D)
        batch, device = len(like), like.device
        others = {n: e for n, e in embeddings.items() if n != target}
        keep = there(prompted, device)
        details = torch.rand(batch, generator=generator) >= config.drop_details
        itself = torch.rand(batch, generator=generator) < config.self_prompt
        noise = normal(like.shape, generator, device) / like.shape[1] ** 0.5  # length about 1
        own = F.normalize(like + config.self_prompt_noise * noise, dim=-1)  # (B, D)
        if not others:
            return Prompt(own, torch.ones(batch, device=device)).drop(keep)
        weights = (torch.rand(len(others), batch, generator=generator) >= 0.5).float()
        weights[integer(len(others), generator)] = 1.0  # at least one
        prompt = weighted_prompt(others, there(weights / weights.sum(0), device))
        itself, details = there(itself, device), there(details, device)
        pooled = torch.where(itself[:, None], own, prompt.pooled)  # (B, D)
        return Prompt(pooled, prompt.present, prompt.details).drop(
            keep, (details & ~itself).float()
        )


def draw_targets(mix: Mix, generator: torch.Generator) -> tuple[str, ...]:
    """Streams with a loss this step, of those that the mix wants: all of them, or one a modality,
    when a modality with several streams takes turns."""
    wanted = mix.targets
    able: dict[str, list[str]] = {}
    for s in mix.streams:
        if not wanted or s in wanted or stream(s).modality in wanted:
            able.setdefault(s if mix.every else stream(s).modality, []).append(s)
    return tuple(own[integer(len(own), generator)] for own in able.values())
