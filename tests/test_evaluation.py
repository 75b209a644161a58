"""Scores: their values on cases that can be worked out, and what the first evaluation writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medm2g_core.evaluation.metrics import bootstrap, ct_mae_hu, finding_counts, finding_f1, psnr, ssim
from medm2g_core.evaluation.quick import markdown, quick_evaluation, recall_at_one, write_results
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.show.readme import blocks, fill
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
    said = [Finding("pleural_effusion", "right", "", "large"), Finding("cardiomegaly", size="small")]
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
    a, b = torch.nn.functional.normalize(torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert recall_at(a, a, 1) == 1.0
    assert recall_at(a, b, 5) < 0.1
    hits = [recall_at_one(a, b, i, 5) for i in range(200)]
    assert np.mean(hits) == pytest.approx(recall_at(a, b, 5))


def test_evaluation_has_baselines_controls_and_ceilings_for_every_task(model: MedM2G, tmp_path: Path) -> None:
    result = quick_evaluation(MedM2GPipeline(model), n_chest=3, n_brain=2, steps=1, reference=2)
    by_task: dict[tuple[str, str], set[str]] = {}
    for r in result["rows"]:
        assert r["low"] <= r["value"] <= r["high"] and r["n"] in (2, 3)
        by_task.setdefault((r["task"], r["metric"]), set()).add(r["who"].split(":")[0].split(",")[0])
    for key, who in by_task.items():
        assert {"model", "baseline", "ceiling"} <= who, key
    assert any("Report (chest)" in t for t, _ in by_task) and any(m == "MAE, HU" for _, m in by_task)
    files = write_results(result, tmp_path)
    assert json.loads(files[0].read_text(encoding="utf-8")) == result
    assert markdown(result).count("\n") == len(by_task) + 2


def test_readme_shows_what_the_programs_measured() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert fill(text, blocks(ROOT)) == text, "run: python -m medm2g_core.show.readme"
    with pytest.raises(ValueError, match="no block"):
        fill("nothing here", {"results": "x"})
