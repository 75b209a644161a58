"""A model on a real data set: every task that its streams allow, in the paper's metrics, beside
baselines and ceilings.

What a reader sees of it, with the paper's figures beside, is made by
`medm2g_core.evaluation.source_page`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from medm2g_core.data.sources import SourceError
from medm2g_core.evaluation.bench import BATCH, DRAW_STRIDE, SHIFT, draw_studies
from medm2g_core.evaluation.fidelity import CODEC, FRECHET, KID, REAL
from medm2g_core.evaluation.image_to_image import CONTROL, nearest_target, own_input, pixel_rows
from medm2g_core.evaluation.report_rows import overlap_rows
from medm2g_core.evaluation.table import Row, SectionResult
from medm2g_core.judges.judge import Judge, Judges
from medm2g_core.metrics.distributions import (
    distance_interval,
    frechet_distance,
    kernel_distance,
)
from medm2g_core.metrics.report_scores import METEOR_MISSING, tokenization
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.rivals.reports import embed_images, image_retrieval, reports_of_random_studies
from medm2g_core.rivals.translator import (
    RegressionSettings,
    Translation,
    train_translator,
)
from medm2g_core.streams import STREAMS, stream
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.data import SourceData

__all__ = [
    "Task",
    "evaluate_source",
    "tasks_of",
]

REGRESSION = "baseline: regression"
NEAREST = "baseline: nearest image by embedding"
Columns = list[tuple[str, list[Any]]]
"""Heading -> the values of a few studies."""


@dataclass(frozen=True)
class Task:
    """Streams that are given (none: an unconditional draw) and the one that is wanted."""

    given: tuple[str, ...]
    target: str

    @property
    def paired(self) -> bool:
        """Whether an image is given for an image: there is one right answer to compare with."""
        return self.target != "text" and any(stream(g).is_image for g in self.given)

    @property
    def title(self) -> str:
        given = " + ".join(STREAMS[g].title for g in self.given) or "nothing"
        return f"{given} → {STREAMS[self.target].title}"


def tasks_of(streams: Sequence[str]) -> list[Task]:
    """What can be asked of studies with these streams.

    Report and image in both directions; every MR contrast from the others together; CT from each MR
    contrast and the other way round; X-ray and CT. A lone image stream without a report is drawn
    from nothing.
    """
    images = [n for n in streams if stream(n).is_image]
    mr = tuple(n for n in images if stream(n).modality == "mri")
    out = []
    if "text" in streams:
        out += [Task(("text",), n) for n in images] + [Task((n,), "text") for n in images]
    if len(mr) > 1:
        out += [Task(tuple(o for o in mr if o != n), n) for n in mr]
    if "ct" in images:
        out += [task for n in mr for task in (Task((n,), "ct"), Task(("ct",), n))]
        out += [Task(("xray",), "ct"), Task(("ct",), "xray")] if "xray" in images else []
    return out or [Task((), n) for n in images]


@dataclass(frozen=True)
class _Studies:
    """Held-out studies with all streams of a task, of whichever groups have them.

    Attributes:
        images: stream -> (N, 1, H, W).  texts: reports as a model can read them.  reference:
            reports as they are.
    """

    images: Mapping[str, torch.Tensor]
    texts: Sequence[str]
    reference: Sequence[str]

    def __len__(self) -> int:
        return len(next(iter(self.images.values())))

    def stack(self, name: str, index: Sequence[int]) -> torch.Tensor:
        return self.images[name][list(index)]


def _studies(data: SourceData, task: Task, split: str, most: int) -> _Studies:
    names = [n for n in (*task.given, task.target) if n != "text"]
    needed = {*task.given, task.target}
    images: dict[str, list[torch.Tensor]] = {n: [] for n in names}
    texts: list[str] = []
    reference: list[str] = []
    left = most
    for c in data.corpora(split):
        if not needed <= set(c.streams) or left <= 0:
            continue
        # spread over the group: its first studies may all be slices of one patient
        index = torch.linspace(0, len(c) - 1, min(left, len(c))).round().long()
        for n in names:
            images[n].append(c.images[n][index].float())
        if "text" in needed:
            texts += [c.reports[i][0] for i in index.tolist()]
            reference += [data.original(c.reports[i][0]) for i in index.tolist()]
        left -= len(index)
    return _Studies({n: torch.cat(x) for n, x in images.items() if x}, texts, reference)


def evaluate_source(
    pipe: MedM2GPipeline,
    data: SourceData,
    judges: Judges,
    *,
    seconds: Mapping[str, float],
    studies: int = 128,
    means: int = 4,
    steps: int = 10,
    guidance: float = 2.0,
    seed: int = 0,
    threads: int = 1,
    progress: bool = True,
) -> tuple[SectionResult, dict[Task, Columns]]:
    """Draw and score the held-out studies of a data set.

    Args:
        data: already fitted to the model (`SourceData.fit`).
        judges: whose features the Fréchet and kernel distances take.
        seconds: modality -> CPU time for training the regression baseline of image-to-image tasks;
            0 leaves it out.
        studies: at most so many a task, spread over the split.
        means: draws of the mean, for images from images.

    Returns:
        The rows with checks and facts, and for each task some studies to look at.

    Raises:
        SourceError: no study in the test split.
    """
    if not data.corpora("test"):
        raise SourceError(
            f"{data.name}: no study in the test split, so there is nothing to measure on"
        )
    outcome = SectionResult(
        facts={"source": data.facts()["source"], "tokenization": tokenization(), "baselines": {}}
    )
    tasks = list(dict.fromkeys(t for c in data.corpora("test") for t in tasks_of(c.streams)))
    examples: dict[Task, Columns] = {}
    nets = _regressions(data, tasks, seconds, threads, pipe.model.device, outcome, progress)
    for task in tasks:
        held_out = _studies(data, task, "test", studies)
        training = [
            c for c in data.corpora("train") if {*task.given, task.target} <= set(c.streams)
        ]
        draw = partial(_draw, pipe, held_out, task, seed, steps, guidance)
        rivals: Mapping[str, Any]
        if task.target == "text":
            rivals = {"model": draw(), CONTROL: draw(shift=True)}
            rivals |= _report_rivals(pipe, task, held_out, training, seed)
            outcome.rows += overlap_rows(task.title, rivals, held_out.reference)
            shown: tuple[str, ...] = ("model", NEAREST)
        else:
            rivals = {"model": draw()}
            if task.paired:
                rivals[f"model, mean of {means}"] = torch.stack(
                    [rivals["model"], *map(draw, range(1, means))]
                ).mean(0)
            if task.given:
                rivals[CONTROL] = draw(shift=True)
            rivals |= _image_rivals(pipe, task, held_out, training)
            net = nets.get(stream(task.target).modality)
            if task.paired and net is not None:
                rivals[REGRESSION] = net.translate(
                    {g: held_out.images[g] for g in task.given}, task.target
                )
            truth = held_out.images[task.target]
            if task.paired:
                gap, check = own_input(task.title, rivals, truth)
                outcome.rows += [*pixel_rows(task.title, rivals, truth, task.target), gap]
                outcome.checks.append(check)
            outcome.rows += _distribution_rows(task, rivals, truth, data, judges, studies)
            shown = ("model", f"model, mean of {means}", REGRESSION)
        examples[task] = _columns(
            task, held_out, {who: rivals[who] for who in shown if who in rivals}
        )
    if any(t.target == "text" for t in tasks) and not any(
        r.metric == "METEOR" for r in outcome.rows
    ):
        outcome.facts["left out"] = METEOR_MISSING
    return outcome, examples


def _draw(
    pipe: MedM2GPipeline,
    held_out: _Studies,
    task: Task,
    seed: int,
    steps: int,
    guidance: float,
    number: int = 0,
    shift: bool = False,
) -> Any:
    """The target of a task for all studies; with ``shift`` each is given another study's
    streams."""
    n = len(held_out)
    by = 0 if not shift else SHIFT if n > SHIFT else 1
    return draw_studies(
        pipe,
        held_out,
        range(n),
        task.given,
        [task.target],
        other=lambda _, i: (i + by) % n,
        seed=seed + DRAW_STRIDE * number,
        guidance_scale=guidance if "text" in (*task.given, task.target) else 1.0,
        num_inference_steps=steps,
    )[task.target]


def _columns(task: Task, held_out: _Studies, rivals: Mapping[str, Any], count: int = 3) -> Columns:
    """The first studies, to look at: given, truth, and what the rivals made of them."""
    values: list[tuple[str, Any]] = [
        (f"given: {STREAMS[g].title}", held_out.texts if g == "text" else held_out.images[g])
        for g in task.given
    ]
    values.append(
        ("truth", held_out.reference if task.target == "text" else held_out.images[task.target])
    )
    values += rivals.items()
    return [(title, [x[i] for i in range(min(count, len(held_out)))]) for title, x in values]


def _report_rivals(
    pipe: MedM2GPipeline, task: Task, held_out: _Studies, training: Sequence[Corpus], seed: int
) -> dict[str, Sequence[str]]:
    n, (given,) = len(held_out), task.given
    rivals: dict[str, Sequence[str]] = {}
    if training:
        pool = Corpus(training[0].region, {}, [r for c in training for r in c.reports])
        commonest = Counter(r[0] for r in pool.reports).most_common(1)[0][0]
        rivals["baseline: commonest training report"] = [commonest] * n
        rivals["baseline: random training report"] = reports_of_random_studies(pool, n, seed)
        query = embed_images(pipe.model, given, held_out.images[given])
        gallery = torch.cat([embed_images(pipe.model, given, c.images[given]) for c in training])
        rivals[NEAREST] = image_retrieval(query, gallery, pool)
    codec: list[str] = []
    for i in range(0, n, BATCH):
        back = pipe.model.decode("text", pipe.model.encode("text", held_out.texts[i : i + BATCH]))
        assert isinstance(back, list)
        codec += back
    return rivals | {"ceiling: text codec": codec}


@torch.no_grad()
def _image_rivals(
    pipe: MedM2GPipeline, task: Task, held_out: _Studies, training: Sequence[Corpus]
) -> dict[str, torch.Tensor]:
    truth = held_out.images[task.target]
    rivals: dict[str, torch.Tensor] = {}
    if training:
        parts = [part for c in training for part in c.images[task.target].split(1024)]
        mean = torch.stack([part.float().sum(0) for part in parts]).sum(0) / sum(map(len, parts))
        rivals["baseline: mean image"] = mean.expand_as(truth)
        if task.paired:
            given = {g: held_out.images[g] for g in task.given}
            rivals["baseline: nearest training study"] = nearest_target(
                pipe.model, given, training, task.target
            )
    back = [
        pipe.model.decode(task.target, pipe.model.encode(task.target, x))
        for x in truth.split(BATCH)
    ]
    return rivals | {CODEC: torch.cat(back).cpu()}  # type: ignore[arg-type]


def _judge(judges: Judges, region: str, name: str) -> Judge | None:
    """The judge of that stream: of the region if there is one, else of another (its features are
    only a yardstick)."""
    return judges.get((region, name)) or next(
        (j for (_, s), j in judges.items() if s == name), None
    )


def _distribution_rows(
    task: Task,
    rivals: Mapping[str, torch.Tensor],
    truth: torch.Tensor,
    data: SourceData,
    judges: Judges,
    most: int,
) -> list[Row]:
    """Fréchet and kernel distance to other real images, and the floor: the true images' distance to
    them."""
    groups = [
        c for split in ("val", "train") for c in data.corpora(split) if task.target in c.images
    ]
    judge = _judge(judges, groups[0].region, task.target) if groups else None
    if judge is None:
        return []

    def features(x: torch.Tensor) -> Any:
        return judge.features(
            F.interpolate(x.float(), size=(128, 128), mode="bilinear", antialias=True).clamp(-1, 1)
        )

    pool = torch.cat(
        [
            c.images[task.target][torch.linspace(0, len(c) - 1, min(most, len(c))).long()]
            for c in groups
        ]
    )
    n = min(len(truth), len(pool))
    if n <= judge.net.FEATURES:
        return []  # a covariance matrix of so few is singular
    reference = features(pool[:n])
    sharp = ("model", REGRESSION, CODEC)  # a mean image, the same for all, has no distribution
    own = {REAL: truth, **{who: x for who, x in rivals.items() if who.startswith(sharp)}}
    rows = []
    for metric, distance in ((FRECHET, frechet_distance), (KID, kernel_distance)):
        for who, x in own.items():
            value, low, high = distance_interval(distance, features(x[:n]), reference, draws=50)
            rows.append(
                Row(task.title, metric, who, round(value, 4), round(low, 4), round(high, 4), n)
            )
    return rows


def _regressions(
    data: SourceData,
    tasks: Sequence[Task],
    seconds: Mapping[str, float],
    threads: int,
    device: torch.device,
    outcome: SectionResult,
    progress: bool,
) -> dict[str, Any]:
    """Target modality -> a pixel-regression network that learnt all its tasks at once, as the flow
    did."""
    nets = {}
    corpora = {c.name: c for c in data.corpora("train")}
    for modality in dict.fromkeys(stream(t.target).modality for t in tasks if t.paired):
        learnt = tuple(
            Translation(name, t.given, t.target)
            for t in tasks
            if stream(t.target).modality == modality and t.paired
            for name, c in corpora.items()
            if {*t.given, t.target} <= set(c.streams)
        )
        if learnt and seconds.get(modality, 0) > 0:
            settings = RegressionSettings(learnt, seconds[modality], threads)
            nets[modality] = train_translator(settings, corpora, device=device, progress=progress)
            outcome.facts["baselines"][f"regression, {modality}"] = nets[modality].info
    return nets
