"""A first measurement of all five tasks on held-out virtual patients, in minutes on a CPU.

Every score stands beside what costs nothing (a constant, another patient, a shuffled condition) and beside its ceiling
(what the codec alone reconstructs). One figure cannot show: the chest pictures come from three people's anatomy and
the brains from one template, so nothing here measures generalisation to new people.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.labeller import label_report
from medm2g_core.data.reports import write_report
from medm2g_core.evaluation.metrics import bootstrap, ct_mae_hu, finding_counts, psnr, ssim
from medm2g_core.model import atomic_write
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.streams import STREAMS
from medm2g_core.training.validate import recall_at

__all__ = ["Row", "markdown", "quick_evaluation", "write_results"]

BATCH = 32


@dataclass(frozen=True)
class Row:
    """One score of one predictor.

    Attributes:
        task: what is generated from what.  metric: the score and its unit.
        who: ``"model"``, or the baseline, control or ceiling.  value, low, high: mean and 95 % bootstrap interval.
        n: held-out studies.
    """

    task: str
    metric: str
    who: str
    value: float
    low: float
    high: float
    n: int


def _row(task: str, metric: str, who: str, samples: Sequence[Any]) -> Row:
    value, low, high = bootstrap(samples)
    return Row(task, metric, who, round(value, 4), round(low, 4), round(high, 4), len(samples))


class _Bench:
    def __init__(
        self, pipe: MedM2GPipeline, n_chest: int, n_brain: int, steps: int, guidance: float, seed: int, reference: int
    ) -> None:
        size = pipe.model.profile.resolution
        self.pipe, self.steps, self.guidance, self.seed = pipe, steps, guidance, seed
        self.data = {
            "chest": VirtualCohort("test", "chest", n_chest, resolution=size),
            "brain": VirtualCohort("test", "brain", n_brain, resolution=size),
        }
        self.other = {
            "chest": VirtualCohort("val", "chest", reference, resolution=size),
            "brain": VirtualCohort("val", "brain", reference, resolution=size),
        }
        self.bar = tqdm(desc="evaluation", unit="pass")

    def value(self, region: str, name: str, index: Sequence[int]) -> torch.Tensor | list[str]:
        data = self.data[region]
        return [data.texts[i] for i in index] if name == "text" else data.stack(name, index)

    def draw(
        self, region: str, given: Sequence[str], want: Sequence[str], *, seed: int = 0, shift: int = 0,
        guidance: float | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Generate ``want`` for every test study; with ``shift`` from the given streams of another patient."""
        n = len(self.data[region])
        parts: dict[str, list[Any]] = {w: [] for w in want}
        for i in range(0, n, BATCH):
            index = [(j + shift) % n for j in range(i, min(n, i + BATCH))]
            generators = [torch.Generator().manual_seed(self.seed + 1000003 * seed + j) for j in index]
            out = self.pipe(
                given={g: self.value(region, g, index) for g in given}, want=want, num_inference_steps=self.steps,
                guidance_scale=self.guidance if guidance is None else guidance, generator=generators,
            )  # fmt: skip
            for w in want:
                parts[w] += [out[w]] if isinstance(out[w], torch.Tensor) else out[w]
            self.bar.update()
        return {w: torch.cat(p) if isinstance(p[0], torch.Tensor) else p for w, p in parts.items()}

    def images(
        self, region: str, given: Sequence[str], target: str, means: int = 4, guidance: float = 1.0
    ) -> list[Row]:
        """Image-to-image: single samples, their mean, baselines and the codec's ceiling."""
        data, model = self.data[region], self.pipe.model
        truth = data.stack(target)
        title = f"{'+'.join(STREAMS[g].title for g in given)} → {STREAMS[target].title} ({region})"
        samples = torch.stack(
            [self.draw(region, given, [target], seed=s, guidance=guidance)[target] for s in range(means)]
        )
        codec = torch.cat([model.decode(target, model.encode(target, x)) for x in truth.split(BATCH)])  # type: ignore[misc]
        rivals = {
            "model, one sample": samples[0],
            f"model, mean of {means}": samples.mean(0),
            "control: another patient's input": self.draw(region, given, [target], shift=7, guidance=guidance)[target],
            "baseline: mean image": self.other[region].stack(target).mean(0, keepdim=True).expand_as(truth),
            "baseline: another patient": truth.roll(1, 0),
            "ceiling: codec": codec,
        }
        metrics: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"PSNR, dB": psnr, "SSIM": ssim}
        if target == "ct":
            metrics["MAE, HU"] = ct_mae_hu
        return [_row(title, m, who, f(x, truth).tolist()) for m, f in metrics.items() for who, x in rivals.items()]

    def reports(self, region: str, given: Sequence[str]) -> list[Row]:
        """Report generation: presence and strict finding F1."""
        data, model = self.data[region], self.pipe.model
        title = f"{'+'.join(STREAMS[g].title for g in given)} → Report ({region})"
        normal = write_report((), region, 60, "female", np.random.default_rng(self.seed))
        n = len(data)
        codec = [
            t for i in range(0, n, BATCH) for t in model.decode("text", model.encode("text", data.texts[i : i + BATCH]))
        ]
        rivals = {
            "model": self.draw(region, given, ["text"])["text"],
            "control: another patient's input": self.draw(region, given, ["text"], shift=7)["text"],
            "baseline: constant normal report": [normal] * n,
            "baseline: random report": [self.other[region].texts[i % len(self.other[region])] for i in range(n)],
            "ceiling: text codec": codec,
        }
        rows = []
        for metric, strict in (("finding F1, presence", False), ("finding F1, strict", True)):
            for who, texts in rivals.items():
                counts = [
                    finding_counts(label_report(t, region).findings, f, strict=strict)
                    for t, f in zip(texts, data.findings, strict=True)
                ]
                rows.append(_row(title, metric, who, counts))
        return rows

    def from_text(self, want: Sequence[str], order: str) -> list[Row]:
        """Pictures from a report, judged by the aligned encoders: is the right report among the five closest?"""
        region, n = "chest", len(self.data["chest"])
        title = f"Report → {' + '.join(STREAMS[w].title for w in want)} ({order})"
        drawn = self.draw(region, ["text"], want)
        text = self.pipe.model.embed({"text": self.data[region].texts})["text"].pooled
        rows = []
        for w in want:
            rivals = {"model": drawn[w], "ceiling: real images (guidance can exceed them)": self.data[region].stack(w)}
            metric = f"own report among the 5 closest, {STREAMS[w].title}"
            for who, images in rivals.items():
                e = torch.cat([self.pipe.model.embed({w: x})[w].pooled for x in images.split(BATCH)])
                hits = [float(recall_at_one(e, text, i, 5)) for i in range(n)]
                rows.append(_row(title, metric, who, hits))
            rows.append(Row(title, metric, "baseline: chance", round(5 / n, 4), round(5 / n, 4), round(5 / n, 4), n))
        return rows


def recall_at_one(a: torch.Tensor, b: torch.Tensor, i: int, k: int) -> float:
    """1 if row ``i`` of ``b`` is among the ``k`` rows most similar to row ``i`` of ``a``."""
    return recall_at(a[i : i + 1], torch.cat([b[i : i + 1], b[:i], b[i + 1 :]]), k)


@torch.no_grad()
def quick_evaluation(
    pipe: MedM2GPipeline,
    *,
    n_chest: int = 64,
    n_brain: int = 32,
    steps: int = 10,
    guidance: float = 2.0,
    seed: int = 0,
    reference: int = 64,
) -> dict[str, Any]:
    """Measure all tasks; returns rows and the settings, ready for JSON.

    Args:
        n_chest, n_brain: held-out studies (test split).
        reference: studies of the validation split that the mean image and the random reports come from.
    """
    begin = time.monotonic()
    bench = _Bench(pipe, n_chest, n_brain, steps, guidance, seed, reference)
    rows: list[Row] = []
    rows += bench.reports("chest", ["xray"])
    rows += bench.reports("chest", ["ct"])
    rows += bench.from_text(["xray"], "alone")
    rows += bench.from_text(["ct"], "alone")
    rows += bench.from_text(["mri_t2"], "alone, a pair that never trained together")
    rows += bench.images("brain", ["mri_t1", "mri_t2"], "mri_flair")
    rows += bench.images("brain", ["mri_t1", "mri_flair"], "mri_t2")
    rows += bench.images("brain", ["mri_t2", "mri_flair"], "mri_t1")
    rows += bench.images("brain", ["mri_t1", "mri_t2"], "mri_pd")
    rows += bench.images("chest", ["ct"], "mri_t2")
    rows += bench.images("chest", ["mri_t1", "mri_t2"], "ct")
    rows += bench.images("chest", ["ct"], "xray", guidance=guidance)
    rows += bench.from_text(["xray", "ct", "mri_t2"], "joint")
    bench.bar.close()
    return {
        "rows": [asdict(r) for r in rows],
        "settings": {
            "profile": pipe.model.profile.name, "steps": steps, "guidance": guidance,
            "guidance of image translation": 1.0, "seed": seed, "cohort": "test split, seed 0",
        },
        "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """The rows as a Markdown table, a line a task and metric."""
    table: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in result["rows"]:
        table.setdefault((r["task"], r["metric"]), []).append(r)
    head = "| task | metric | n | model | baselines and controls | ceiling (codec) or real data |"
    lines = [head, "|---|---|---|---|---|---|"]
    for (task, metric), rows in table.items():
        digits = 1 if "dB" in metric or "HU" in metric else 2

        def show(r: dict[str, Any], digits: int = digits) -> str:
            who = r["who"].split(": ")[-1].removeprefix("model, ")
            name = "" if who == "model" else f"{who} "
            return f"{name}{r['value']:.{digits}f} [{r['low']:.{digits}f}, {r['high']:.{digits}f}]"

        def cell(kinds: tuple[str, ...], rows: list[dict[str, Any]] = rows) -> str:
            return "; ".join(show(r) for r in rows if r["who"].startswith(kinds))

        lines.append(
            f"| {task} | {metric} | {rows[0]['n']} | {cell(('model',))} | {cell(('baseline', 'control'))} "
            f"| {cell(('ceiling',))} |"
        )
    return "\n".join(lines) + "\n"


def write_results(result: dict[str, Any], folder: Path) -> list[Path]:
    """``quick.json`` and ``quick.md`` in ``folder``."""
    files = [folder / "quick.json", folder / "quick.md"]
    atomic_write(files[0], lambda p: p.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8"))
    head = "First measurements of the shipped weights (held-out virtual patients; 95 % bootstrap intervals).\n\n"
    atomic_write(files[1], lambda p: p.write_text(head + markdown(result), encoding="utf-8"))
    return files
