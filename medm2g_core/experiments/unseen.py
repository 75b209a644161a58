"""Leave one person out: the same short training three times, each without one of the three people's
chests.

Each study of the test split is answered twice with equal budgets: by the model that never saw its
person, and by one that did. The difference is what the virtual cohort hides everywhere else, since
its patients share three anatomies. Three people are few: this shows that there is a gap and about
how large it is, not what it is for
the next person.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medm2g_core.data.chest.atlas import PERSONS
from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.evaluation.bench import draw_studies
from medm2g_core.evaluation.fidelity import REAL, Reading, finding_scores, rows_of
from medm2g_core.evaluation.report_rows import Truth, report_rows
from medm2g_core.evaluation.sections import READS_CODECS
from medm2g_core.evaluation.table import Check, Row, SectionResult, make_row
from medm2g_core.judges.judge import Judges
from medm2g_core.metrics.pixels import psnr
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.profiles import ROUND_STAGES
from medm2g_core.storage import CacheFile, digest, tensor_digest
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.data import corpus_of
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.loop import run_stage, state_file
from medm2g_core.training.reader import Reader
from medm2g_core.training.rounds import ROUNDS, begin_round
from medm2g_core.training.run import new_model
from medm2g_core.training.stages import AlignmentStage, RoundStage

__all__ = ["SEEN", "UNSEEN", "UnseenBudget", "person_table", "unseen_person"]

UNSEEN, SEEN = "model, person not in its training", "model, person in its training"
DRAWN: tuple[tuple[str, str], ...] = (("text", "xray"), ("ct", "mri_t2"), ("xray", "text"))
"""(given, wanted) of the three tasks."""


@dataclass(frozen=True)
class UnseenBudget:
    """Steps of each stage, and studies.

    Attributes:
        alignment, round1, round2, round3: steps.
        train: studies of the train split before a person's are taken out.  test: studies of the
            test split.
    """

    alignment: int = 120
    round1: int = 300
    round2: int = 120
    round3: int = 150
    train: int = 1408
    test: int = 192


def unseen_person(
    source: Path,
    folder: Path,
    judges: Judges,
    *,
    budget: UnseenBudget | None = None,
    seed: int = 0,
    precision: str = "auto",
    progress: bool = True,
) -> SectionResult:
    """Train what is not in ``folder`` yet, draw, and score.

    Args:
        source: folder of a trained model: its profile and its two codecs. The codecs saw all three
            people; alignment and flows are trained anew.
        folder: ``<person>.safetensors`` (what the model without that person drew; made anew for
            other codecs, budgets, seeds or studies) and work in progress.

    Returns:
        Rows of report to X-ray (finding AUC), CT to T2 (PSNR) and X-ray to report (finding F1), for
        `UNSEEN` and `SEEN` on the same studies, with the score of real images; a check that both
        are above another patient's.
    """
    budget = budget or UnseenBudget()
    base = MedM2G.from_pretrained(source)
    size = base.profile.resolution
    data = VirtualCohort("test", "chest", budget.test, resolution=size, seed=base.profile.data.seed)
    owner = np.array([data[i].person for i in range(len(data))])
    drawn: dict[str, dict[int, dict[str, Any]]] = {UNSEEN: {}, SEEN: {}}
    spent: dict[str, dict[str, float]] = {}
    for k, person in enumerate(PERSONS):
        other = PERSONS[(k + 1) % len(PERSONS)]
        index = np.flatnonzero((owner == person) | (owner == other)).tolist()
        answers, spent[person] = _answers(
            base, person, data, index, folder, budget, seed, precision, progress
        )
        for i in index:
            drawn[UNSEEN if owner[i] == person else SEEN][i] = answers[i]
    outcome = _scores(drawn, data, owner, judges, budget)
    outcome.facts["CPU seconds"] = spent
    return outcome


def _answers(
    base: MedM2G,
    person: str,
    data: VirtualCohort,
    index: Sequence[int],
    folder: Path,
    budget: UnseenBudget,
    seed: int,
    precision: str,
    progress: bool,
) -> tuple[dict[int, dict[str, Any]], dict[str, float]]:
    """What the model without ``person`` draws for the studies ``index``, and the CPU seconds of its
    stages; trained only if it is not on disk."""
    codecs = {n: t for n, t in base.state_dict().items() if n.startswith(READS_CODECS)}
    key = digest(
        codecs=tensor_digest(codecs), studies=list(index), budget=asdict(budget), seed=seed
    )
    file = CacheFile(folder / f"{person}.safetensors", key)
    if (found := file.load_tensors()) is None:
        size = base.profile.resolution
        cohort = VirtualCohort(
            "train", "chest", budget.train, seed=base.profile.data.seed, resolution=size
        )
        corpus = corpus_of(cohort, [i for i in range(len(cohort)) if cohort[i].person != person])
        work = folder / "work" / person
        model, spent = _train(base, corpus, work, budget, seed, precision, progress, key)
        images, texts = _draw(model, data, index)
        found = images, {"texts": texts, "CPU seconds": spent}
        file.save_tensors(*found)
    images, facts = found
    answers = {
        i: {**{n: x[j] for n, x in images.items()}, "text": facts["texts"][j]}
        for j, i in enumerate(index)
    }
    return answers, facts["CPU seconds"]


def _train(
    base: MedM2G,
    corpus: Corpus,
    work: Path,
    budget: UnseenBudget,
    seed: int,
    precision: str,
    progress: bool,
    key: str,
) -> tuple[MedM2G, dict[str, float]]:
    """Alignment and three rounds on one corpus of chests, on the codecs of ``base``; each stage
    resumes.

    Returns:
        The model, and the CPU seconds of each stage (of its last run, where it was interrupted).
    """
    model = new_model(base.profile, seed, like=base, parts=("image_codec", "text_codec"))
    corpus = Reader(model).fitted_corpus(corpus)

    spent: dict[str, float] = {}

    def stage(name: str, made: Any, steps: int) -> None:
        done = CacheFile(work / f"{name}.done.safetensors", key)
        if (found := done.load_tensors()) is not None:
            tensors, facts = found
            model.load_state_dict(tensors, strict=False)
            spent[name] = facts["CPU seconds"]
            return
        config = model.profile.stages[name].shortened(steps)
        begin = time.process_time()
        run_stage(made, config, work, seed=seed, precision=precision, progress=progress)
        spent[name] = round(time.process_time() - begin, 1)
        tied = "lm_head"  # shares its memory with the embedding
        tensors = {k: v.detach().clone() for k, v in model.state_dict().items() if tied not in k}
        done.save_tensors(tensors, {"CPU seconds": spent[name]})
        state_file(work, name).unlink(missing_ok=True)

    stage("alignment", AlignmentStage(model, [corpus]), budget.alignment)
    latent = [LatentCorpus.build(model.eval(), corpus, work)]
    for name in ROUND_STAGES:
        plan = ROUNDS[name]
        plan = replace(plan, mixes=tuple(m for m in plan.mixes if m.corpus == "chest"))
        begin_round(model, plan)
        stage(name, RoundStage(model, latent, name, plan), getattr(budget, name))
    return model.eval(), spent


def _draw(
    model: MedM2G, data: VirtualCohort, index: Sequence[int]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    pipe = MedM2GPipeline(model)
    pipe.set_progress_bar_config(disable=True)
    out = {
        want: draw_studies(
            pipe, data, index, [given], [want], guidance_scale=1.0 if given == "ct" else 2.0
        )[want]
        for given, want in DRAWN
    }
    return {n: x.contiguous() for n, x in out.items() if n != "text"}, out["text"]


def _scores(
    drawn: Mapping[str, Mapping[int, Mapping[str, Any]]],
    data: VirtualCohort,
    owner: np.ndarray,
    judges: Judges,
    budget: UnseenBudget,
) -> SectionResult:
    n = len(data)
    outcome = SectionResult(
        facts={"budget": asdict(budget), "studies": {p: int((owner == p).sum()) for p in PERSONS}}
    )
    judge = judges["chest", "xray"]

    def stack(who: str, name: str) -> torch.Tensor:
        return torch.stack([drawn[who][i][name] for i in range(n)])

    title = "Report → Chest X-ray (chest)"
    auc: dict[str, float] = {}
    pictures = {UNSEEN: stack(UNSEEN, "xray"), SEEN: stack(SEEN, "xray")}
    pictures["control: another patient's picture"] = pictures[UNSEEN].roll(7, 0)
    for who, x in {**pictures, REAL: data.stack("xray")}.items():
        scores = finding_scores(Reading.of(judge, x, data.findings))
        auc[who] = scores["finding AUC"][0] if "finding AUC" in scores else float("nan")
        outcome.rows += rows_of(title, who, scores, n)

    title, truth = "CT → MR T2-weighted (chest)", data.stack("mri_t2")
    db = {who: psnr(stack(who, "mri_t2"), truth) for who in (UNSEEN, SEEN)}
    for who, x in db.items():
        outcome.rows.append(make_row(title, "PSNR, dB", who, x.tolist()))
        for person in PERSONS:
            own = x[torch.from_numpy(owner == person)]
            if len(own):
                outcome.rows.append(make_row(f"{title}, {person}", "PSNR, dB", who, own.tolist()))
    outcome.rows.append(
        make_row(title, "person seen less not seen, dB", "model", (db[SEEN] - db[UNSEEN]).tolist())
    )

    reports = {who: [drawn[who][i]["text"] for i in range(n)] for who in (UNSEEN, SEEN)}
    moved = reports[UNSEEN][7:] + reports[UNSEEN][:7]
    rows: list[Row] = report_rows(
        "Chest X-ray → Report (chest)",
        {**reports, "control: another patient's report": moved},
        Truth("chest", data.texts, data.findings),
        only=("finding F1, strict", "finding F1, presence"),
    )
    outcome.rows += rows
    f1 = {r.who: r for r in rows if r.metric == "finding F1, presence"}
    control = f1["control: another patient's report"]
    outcome.checks.append(
        Check(
            "leave one out: reports of another patient are worse than one's own",
            control.value < f1[SEEN].value,
            f"presence F1 {control.value:.3f} against {f1[SEEN].value:.3f} (seen),"
            f" {f1[UNSEEN].value:.3f} (unseen)",
        )
    )
    return outcome


def person_table(outcome: SectionResult) -> str:
    """The section as Markdown: the person left out beside the person seen, each with its 95 %
    interval."""
    of: dict[tuple[str, str], dict[str, Row]] = {}
    for r in outcome.rows:
        of.setdefault((r.task, r.metric), {})[r.who] = r

    def cell(row: Row | None, digits: int) -> str:
        return (
            f"{row.value:.{digits}f} [{row.low:.{digits}f}, {row.high:.{digits}f}]" if row else ""
        )

    lines = [
        "| task | metric | n | person not in the training | person in the training | real images |",
        "|---|---|--:|---|---|---|",
    ]
    for (task, metric), rows in of.items():
        if UNSEEN in rows and SEEN in rows:
            digits = 1 if "dB" in metric else 2
            cells = " | ".join(cell(rows.get(who), digits) for who in (UNSEEN, SEEN, REAL))
            lines.append(f"| {task} | {metric} | {rows[UNSEEN].n} | {cells} |")
    return "\n".join(lines) + "\n"
