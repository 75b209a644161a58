"""The rounds of multi-flow training: which flows train together, and how a round begins.

Text is the centre. Round 1 trains text with X-ray; round 2 the CT flow with text, which stays as it
is; round 3 the MR flow with CT. All other pairs are joined by the aligned prompt alone: that is the
paper's claim, and the weights after round 3 are kept to measure it. Then comes a round of our own,
``joint``, in which all flows and all streams of a study meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from medm2g_core.model import MedM2G
from medm2g_core.streams import MODALITIES, stream

__all__ = [
    "ROUNDS",
    "Mix",
    "Round",
    "begin_round",
    "initialise_flows",
    "record_trained_with",
    "trained_with",
]


@dataclass(frozen=True)
class Mix:
    """What a step of a round can be made of.

    Attributes:
        corpus: name of the corpus of the studies.  streams: that take part.
        weight: how often, relative to the other mixes of the round.
        targets: modalities, or streams, with a loss; all of the streams' if empty.
        batch: studies relative to the stage's batch.
        every: every stream that ``targets`` allows has a loss in every step; otherwise the streams
            of one modality take turns.
    """

    corpus: str
    streams: tuple[str, ...]
    weight: float
    targets: tuple[str, ...] = ()
    batch: int = 1
    every: bool = False

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(modality, modality of a stream that may guide it) for all streams that take part."""
        for i, a in enumerate(self.streams):
            for b in (*self.streams[:i], *self.streams[i + 1 :]):
                yield stream(a).modality, stream(b).modality


@dataclass(frozen=True)
class Round:
    """One round of multi-flow training.

    Attributes:
        trained: modalities whose flow and environment encoder train.
        frozen: modalities that take part with a fixed flow; only the entries of its new
            cross-attention sources train.
        mixes: what a step can be made of.
        initialised_from: (modality, the one whose trained flow and environment encoder it starts
            from) pairs, see `initialise_flows`.
        continues: its flows go on from the weights that the rounds before left.
    """

    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    mixes: tuple[Mix, ...]
    initialised_from: tuple[tuple[str, str], ...] = ()
    continues: bool = False


_CHEST_MR = ("mri_t1", "mri_t2")
_BRAIN_MR = ("mri_t1", "mri_t2", "mri_pd", "mri_flair")
ROUNDS: Mapping[str, Round] = {
    # A report without pictures (brain) lets the text flow learn to write it from an aligned
    # embedding alone. The text flow costs a fraction of an image flow and needs more examples, so
    # some steps are its own, and larger.
    "round1": Round(
        ("text", "xray"),
        (),
        (
            Mix("chest", ("text", "xray"), 0.5),
            Mix("chest", ("text", "xray"), 0.4, targets=("text",), batch=3),
            Mix("brain", ("text",), 0.1),
        ),
    ),
    "round2": Round(("ct",), ("text",), (Mix("chest", ("text", "ct"), 1.0),), (("ct", "xray"),)),
    # The frozen flow has little to learn (the entries of its new source), and a step through it
    # costs as much as any other.
    "round3": Round(
        ("mri",),
        ("ct",),
        (
            Mix("chest", ("ct", *_CHEST_MR), 0.15),
            Mix("chest", ("ct", *_CHEST_MR), 0.35, targets=("mri",)),
            Mix("brain", _BRAIN_MR, 0.5),
        ),
        (("mri", "ct"),),
    ),
    # The four contrasts of a brain are cheap beside each other (their guides are encoded once), and
    # each alone would be the target too rarely. Reports need more examples than pictures.
    "joint": Round(
        ("text", "xray", "ct", "mri"),
        (),
        (
            Mix("chest", ("text", "xray", "ct", *_CHEST_MR), 0.45),
            Mix("chest", ("text", "xray", "ct", *_CHEST_MR), 0.15, targets=("text",), batch=2),
            Mix("brain", ("text", *_BRAIN_MR), 0.4, every=True),
        ),
        continues=True,
    ),
    # Ablation: everything with everything at once.
    "all_pairs": Round(
        ("text", "xray", "ct", "mri"),
        (),
        (
            Mix("chest", ("text", "xray", "ct", *_CHEST_MR), 0.7),
            Mix("brain", ("text", *_BRAIN_MR), 0.3),
        ),
    ),
}


@torch.no_grad()
def initialise_flows(model: MedM2G, plan: Round) -> None:
    """Start a round's new flows from trained ones: every tensor of the same name and shape is
    copied.

    The image flows work on latents of one codec, so a trained flow of another modality is a far
    better start than noise. (The public ancestors start all image flows from one Stable Diffusion.)
    """
    own = model.state_dict()
    for new, source in plan.initialised_from:
        for key, tensor in model.part(source).items():
            target = own.get(key.replace(f".{source}.", f".{new}.", 1))
            if target is not None and target.shape == tensor.shape:
                target.copy_(tensor)


def record_trained_with(model: MedM2G, plan: Round, *, continued: bool = False) -> None:
    """Note in each flow of the round which modalities guide and prompt it from now on.

    Args:
        continued: the trained flows go on from weights that were trained before, and keep what
            these were trained with. Otherwise they begin anew. Frozen flows always keep theirs.
    """
    pairs = {pair for mix in plan.mixes for pair in mix.pairs()}
    for m in (*plan.trained, *plan.frozen):
        buffer = model.prompt_projection(m).trained_with
        if m in plan.trained and not continued:
            buffer.zero_()
        for i, other in enumerate(MODALITIES):
            if (m, other) in pairs:
                buffer[i] = 1


def begin_round(model: MedM2G, plan: Round, *, continued: bool = False) -> None:
    """What a round does to the model once, before its first step.

    Args:
        continued: the flows have learnt this already (from other data, say) and go on from their
            own weights; otherwise new flows start from trained ones (`initialise_flows`).
    """
    continued = continued or plan.continues
    if not continued:
        initialise_flows(model, plan)
    record_trained_with(model, plan, continued=continued)


def trained_with(model: MedM2G) -> dict[str, list[str]]:
    """Modality -> those that its flow was trained with, as `record_trained_with` left it."""
    return {
        m: [o for o in MODALITIES if model.prompt_projection(m).was_trained_with(o)]
        for m in MODALITIES
    }
