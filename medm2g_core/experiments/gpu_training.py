"""More training of the shipped weights on a GPU in so many minutes, with rivals trained at the same
time for the same time, and the whole evaluation afterwards: how far does training alone carry a
network of the `cpu` profile?

    python -m medm2g_core.experiments.gpu_training --minutes 6

The rounds share the minutes; how many steps fit is measured first. Every baseline of the evaluation
gets a process of its own on the same GPU beside the flows, and as many seconds as the flow that it
faces.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.evaluation.image_to_image import GROUPS
from medm2g_core.evaluation.results import evaluate, report, write_report
from medm2g_core.evaluation.sections import SECTIONS
from medm2g_core.evaluation.store import load_results
from medm2g_core.evaluation.training_time import flow_seconds, split_equally
from medm2g_core.experiments.bars import bar_section
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import SHIPPED_WEIGHTS
from medm2g_core.profiles import ROUND_STAGES, Profile
from medm2g_core.rivals.report_decoder import DecoderSettings, train_decoder
from medm2g_core.rivals.reports import report_corpus
from medm2g_core.rivals.translator import RegressionSettings, train_translator
from medm2g_core.training.data import EmbeddedData, load_corpora
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.loop import run_stage
from medm2g_core.training.run import near_device, train
from medm2g_core.training.stages import RoundStage

__all__ = ["main", "round_seconds", "steps_that_fit", "train_baseline"]

SHARES: Mapping[str, float] = {"round1": 0.36, "round2": 0.30, "round3": 0.34}
"""Of the minutes, a round: about as the shipped training spent its own."""

THREADS = 2
"""Of every process: also a part of the name under which a baseline is kept."""
FLOW_SECTIONS = ("text_to_image", "report_xray", "report_ct", "translation", "guidance", "unified")
WARM, TIMED = 21, 20
"""Steps before and during the measurement of a step's time; the log has every twentieth."""


def round_seconds(minutes: float) -> dict[str, float]:
    """Round -> its seconds of the minutes of all three."""
    return {r: round(60 * minutes * share, 1) for r, share in SHARES.items()}


def train_baseline(kind: str, modality: str, seconds: float, base: MedM2G, device: str) -> None:
    """One baseline into the cache, where the evaluation finds it."""
    profile = base.profile
    if kind == "decoder":
        cohort = VirtualCohort(
            "train", "chest", profile.data.chest_train, resolution=profile.resolution
        )
        settings = DecoderSettings(stream=modality, seconds=seconds)
        corpus = report_corpus(cohort, modality)
        info = train_decoder(
            base.to(device), corpus, settings, threads=THREADS, device=device, progress=False
        ).info
    else:
        corpora = {c.region: c for c in load_corpora(profile)}
        rivals = RegressionSettings(GROUPS[modality], seconds, THREADS, kind == "pix2pix")
        info = train_translator(rivals, corpora, device=device, progress=False).info
    print(kind, modality, json.dumps(info), flush=True)


def steps_that_fit(
    model: MedM2G,
    latent: Sequence[LatentCorpus],
    profile: Profile,
    seconds: Mapping[str, float],
    device: str,
) -> dict[str, int]:
    """Steps of every round in its seconds, from a few timed ones on a copy of the model."""
    out = {}
    for name in ROUND_STAGES:
        config = profile.stages[name].shortened(WARM + TIMED)
        stage = RoundStage(copy.deepcopy(model), latent, name)
        with tempfile.TemporaryDirectory() as folder:
            run_stage(stage, config, Path(folder), device=device, progress=False)
            log = [
                json.loads(line)
                for line in (Path(folder) / f"{name}.log.jsonl").read_text().splitlines()
            ]
        step = (log[-1]["seconds"] - log[-2]["seconds"]) / (log[-1]["step"] - log[-2]["step"])
        out[name] = max(WARM + TIMED, int(seconds[name] / step))
        print(f"{name}: {1e3 * step:.0f} ms a step, {out[name]} steps", flush=True)
    return out


def again(*words: object) -> subprocess.Popen[bytes]:
    """This program once more, as another process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    module = "medm2g_core.experiments.gpu_training"
    return subprocess.Popen([sys.executable, "-m", module, *map(str, words)], env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=6.0, help="of the three rounds together (default 6)"
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument(
        "--start", type=Path, default=SHIPPED_WEIGHTS, help="weights that training starts from"
    )
    parser.add_argument(
        "--model", type=Path, default=Path("outputs/gpu-training"), help="folder of the weights"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("outputs/gpu-results"), help="folder of the tables"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sections", nargs="*", default=FLOW_SECTIONS, choices=tuple(SECTIONS))
    parser.add_argument("--part", nargs="*", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("there is no NVIDIA GPU here: nothing measured")
        return
    torch.set_num_threads(THREADS)
    base = MedM2G.from_pretrained(args.start)
    seconds = split_equally(round_seconds(args.minutes))
    if args.part[:1] == ["baseline"]:
        train_baseline(args.part[1], args.part[2], float(args.part[3]), base, args.device)
        return
    if args.part[:1] == ["section"]:
        own = flow_seconds(args.model)
        share = min(1.0, *(seconds[m] / own[m] for m in own))
        evaluate(
            args.model,
            args.results,
            sections=[args.part[1]],
            device=args.device,
            seconds=seconds,
            time_fraction=round(share, 3),
        )
        return
    run(args, base, seconds)


def run(args: argparse.Namespace, base: MedM2G, seconds: Mapping[str, float]) -> None:
    """Baselines in processes of their own, the flows meanwhile, then every section."""
    begin = time.monotonic()
    profile = base.profile
    stages = {
        n: dataclasses.replace(s, batch=args.batch) if n in ROUND_STAGES else s
        for n, s in profile.stages.items()
    }
    profile = profile.replace(stages=stages)
    data = EmbeddedData(profile)
    data.fit(base)
    corpora = data.corpora("train")  # drawn once, before the baselines ask for them too
    data.corpora("val")
    rivals = [("decoder", m) for m in ("xray", "ct")]
    rivals += [(kind, m) for kind in ("regression", "pix2pix") for m in GROUPS]
    common = (
        "--minutes",
        args.minutes,
        "--start",
        args.start,
        "--device",
        args.device,
        "--model",
        args.model,
        "--results",
        args.results,
    )
    waiting = [
        again(*common, "--part", "baseline", kind, m, seconds["text" if kind == "decoder" else m])
        for kind, m in rivals
    ]
    base.to(args.device)
    latent = near_device(
        args.device, [LatentCorpus.build(base, c, args.model / "work") for c in corpora]
    )
    print(f"studies encoded after {time.monotonic() - begin:.0f} s", flush=True)
    fitting = steps_that_fit(base, latent, profile, round_seconds(args.minutes), args.device)
    profile = profile.replace(
        stages={
            n: dataclasses.replace(s, steps=fitting.get(n, s.steps), restart=0)
            for n, s in profile.stages.items()
        }
    )
    del latent
    train(
        profile,
        args.model,
        stages=ROUND_STAGES,
        device=args.device,
        data=data,
        start=args.start,
        progress=False,
    )
    print(f"flows trained after {time.monotonic() - begin:.0f} s", flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    for name in ("training.json", "config.json"):  # `experiments.trainings` reads them
        shutil.copyfile(args.model / name, args.results / name)
    wrong = [p.args for p in waiting if p.wait() != 0]
    if wrong:
        raise SystemExit(f"a baseline failed: {wrong}")
    measuring = [again(*common, "--part", "section", name) for name in args.sections]
    failed = [p.args for p in measuring if p.wait() != 0]
    outcomes = load_results(args.results, SECTIONS)
    print(write_report(report(outcomes, first=bar_section(outcomes)), args.results))
    print(f"done after {time.monotonic() - begin:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"a section failed: {failed}")


if __name__ == "__main__":
    main()
