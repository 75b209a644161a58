"""Scores: their values on cases that can be worked out, and what the first evaluation writes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from medm2g_core.evaluation.results import (
    evaluate,
    failed,
    flow_device,
    flow_seconds,
    handicap,
    report,
    trained_long_enough,
    weights_digest,
)
from medm2g_core.evaluation.retrieval import ceiling_hits, hits_at, same_findings_at_1
from medm2g_core.evaluation.table import (
    Check,
    ResultStore,
    Row,
    SectionResult,
    compact,
    make_row,
    markdown,
)
from medm2g_core.metrics.bootstrap import bootstrap
from medm2g_core.metrics.findings import finding_counts, finding_f1
from medm2g_core.metrics.pixels import ct_mae_hu, psnr, ssim
from medm2g_core.model import MedM2G
from medm2g_core.rivals.clock import stopwatch, unit
from medm2g_core.rivals.shares import parse_shares
from medm2g_core.streams import Finding, hu_to_unit
from medm2g_core.training.validate import recall_at

ROOT = Path(__file__).resolve().parents[1]


def test_psnr_of_a_tenth_of_the_range_is_20_db() -> None:
    a = torch.zeros(2, 1, 8, 8)
    assert psnr(a, a + 0.2).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_ssim_is_one_for_equal_images_and_low_for_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 1, 32, 32, generator=generator) * 2 - 1
    assert ssim(a, a).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert ssim(a, b).max() < 0.3


def test_ct_error_is_in_hounsfield_units() -> None:
    a, b = hu_to_unit(torch.full((1, 1, 4, 4), 40.0)), hu_to_unit(torch.full((1, 1, 4, 4), -60.0))
    assert ct_mae_hu(a, b).item() == pytest.approx(100.0, abs=1e-2)


def test_strict_counts_need_side_and_size_and_presence_does_not() -> None:
    true = [Finding("pleural_effusion", "left", "", "large")]
    said = [
        Finding("pleural_effusion", "right", "", "large"),
        Finding("cardiomegaly", size="small"),
    ]
    assert finding_counts(said, true, strict=False) == (1, 1, 0)
    assert finding_counts(said, true, strict=True) == (0, 2, 1)
    assert finding_f1([(1, 1, 0)]) == pytest.approx(2 / 3)
    assert finding_f1([(0, 0, 0)]) == 0.0


def test_bootstrap_interval_holds_the_mean_and_shrinks_with_n() -> None:
    x = np.random.default_rng(0).normal(5, 1, 400)
    value, low, high = bootstrap(x.tolist())
    assert low < value < high and abs(value - 5) < 0.2
    few = bootstrap(x[:25].tolist())
    assert few[2] - few[1] > 2 * (high - low)
    f1 = bootstrap([(1, 0, 0)] * 10 + [(0, 0, 1)] * 10)
    assert f1[0] == pytest.approx(2 / 3) and f1[1] < 2 / 3 < f1[2]


def test_recall_is_perfect_for_equal_embeddings_and_chance_for_random_ones() -> None:
    a, b = torch.nn.functional.normalize(
        torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    assert recall_at(a, a, 1) == 1.0
    assert recall_at(a, b, 5) < 0.1
    assert np.mean(hits_at(a, a, 1)) == 1.0
    assert np.mean(hits_at(a, b, 5)) == pytest.approx(recall_at(a, b, 5))


def test_equal_embeddings_are_a_draw_in_retrieval() -> None:
    """Four copies of one patient: a rank of 1 would be luck, so each counts a quarter, as the
    ceiling says."""
    same = torch.ones(4, 3) / 3**0.5
    assert hits_at(same, same, 1) == pytest.approx([0.25] * 4)
    assert hits_at(same, same, 4) == [1.0] * 4
    assert ceiling_hits(["a", "a", "a", "a"], 1) == [0.25] * 4
    assert ceiling_hits(["a", "b", "b"], 1) == [1.0, 0.5, 0.5]


def test_same_findings_counts_another_patient_with_equal_findings_and_no_other_side() -> None:
    left, right = (
        Finding("pneumothorax", "left", "", "small"),
        Finding("pneumothorax", "right", "", "small"),
    )
    swap = torch.eye(3)[[1, 0, 2]]  # patients 0 and 1 find each other, 2 itself
    assert same_findings_at_1(torch.eye(3), swap, [(left,), (left,), ()]) == [1.0, 1.0, 1.0]
    assert same_findings_at_1(torch.eye(3), swap, [(left,), (right,), ()]) == [0.0, 0.0, 1.0]


def test_a_stored_piece_comes_back_only_for_what_it_was_measured_with(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    outcome = SectionResult(
        [make_row("t", "m", "model", [1.0, 2.0])], [Check("c", True, "d")], 1.0, {"a": 1}
    )
    store.put("x", ResultStore.key(weights="a"), outcome)
    assert store.get("x", ResultStore.key(weights="a")) == outcome
    assert (
        store.get("x", ResultStore.key(weights="b")) is None
        and store.get("y", ResultStore.key(weights="a")) is None
    )
    (tmp_path / "x.json").write_text("{half", encoding="utf-8")  # damaged: measured again, no crash
    assert store.get("x", ResultStore.key(weights="a")) is None


def test_the_table_has_a_line_a_metric_and_keeps_rivals_apart() -> None:
    rows = [
        Row("a → b", "PSNR, dB", "model", 20.0, 19.0, 21.0, 8),
        Row("a → b", "PSNR, dB", "ceiling: codec", 30, 29, 31, 8),
        Row("a → b", "PSNR, dB", "baseline: mean image", 15, 14, 16, 8),
        Row("a → b", "SSIM", "model", 0.5, 0.4, 0.6, 8),
    ]
    lines = markdown(rows).splitlines()
    assert len(lines) == 4
    cells = [
        "a → b",
        "PSNR, dB",
        "8",
        "20.0 [19.0, 21.0]",
        "mean image 15.0 [14.0, 16.0]",
        "codec 30.0 [29.0, 31.0]",
    ]
    assert lines[2] == f"| {' | '.join(cells)} |"


def test_the_short_table_keeps_the_strongest_rival_of_each_kind_and_the_single_draw():
    def row(who: str, value: float) -> Row:
        return Row("task", "finding F1", who, value, value - 0.1, value + 0.1, 9)

    rows = [
        row("model", 0.3),
        row("model, best of 8", 0.5),
        row("model, mean", 0.4),
        row("baseline: weak", 0.2),
        row("baseline: strong", 0.6),
        row("control: shuffled", 0.1),
        row("ceiling: codec", 0.8),
        row("ceiling: real images", 0.9),
        Row("other", "PSNR, dB", "model", 20.04, 19, 21, 4),
    ]
    first, second = compact(rows).splitlines()[2:]
    cells = [c.strip() for c in first.strip("|").split("|")]
    assert cells == [
        "task",
        "finding F1",
        "9",
        "0.30 [0.20, 0.40]",
        "0.50 [0.40, 0.60] best of 8",
        "0.60 [0.50, 0.70] strong",
        "0.10 [0.00, 0.20] shuffled",
        "0.90 [0.80, 1.00] real images",
    ]
    cells = [c.strip() for c in second.strip("|").split("|")]
    assert cells == ["other", "PSNR, dB", "4", "20.0 [19.0, 21.0]", "", "", "", ""]


def test_trained_baselines_get_the_time_of_the_flow_they_face(tmp_path: Path) -> None:
    stages = {
        n: {"seconds": s, "threads": 2}
        for n, s in (("round1", 50.0), ("round2", 25.0), ("round3", 35.0))
    }
    (tmp_path / "training.json").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    assert flow_seconds(tmp_path) == {"text": 50.0, "xray": 50.0, "ct": 50.0, "mri": 70.0}
    assert flow_seconds(tmp_path, 0.5)["mri"] == 35.0
    assert set(flow_seconds(tmp_path / "nothing")) == {"text", "xray", "ct", "mri"}


def test_a_rival_of_flows_trained_on_a_gpu_gets_seconds_of_the_wall(tmp_path: Path) -> None:
    """Eight threads feed a GPU, but it is the GPU's time that both spend."""
    stage = {"seconds": 70.0, "threads": 8, "device": "cuda (NVIDIA H200)"}
    training = {"stages": dict.fromkeys(("round1", "round2", "round3"), stage)}
    (tmp_path / "training.json").write_text(json.dumps(training))
    assert flow_seconds(tmp_path, "1,mri=0.5") == {
        "text": 35.0,
        "xray": 35.0,
        "ct": 70.0,
        "mri": 35.0,
    }
    assert flow_device(tmp_path) == "cuda" and flow_device(tmp_path / "nothing") == "cpu"


def test_the_clock_of_a_cpu_stands_still_while_nothing_is_computed() -> None:
    spent = stopwatch("cpu")
    time.sleep(0.3)
    idle = spent()
    while spent() < idle + 0.05:
        pass
    assert idle < 0.1 and unit("cpu") == "CPU seconds" and unit("cuda:1") == "GPU seconds"


def test_evaluation_keeps_its_sections_and_measures_again_with_other_weights(
    model: MedM2G, tmp_path: Path
) -> None:
    """An untrained model: its tables are complete, its controls that need a trained model fail, and
    that is said."""
    folder, out = tmp_path / "weights", tmp_path / "results"
    model.save_pretrained(folder)
    sizes = {"n_chest": 8, "n_brain": 4, "reference": 4, "steps": 1}
    sections = ("alignment", "guidance")
    outcomes = evaluate(folder, out, sections=sections, **sizes)
    assert set(outcomes) == set(sections)
    for outcome in outcomes.values():
        assert outcome.rows and all(r.low <= r.value <= r.high for r in outcome.rows)
    bad = failed(outcomes)
    assert any(
        "a wrong guide is visibly wrong" in c.name for _, c in bad
    ) and "does not hold" in report(outcomes)
    stamp = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert evaluate(folder, out, sections=sections, **sizes) == outcomes
    assert evaluate(folder, out, sections=sections, time_fraction=1.0, **sizes) == outcomes, (
        "they train no baselines"
    )
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == stamp
    before = weights_digest(folder)
    with torch.no_grad():
        next(model.flows["mri"].parameters()).add_(0.5)
    model.save_pretrained(folder)
    assert weights_digest(folder) != before
    evaluate(folder, out, sections=("guidance",), **sizes)
    changed = {p.name for p in out.iterdir() if p.stat().st_mtime_ns != stamp[p.name]}
    assert changed == {"guidance.json"}
    with pytest.raises(ValueError, match="unknown section 'x'"):
        evaluate(folder, out, sections=("x",))


@pytest.mark.parametrize(
    ("had", "asked", "kept"),
    [
        (0.1, 0.1, True),
        (1.0, 0.1, True),
        (0.1, 1.0, False),
        (0.1, "0.1,text=1", True),  # image to image has no report decoder
        (0.1, "0.1,mri=1", False),
        ({"mri": 1.0, "ct": 0.1, "xray": 0.1, "pix2pix": 0.1}, "0.1,mri=1,pix2pix=0.1", True),
        ({"mri": 1.0, "ct": 0.1, "xray": 0.1, "pix2pix": 0.1}, "0.1,mri=1", False),
    ],
)
def test_scores_are_kept_unless_their_baselines_were_trained_for_less_than_asked(
    had, asked, kept
) -> None:
    outcome = SectionResult(facts={"settings": {"time_fraction": had}})
    assert trained_long_enough("translation", outcome, asked) is kept and trained_long_enough(
        "guidance", outcome, asked
    )
    said = handicap(
        {
            "translation": outcome,
            "guidance": SectionResult(facts={"settings": {"time_fraction": 0.1}}),
        }
    )
    whole = "10 % (Image to image: to CT, to X-ray, pix2pix); 100 % (Image to image: to MR)"
    assert (f"{100 * had:g} % (Image to image)" if isinstance(had, float) else whole) in said
    assert "Is the guidance" not in said and ("beating them shows little" in said) is (had != 1.0)


def test_shares_of_the_training_time_are_read_or_refused_in_words() -> None:
    assert set(parse_shares(0.5).values()) == {0.5}
    assert parse_shares("0.1,mri=1") == {
        "text": 0.1,
        "xray": 0.1,
        "ct": 0.1,
        "mri": 1.0,
        "pix2pix": 1.0,
    }
    assert parse_shares("0.1,mri=1,pix2pix=0.2")["pix2pix"] == 0.2
    for bad in ("0", "x", "-1", "0.1,pet=1", "0.1,mri=", "inf"):
        with pytest.raises(ValueError, match="time fraction"):
            parse_shares(bad)


def test_seconds_of_another_kind_of_machine_are_called_not_comparable() -> None:
    outcome = SectionResult(
        facts={"settings": {"time_fraction": 1.0}, "devices": {"flows": "cuda", "baselines": "cpu"}}
    )
    assert "not comparable" in handicap({"translation": outcome})
    outcome.facts["devices"] = {"flows": "cuda", "baselines": "cuda"}
    assert "not comparable" not in handicap({"translation": outcome})
