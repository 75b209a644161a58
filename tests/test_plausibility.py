"""Whether a picture can be the stream: values, size, and what it shows, in files and in Python."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import pictures
from film_helpers import SIDE, dicom_film, film
from replicas.files import chest, save_nifti
from torch.nn import functional

from medm2g_core.data.acquisition import acquire
from medm2g_core.data.brain.pathology import sample_findings as brain_findings
from medm2g_core.data.chest.pathology import sample_findings as chest_findings
from medm2g_core.data.files import FileError, read_stream
from medm2g_core.data.phrasing import phrase
from medm2g_core.data.plausibility import check_picture
from medm2g_core.inputs import notes_on_report
from medm2g_core.model import load_tokenizer
from medm2g_core.pipeline import SHIPPED_WEIGHTS


def head(side: int = 64, slices: int = 24) -> np.ndarray:
    """(S, A, R) signal: a noisy ellipsoid with a dark border of air, brighter inside."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in (slices, side, side)], indexing="ij")
    inside = (x / 0.7) ** 2 + (y / 0.85) ** 2 + (z / 0.95) ** 2
    signal = np.where(inside < 1, 300 - 100 * inside, 0) + rng.normal(0, 5, x.shape)
    return np.abs(signal).astype(np.float32)


def save(path: Path, array: np.ndarray, mm: float = 3.0) -> Path:
    return save_nifti(path, array, (mm, mm, mm))


@pytest.mark.parametrize(
    ("mm", "refused", "told"),
    [(3.0, False, False), (0.35, True, False), (1.2, False, True), (30.0, True, False)],
)
def test_a_head_has_the_size_of_a_head(
    tmp_path: Path, mm: float, refused: bool, told: bool
) -> None:
    path = save(tmp_path / "a.nii", head(), mm)
    if refused:
        with pytest.raises(
            FileError, match=r"the head or body measures .* check the pixel spacing"
        ):
            read_stream(path, "mri_t1")
        return
    notes = " ".join(read_stream(path, "mri_t1").notes)
    assert ("is the spacing right" in notes) == told


def test_a_chest_of_a_mouse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="the body measures"):
        read_stream(save_nifti(tmp_path / "a.nii", chest(), (0.6, 0.5, 0.5)), "ct")


@pytest.mark.parametrize("top", [3, 12])
def test_a_label_map_is_refused(tmp_path: Path, top: int) -> None:
    labels = np.digitize(head(), np.linspace(50, 320, top)).astype(np.float32)
    with pytest.raises(FileError, match="a label map, not an image"):
        read_stream(save(tmp_path / "a.nii", labels), "mri_t1")
    with pytest.raises(FileError, match="a label map, not an image"):
        read_stream(save(tmp_path / "sub-1_dseg.nii.gz", labels * 10), "mri_t1")


@pytest.mark.parametrize("value", [1, 255])
def test_a_mask_is_refused(tmp_path: Path, value: int) -> None:
    from PIL import Image

    Image.fromarray(((film() > 0.4) * value).astype(np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(FileError, match=rf"only 2 different values \(0, {value}\): a mask"):
        read_stream(tmp_path / "a.png", "xray")


def test_maps_of_both_signs_are_refused(tmp_path: Path) -> None:
    signal, rng = head(), np.random.default_rng(1)
    inside = signal > 60
    t_map = np.where(inside, rng.normal(0, 2, signal.shape), 0)
    scored = np.where(inside, (signal - signal[inside].mean()) / signal[inside].std(), 0)
    phase = np.where(inside, rng.uniform(-4096, 4096, signal.shape), 0)
    for name, values in (("t", t_map), ("z", scored), ("phase", phase)):
        with pytest.raises(FileError, match="values on both sides of the background"):
            read_stream(save(tmp_path / f"{name}.nii", values.astype(np.float32)), "mri_t1")
    everywhere = ((signal - signal.mean()) / signal.std()).astype(np.float32)
    read_stream(save(tmp_path / "whole.nii", everywhere), "mri_t1")  # its air stays the darkest


def test_a_header_that_says_statistics_is_believed(tmp_path: Path) -> None:
    image = nib.Nifti1Image(head().transpose(2, 1, 0), np.diag([-3.0, -3.0, -3.0, 1.0]))
    image.header.set_intent("t test", (10,))
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(FileError, match="its header says 't test'"):
        read_stream(tmp_path / "a.nii", "mri_t1")


def test_the_sidecar_of_a_converter_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz", head())
    (tmp_path / "scan.json").write_text(
        json.dumps({"RepetitionTime": 9, "EchoTime": 0.12, "InversionTime": 2.5})
    )
    with pytest.raises(FileError, match=r"a FLAIR by TR 9000 ms, .* TI 2500 ms .*mri_flair"):
        read_stream(path, "mri_t1")
    assert not [n for n in read_stream(path, "mri_flair").notes if "may not" in n]
    (tmp_path / "scan.json").write_text("[1, 2")
    read_stream(path, "mri_t1")


def test_the_name_of_a_file_is_a_note(tmp_path: Path) -> None:
    loaded = read_stream(save(tmp_path / "sub-01_FLAIR.nii.gz", head()), "mri_t1")
    assert any("may not be mri_t1: FLAIR by its name" in n for n in loaded.notes)


def test_words_in_the_picture_are_told(tmp_path: Path) -> None:
    ds = dicom_film((film() * 4000).astype(np.uint16), BurnedInAnnotation="YES")
    ds.save_as(tmp_path / "a.dcm")
    assert any(
        "burned into the picture" in n for n in read_stream(tmp_path / "a.dcm", "xray").notes
    )


# --- pictures in -1..1


def shown() -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.01, (SIDE, SIDE))  # a part of one grey is a label
    return (film() * 2 - 1 + noise).clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ((shown() + 1) / 2, "as a picture in 0..1 has"),
        ((shown() + 1) / 2 - 0.03, "as a picture in 0..1 has"),  # resampling rings below 0
        (shown() * 0.04 - 0.94, "almost black"),
        (np.zeros((64, 64)), "blank"),
        (np.full((64, 64), -1.0), "blank"),
    ],
)
def test_a_picture_on_another_scale_is_refused(picture: np.ndarray, words: str) -> None:
    for name in ("xray", "mri_t1"):
        assert words in check_picture(picture, name).refusal


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (shown() * 0.5, "no air or background"),
        (np.random.default_rng(0).uniform(-1, 1, (64, 64)), "noise, not a picture"),
    ],
)
def test_a_doubtful_picture_is_told(picture: np.ndarray, words: str) -> None:
    verdict = check_picture(picture, "xray")
    assert not verdict.refusal and any(words in n for n in verdict.notes)


def test_control_a_film_is_fine() -> None:
    verdict = check_picture(shown(), "xray")
    assert not verdict.refusal and not verdict.notes
    assert not check_picture(pictures(1)[0, 0].numpy(), "mri_t1").refusal


def lateral() -> np.ndarray:
    """One lung in the middle, a spine behind it, air before and behind the body."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    values = np.where(np.abs(x) < 0.7, 0.7, 0.0)
    values[(x / 0.42) ** 2 + ((y + 0.1) / 0.6) ** 2 < 1] = 0.25
    return (values * 2 - 1).astype(np.float32)


def test_a_lateral_view_is_told() -> None:
    for picture in (lateral(), lateral()[:, ::-1]):
        verdict = check_picture(picture, "xray")
        assert not verdict.refusal and "a lateral view, or a white lung" in verdict.notes[0]
    assert not check_picture(lateral(), "ct").notes


@pytest.mark.parametrize("turns", [1, 3])
def test_a_film_on_its_side_is_told_or_refused(turns: int) -> None:
    verdict = check_picture(np.rot90(shown(), turns), "xray")
    assert re.search(
        "lie on its side|does not stand upright", " ".join([verdict.refusal, *verdict.notes])
    )


def test_a_negative_is_refused() -> None:
    for picture in (-shown(), np.pad(-shown(), ((0, 0), (30, 30)), constant_values=1.0)):
        assert "it is a negative" in check_picture(picture, "xray").refusal
    assert not check_picture(-shown(), "ct").refusal


def test_films_newly_acquired_are_never_refused_and_their_negatives_are() -> None:
    films = torch.from_numpy(shown())[None, None].repeat(60, 1, 1, 1)
    films = functional.interpolate(films, (128, 128), mode="area")
    films = acquire(films, "xray", torch.Generator().manual_seed(0))
    right = [check_picture(f[0].numpy(), "xray") for f in films]
    assert not any(v.refusal for v in right)
    assert sum("side" in n or "lateral" in n for v in right for n in v.notes) <= 2
    negatives = [check_picture(-f[0].numpy(), "xray").refusal for f in films]
    assert sum("it is a negative" in refusal for refusal in negatives) >= 57


# --- words


REPORTS = {
    "Findings: Large left pleural effusion. No pneumothorax.": "",
    "Heart size is normal. The lungs are clear bilaterally. No acute osseous abnormality.": "",
    "Normal chest.": "",
    "Gro\u00dfer Pleuraerguss links. Herz nicht vergr\u00f6\u00dfert.": "language",
    "Derrame pleural izquierdo grande. Silueta card\u00edaca de tama\u00f1o normal.": "language",
    "\u0412\u044b\u043f\u043e\u0442 \u0441\u043b\u0435\u0432\u0430.": "language",
    "asdkj qwelkj zxcmn poiqwe lkjasd": "language",
    "Displaced fracture of the left seventh rib.": "no finding that the model knows",
    "Rib fracture. Old granuloma.": "not understood: fracture; the model knows nothing",
    "Left effusion, a pacemaker and bronchiectasis.": "understood: pacemaker, bronchiectasis;",
    "Normal heart. Hiatal hernia.": "not understood: hernia;",
    "Large effusion. No fracture. Emphysema cannot be excluded.": "",
    "Large left pnuemothorax.": "'pnuemothorax' is no word that the model knows: is pneumothorax",
    "Moderate cardiomegally and a small nodule.": "is cardiomegaly meant?",
    "The diagnosis is a right hydrothorax with atelectatic lung and pleural fluid.": "",
    "12 34 56 !!": "no words",
    "LARGE LEFT PLEURAL EFFUSION. NO PNEUMOTHORAX.": "all in capitals",
    "Right hemothorax with mediastinal shift, ETT in place.": "hemothorax, mediastinal shift, ett;",
    "The left hemithorax shows a small pneumothorax.": "",
}


@pytest.mark.skipif(not SHIPPED_WEIGHTS.is_dir(), reason="no shipped weights here")
@pytest.mark.parametrize("text", REPORTS)
def test_a_report_that_the_model_cannot_follow_is_told(text: str) -> None:
    notes = " ".join(notes_on_report(load_tokenizer(SHIPPED_WEIGHTS), text))
    assert (REPORTS[text] in notes) if REPORTS[text] else not notes


def test_control_tokens_in_a_text_are_words(model) -> None:
    plain, _ = model.tokens(["effusion"])
    marked, _ = model.tokens(["effusion </s> <pad>"])
    assert (marked == 2).sum() == (plain == 2).sum() == 1 and marked.shape[1] > plain.shape[1]
    assert torch.equal(marked[0, : plain.shape[1] - 1], plain[0, :-1])


@pytest.mark.skipif(not SHIPPED_WEIGHTS.is_dir(), reason="no shipped weights here")
def test_nothing_of_the_cohorts_own_words_is_called_unknown() -> None:
    tokenizer, rng = load_tokenizer(SHIPPED_WEIGHTS), np.random.default_rng(0)
    for _ in range(60):
        for region, draw in (("chest", chest_findings), ("brain", brain_findings)):
            text = phrase(draw(rng), region, None, "", rng)
            assert not [n for n in notes_on_report(tokenizer, text) if "not understood" in n], text
