"""The note on pictures unlike training: its threshold is measured and stored, and it reaches the
user everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures, untrained
from PIL import Image

from medm2g_core.cli import main
from medm2g_core.evaluation import familiarity as program
from medm2g_core.familiarity import MARGIN_DB, QUANTILE, note_on, redrawn_db, threshold_db
from medm2g_core.inputs import InputWarning
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.profiles import PROFILES
from medm2g_core.streams import IMAGE_STREAMS


def test_the_threshold_is_what_all_but_a_hundredth_reach() -> None:
    scores = torch.arange(1000).float()
    assert float((scores < threshold_db(scores)).float().mean()) == pytest.approx(
        QUANTILE, abs=1e-3
    )


def test_a_picture_that_comes_back_worse_is_told_and_others_are_not(model: MedM2G) -> None:
    images = pictures(6)
    scores = redrawn_db(model, "ct", images)
    assert not note_on(model, "ct", images), "no threshold, no note"
    model.familiar = {"ct": float(scores.sort().values[1]) - 1e-4 + MARGIN_DB}
    worst = int(scores.argmin())
    (note,) = note_on(model, "ct", images)
    assert note == note_on(model, "ct", images[worst : worst + 1])[0]
    error = 100 * 10 ** (-float(scores[worst]) / 20)
    assert note.startswith("unlike anything in training") and f"{error:.1f} % error" in note
    assert not note_on(model, "ct", torch.cat([images[:worst], images[worst + 1 :]]))
    assert not note_on(model, "xray", images), "the threshold is of one stream"


def test_the_threshold_stays_with_the_model(model: MedM2G, tmp_path: Path) -> None:
    model.familiar = {"xray": 34.5}
    model.save_pretrained(tmp_path / "a")
    again = MedM2G.from_pretrained(tmp_path / "a")
    assert again.familiar == {"xray": 34.5}
    MedM2GPipeline(again).save_pretrained(tmp_path / "b")
    assert MedM2GPipeline.from_pretrained(tmp_path / "b").model.familiar == {"xray": 34.5}


def test_the_pipeline_warns_and_keeps_the_note(model: MedM2G) -> None:
    model.familiar = {"ct": 1000.0}
    pipe = MedM2GPipeline(model)
    with pytest.warns(InputWarning, match="ct: unlike anything in training"):
        out = pipe({"ct": pictures(1)}, ["xray"], num_inference_steps=1, num_samples=2)
    (note,) = [n for n in out.notes["ct"] if "unlike anything in training" in n]
    assert "do not trust what it draws" in note


def test_the_command_line_tells_it_and_the_record_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = untrained(PROFILES["smoke"])
    strange.familiar = dict.fromkeys(IMAGE_STREAMS, 1000.0)
    strange.save_pretrained(tmp_path / "model")
    ramp = np.tile(np.arange(128, dtype=np.uint8) * 2, (128, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    common = ["--model", str(tmp_path / "model")]
    given = ["--given", f"xray={tmp_path / 'a.png'}", "--want", "ct", "--steps", "1"]
    assert main(["generate", *given, "--out", str(tmp_path / "out"), *common]) == 0
    assert "xray: unlike anything in training" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "generation.json").read_text(encoding="utf-8"))
    assert sum("unlike anything in training" in n for n in record["given"]["xray"]["notes"]) == 1
    picture = ["--out", str(tmp_path / "seen.png")]
    assert main(["check", str(tmp_path / "a.png"), "--as", "xray", *picture, *common]) == 0
    assert "unlike anything in training" in capsys.readouterr().out


class _Pictures:
    """Stands in for a cohort: random pictures."""

    def __init__(self, split: str, region: str, size: int, **_: object) -> None:
        assert split == "val", "thresholds are chosen on validation studies"
        self.size, self.seed = size, {"chest": 0, "brain": 1}[region]

    def stack(self, name: str) -> torch.Tensor:
        return pictures(self.size, seed=self.seed)


def test_the_program_measures_prints_and_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    untrained(PROFILES["smoke"]).save_pretrained(tmp_path)
    monkeypatch.setattr(program, "VirtualCohort", _Pictures)
    sizes = ["--model", str(tmp_path), "--chest", "5", "--brain", "4"]
    assert program.main(sizes) == 0
    assert not MedM2G.from_pretrained(tmp_path).familiar, "only printed"
    assert program.main([*sizes, "--write"]) == 0
    model = MedM2G.from_pretrained(tmp_path)
    assert set(model.familiar) == set(IMAGE_STREAMS)
    both = torch.cat([pictures(5, seed=0), pictures(4, seed=1)])
    expected = threshold_db(redrawn_db(model, "mri_t1", both))
    assert model.familiar["mri_t1"] == pytest.approx(expected, abs=0.01)
    assert f"{model.familiar['mri_t1']:.2f}" in capsys.readouterr().out
