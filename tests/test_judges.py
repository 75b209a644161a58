"""Judges: what they are asked, that they were trained well, and what happens to damaged files."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.findings import BRAIN, CHEST
from medm2g_core.evaluation.fidelity import Reading, macro_auc
from medm2g_core.judges.__main__ import main
from medm2g_core.judges.files import SHIPPED_JUDGES, load_judge, load_judges, save_judge
from medm2g_core.judges.judge import JUDGED, Judges
from medm2g_core.judges.labels import Label, label_matrix, labels_of
from medm2g_core.judges.network import JudgeNet
from medm2g_core.judges.training import JudgeSettings, jittered, train_judge
from medm2g_core.model import CheckpointError
from medm2g_core.streams import Finding, StreamError
from tests.conftest import pictures

FEW = JudgeSettings(steps=2, batch=4, train=8, held_out=8)


@pytest.fixture(scope="module")
def shipped() -> Judges:
    return load_judges()


def test_a_finding_on_both_sides_is_on_each_and_a_lobe_belongs_to_its_finding() -> None:
    findings = [
        Finding("pleural_effusion", "both", "", "small"),
        Finding("nodule", "right", "upper", "small", 12),
    ]
    yes = {label for label in labels_of("chest") if label.holds(findings)}
    assert yes == {
        Label("pleural_effusion"),
        Label("pleural_effusion", "left"),
        Label("pleural_effusion", "right"),
        Label("nodule"),
        Label("nodule", "right"),
        Label("nodule", location="upper"),
    }


def test_presence_of_every_finding_comes_first() -> None:
    for region, names in (("chest", CHEST), ("brain", BRAIN)):
        assert tuple(label.finding for label in labels_of(region)[: len(names)]) == names
    cohort = VirtualCohort("test", "chest", 16)
    assert torch.equal(
        label_matrix(cohort.findings, "chest")[:, : len(CHEST)], cohort.finding_matrix()
    )


def test_augmentation_keeps_left_on_the_left() -> None:
    x = torch.full((16, 1, 64, 64), -1.0)
    x[..., 24:40, 4:20] = 1.0
    y = jittered(x, JudgeSettings(), torch.Generator().manual_seed(0))
    assert y.abs().max() <= 1 and not torch.equal(x, y)
    assert (y[..., :32].mean((1, 2, 3)) > y[..., 32:].mean((1, 2, 3)) + 0.1).all()


def test_training_again_gives_the_same_judge_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    a, b = (train_judge("mri_t2", "brain", FEW, resolution=32, progress=False) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    x = pictures(3)
    assert np.array_equal(a.logits(x), b.logits(x))
    assert a.probabilities(x).shape == (3, len(labels_of("brain"))) and a.features(x).shape == (
        3,
        64,
    )
    with pytest.raises(StreamError, match="judges exist for"):
        train_judge("xray", "brain", FEW)


def test_a_prediction_does_not_depend_on_the_batch() -> None:
    judge = train_judge("ct", "chest", FEW, resolution=32, progress=False)
    x = pictures(5)
    assert np.allclose(
        judge.logits(x), np.concatenate([judge.logits(x[:2]), judge.logits(x[2:])]), atol=1e-5
    )
    with pytest.raises(StreamError, match="N from 1"):
        judge.read(x[:0])


def test_command_trains_what_is_missing_or_damaged_and_only_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--out",
        str(tmp_path),
        "--only",
        "brain/mri_pd",
        "--steps",
        "2",
        "--train",
        "80",
        "--held-out",
        "16",
    ]
    weights = tmp_path / "brain_mri_pd.safetensors"

    def trained() -> int:
        assert main(arguments) == 0
        return weights.stat().st_mtime_ns

    first = trained()
    assert trained() == first
    weights.write_bytes(b"cut")
    assert trained() != first
    assert capsys.readouterr().out.count("on 8 real test images") == 3


def test_a_judge_is_trained_as_by_the_textbook() -> None:
    """AdamW under torch's one-cycle schedule, on every study once before any comes again."""
    judge = train_judge("mri_t2", "brain", FEW, resolution=32, progress=False)
    own = FEW.of("brain")
    cohort = VirtualCohort("train", "brain", own.train, resolution=32)
    x, y = cohort.stack("mri_t2"), label_matrix(cohort.findings, "brain")
    with torch.random.fork_rng():
        torch.manual_seed(own.seed)
        net = JudgeNet(y.shape[1]).train()
        optimizer = torch.optim.AdamW(net.parameters(), own.lr, weight_decay=own.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, own.lr, total_steps=own.steps, pct_start=0.15
        )
        generator = torch.Generator().manual_seed(own.seed)
        order = torch.empty(0, dtype=torch.long)
        for _ in range(own.steps):
            if len(order) < own.batch:
                order = torch.cat([order, torch.randperm(len(x), generator=generator)])
            chosen, order = order[: own.batch], order[own.batch :]
            views = jittered(x[chosen], own, generator).to(memory_format=torch.channels_last)
            logits = net(views)[0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, judge.net.get_parameter(name)), name


def test_saved_judge_says_the_same(tmp_path: Path) -> None:
    judge = train_judge("ct", "chest", FEW, resolution=32, progress=False)
    save_judge(judge, tmp_path)
    again = load_judge(tmp_path, "chest", "ct")
    x = pictures(6)
    assert np.allclose(judge.logits(x), again.logits(x), atol=0.02)
    assert again.info["settings"] == judge.info["settings"] and again.info["n_test"] == 8


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w, f: w.write_bytes(w.read_bytes()[:1000]), "damaged"),
        (lambda w, f: w.unlink(), "missing"),
        (lambda w, f: f.unlink(), "missing"),
        (lambda w, f: f.write_text("{"), "damaged"),
        (
            lambda w, f: shutil.copy(SHIPPED_JUDGES / "chest_ct.safetensors", w),
            "another version or stream",
        ),
    ],
)
def test_damaged_files_are_named(damage, message: str, tmp_path: Path) -> None:
    for suffix in ("safetensors", "json"):
        shutil.copy(SHIPPED_JUDGES / f"chest_xray.{suffix}", tmp_path)
    assert load_judge(tmp_path, "chest", "xray").stream == "xray"
    damage(tmp_path / "chest_xray.safetensors", tmp_path / "chest_xray.json")
    with pytest.raises(CheckpointError, match=f"chest_xray.*{message}|{message}.*chest_xray"):
        load_judge(tmp_path, "chest", "xray")


def test_weights_of_another_network_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in ("safetensors", "json"):
        shutil.copy(SHIPPED_JUDGES / f"chest_xray.{suffix}", tmp_path)
    monkeypatch.setattr(JudgeNet, "FEATURES", 32)
    with pytest.raises(CheckpointError, match="does not fit this network"):
        load_judge(tmp_path, "chest", "xray")


def test_shipped_judges_are_complete_and_small(shipped: Judges) -> None:
    assert set(shipped) == set(JUDGED)
    for (region, _), judge in shipped.items():
        assert judge.info["settings"] == asdict(JudgeSettings().of(region)), "it would be retrained"
    assert sum(f.stat().st_size for f in SHIPPED_JUDGES.iterdir()) < 2.5e6


@pytest.mark.parametrize(("region", "stream"), [("chest", "xray"), ("brain", "mri_flair")])
def test_shipped_judges_know_the_findings_of_new_patients_and_nothing_of_shuffled_labels(
    region: str, stream: str, shipped: Judges
) -> None:
    cohort = VirtualCohort("test", region, 96)
    reading = Reading.of(shipped[region, stream], cohort.stack(stream), cohort.findings)
    moved = Reading.of(
        shipped[region, stream], cohort.stack(stream), cohort.findings[7:] + cohort.findings[:7]
    )
    assert macro_auc(reading) > 0.8
    assert macro_auc(moved) == pytest.approx(0.5, abs=0.12)
