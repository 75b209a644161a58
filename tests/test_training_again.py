"""Training again, or from a trained model: where a stage starts, and what is no longer finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import reports
from training_helpers import changed, snapshot

from medm2g_core.model import PARTS, MedM2G
from medm2g_core.profiles import (
    BASE_STAGES,
    REPORT_STAGE,
    ROUND_STAGES,
    STAGES,
    Profile,
    StageConfig,
)
from medm2g_core.training import run as run_module
from medm2g_core.training.corpus import random_prompts
from medm2g_core.training.loop import StageInterrupted, run_stage
from medm2g_core.training.reader import Reader
from medm2g_core.training.rounds import ROUNDS, Mix, Round, trained_with
from medm2g_core.training.run import ROUNDS_FOLDER, train


class FewStudies:
    """Training data of a few random studies; ``plan`` replaces the rounds."""

    def __init__(self, corpora, plan: Round | None = None) -> None:
        self._corpora, self.plan = corpora, plan
        self._reader: Reader | None = None

    def corpora(self, split: str) -> list:
        return self._corpora if split == "train" else []

    def reports(self, n: int, seed: int, split: str = "train") -> list[str]:
        if split != "train":
            return []
        return (reports(60, seed=seed) + reports(30, "brain", seed=seed))[:n]

    def prompts(self, n: int, seed: int) -> list[str]:
        texts = random_prompts(min(n, 90), seed)
        return self._reader.fitted(texts) if self._reader else texts

    def fit(self, model: MedM2G) -> None:
        self._reader = Reader(model)
        self._corpora = [self._reader.fitted_corpus(c) for c in self._corpora]

    def grow(self) -> bool:
        return False

    def lacks(self, stage: str) -> str:
        return ""

    def round(self, name: str, split: str = "train") -> Round:
        return self.plan or ROUNDS[name]

    def facts(self) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def short(smoke) -> Profile:
    two = StageConfig(steps=2, batch=4, lr=1e-2, warmup=1, ema=0.5)
    return smoke.replace(stages={n: two for n in smoke.stages})


@pytest.fixture(scope="module")
def trained(short, corpora, tmp_path_factory) -> Path:
    """A folder in which every stage is finished; do not write into it."""
    folder = tmp_path_factory.mktemp("trained")
    train(short, folder, data=FewStudies(corpora), precision="fp32", progress=False)
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


def go(short: Profile, folder: Path, corpora, plan: Round | None = None, **options) -> MedM2G:
    options = {"precision": "fp32", "progress": False, **options}
    return train(short, folder, data=FewStudies(corpora, plan), **options)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))


def weights(folder: Path) -> dict[str, bytes]:
    return {p: (folder / f"{p}.safetensors").read_bytes() for p in PARTS}


def test_all_stages_again_end_in_the_very_files_of_the_first_time(short, corpora, folder):
    before = weights(folder)
    go(short, folder, corpora, again=True)
    assert weights(folder) == before
    assert set(record(folder)["stages"]) == set(STAGES) and "again" not in record(folder)
    go(short, folder, corpora, again=True, seed=1)  # the control
    assert all(a != b for a, b in zip(weights(folder).values(), before.values(), strict=True))


@pytest.mark.parametrize("name", STAGES)
def test_one_stage_again_starts_from_the_seed_and_not_from_what_it_had_become(
    short, corpora, folder, name, monkeypatch
):
    """It ends where it ended the first time, since everything before it is as it was."""
    parts = run_module._parts_of(name)
    finished = folder / ROUNDS_FOLDER if name in ROUND_STAGES else folder
    before = MedM2G.from_pretrained(finished).state_dict()
    model = go(short, folder, corpora, stages=[name], again=True)
    after = model.state_dict()
    own = {k for p in parts for k in model.part(p) if not k.endswith("trained_with")}
    if name == "round1":  # it stands on latents alone, and later rounds moved entries of text
        own -= {k for k in own if ".ct" in k}
    assert [k for k in sorted(own) if not torch.equal(before[k], after[k])] == []


def test_after_a_round_again_later_rounds_are_no_longer_finished(short, corpora, folder):
    go(short, folder, corpora, stages=["round1"], again=True)
    assert set(record(folder)["stages"]) == {*BASE_STAGES, REPORT_STAGE, "round1"}
    with pytest.raises(ValueError, match="round3 needs round2 first"):
        go(short, folder, corpora, stages=["round3"])
    model = go(short, folder, corpora)
    assert set(record(folder)["stages"]) == set(STAGES)
    assert record(folder)["trained with"] == trained_with(model)


def test_rounds_that_follow_a_round_again_end_as_in_one_training(short, corpora, folder):
    before = weights(folder)
    go(short, folder, corpora, stages=["round1"], again=True)
    go(short, folder, corpora)
    assert weights(folder) == before


def test_the_report_writer_again_leaves_the_rounds_finished_and_is_needed_before_them(
    short, corpora, folder, tmp_path
):
    before = weights(folder)
    go(short, folder, corpora, stages=[REPORT_STAGE], again=True)
    assert set(record(folder)["stages"]) == set(STAGES) and weights(folder) == before
    with pytest.raises(ValueError, match="round1 needs reports first"):
        go(short, tmp_path / "new", corpora, stages=[*BASE_STAGES, "round1"])


def test_a_profile_that_reads_no_pictures_leaves_the_report_writer_out(short, corpora, tmp_path):
    plain = short.replace(text_codec={"reads_pictures": False})
    model = go(plain, tmp_path, corpora)
    assert set(record(tmp_path)["stages"]) == set(STAGES) - {REPORT_STAGE}
    assert record(tmp_path)["left out"] == {} and model.writer is None
    with pytest.raises(ValueError, match="'smoke' has no such stage"):
        go(plain, tmp_path, corpora, stages=[REPORT_STAGE])


@pytest.mark.parametrize("name", BASE_STAGES)
def test_after_a_base_stage_again_no_round_is_finished(short, corpora, folder, name):
    go(short, folder, corpora, stages=[name], again=True)
    assert set(record(folder)["stages"]) == set(BASE_STAGES)


def test_flows_were_trained_with_what_their_rounds_hold(short, corpora, folder):
    rounds = {
        "text": ["xray", "ct"],
        "xray": ["text"],
        "ct": ["text", "mri"],
        "mri": ["ct", "mri"],
    }
    assert trained_with(MedM2G.from_pretrained(folder / ROUNDS_FOLDER)) == rounds
    expected = {  # after the joint round; a study has one report, one film and one CT
        "text": ["xray", "ct", "mri"],
        "xray": ["text", "ct", "mri"],
        "ct": ["text", "xray", "mri"],
        "mri": ["text", "xray", "ct", "mri"],
    }
    assert record(folder)["trained with"] == expected
    assert trained_with(MedM2G.from_pretrained(folder)) == expected
    go(short, folder, corpora, again=True)
    assert record(folder)["trained with"] == expected


def test_a_flow_that_no_round_has_reached_was_trained_with_nothing(short, corpora, tmp_path):
    model = go(short, tmp_path, corpora, stages=[*BASE_STAGES, REPORT_STAGE, "round1"])
    assert trained_with(model) == {"text": ["xray"], "xray": ["text"], "ct": [], "mri": []}


def test_a_round_from_a_trained_model_keeps_what_its_flows_were_trained_with(
    short, corpora, trained, tmp_path
):
    """As on a real data set with ``--start``: the text flow goes on, and CT still reaches it."""
    before = trained_with(MedM2G.from_pretrained(trained))
    model = go(short, tmp_path, corpora, stages=["round1"], start=trained)
    assert trained_with(model) == before
    few = Round(("mri",), (), (Mix("brain", ("mri_t1",), 1.0),))  # a data set of T1 alone
    model = go(short, tmp_path / "few", corpora, few, stages=["round3"], start=trained)
    assert trained_with(model) == before


def test_a_round_from_a_trained_model_again_starts_there_and_needs_it(
    short, corpora, trained, tmp_path
):
    go(short, tmp_path, corpora, stages=["round1"], start=trained)
    go(short, tmp_path, corpora, stages=["round2"], start=trained)
    before = weights(tmp_path)
    with pytest.raises(ValueError, match="name that folder with --start"):
        go(short, tmp_path, corpora, stages=["round1"], again=True)
    model = go(short, tmp_path, corpora, stages=["round1"], start=trained, again=True)
    assert set(record(tmp_path)["stages"]) == {"round1"}
    assert weights(tmp_path)["xray"] == before["xray"]
    assert trained_with(model)["text"] == trained_with(MedM2G.from_pretrained(trained))["text"]
    with pytest.raises(ValueError, match="not from"):
        other = tmp_path / "other"
        go(short, other, corpora, stages=["image_codec"])
        go(short, tmp_path, corpora, stages=["round2"], start=other)


def test_an_interrupted_training_again_goes_on_with_the_same_call(
    short, corpora, folder, monkeypatch
):
    before = weights(folder)
    calls: list[str] = []

    def interrupted(stage, *args, **options):
        calls.append(stage.name)
        more = {"stop_after": 1} if stage.name == "alignment" and len(calls) == 3 else {}
        return run_stage(stage, *args, **options, **more)

    monkeypatch.setattr(run_module, "run_stage", interrupted)
    with pytest.raises(StageInterrupted):
        go(short, folder, corpora, again=True)
    assert record(folder)["again"] == sorted(set(STAGES) - {"image_codec", "text_codec"})
    go(short, folder, corpora, again=True)
    assert calls == ["image_codec", "text_codec", "alignment", *STAGES[2:]]
    assert weights(folder) == before and "again" not in record(folder)


def test_a_training_that_is_finished_does_nothing(short, corpora, folder, monkeypatch):
    monkeypatch.setattr(run_module, "run_stage", None)
    model = MedM2G.from_pretrained(folder)
    assert changed(go(short, folder, corpora), snapshot(model)) == set()
