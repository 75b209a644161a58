"""MedICaT: which figures become which stream, on a small replica."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from replicas.films import frontal, save
from replicas.medicat import FIGURES, HASH, colour, medicat

from medm2g_core.data.sources.base import SourceDataset, SourceError, SourceStudy
from medm2g_core.data.sources.medicat import MedICaT, caption_stream, caption_text


def load(root: Path) -> tuple[SourceDataset, dict[str, SourceStudy]]:
    data = SourceDataset(MedICaT(), root, size=64)
    return data, {s.id: s for s in data.studies()}


def name(article: int, figure: str) -> str:
    return f"{HASH.format(article)}_{figure}"


def test_single_figures_become_the_stream_of_their_caption(tmp_path: Path) -> None:
    _, studies = load(medicat(tmp_path))
    assert {k: s.streams for k, s in studies.items()} == {
        name(1, "3-Figure1-1"): ("text", "xray"),
        name(1, "3-Figure2-1"): ("text", "ct"),
        name(2, "1-Figure1-1"): ("text", "mri_t2"),
        name(4, "5-Figure2-1"): ("text", "mri_t1"),
    }
    for study in studies.values():
        (image,) = study.images.values()
        row, column = divmod(int(image.argmax()), 64)
        assert image.shape == (1, 64, 64) and -1 <= image.min() < image.max() <= 1
        assert row < 18 and column > 45  # as displayed: neither mirrored nor turned
        assert math.isnan(study.spacing_mm[0])


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    data, _ = load(medicat(tmp_path))
    assert data.found.counts() == {
        "several panels": 1,
        "MR contrast unknown": 1,
        "not radiology": 1,
        "modality unknown": 1,
        "empty caption": 1,
        "several modalities": 1,
        "broken line": 1,
    }


@pytest.mark.parametrize(
    ("caption", "stream", "why"),
    [
        ("Anteroposterior pelvic X-ray.", "xray", ""),
        ("Contrast-enhanced computed tomography scan.", "ct", ""),
        ("Coronal FLAIR image with a lesion.", "mri_flair", ""),
        ("Axial T2 FLAIR MRI.", "mri_flair", ""),
        ("Proton-density MRI of the knee.", "mri_pd", ""),
        ("Sagittal T1W MR image.", "mri_t1", ""),
        ("T1 and T2 MRI.", "", "MR contrast unknown"),
        ("Diffusion-weighted MRI.", "", "MR contrast unknown"),
        ("MRI showing a tumour.", "", "MR contrast unknown"),
        ("Control computed tomography (CT) angiogram.", "ct", ""),
        ("CT and angiogram of the aorta.", "", "several modalities"),
        ("CT and chest radiograph.", "", "several modalities"),
        ("Ultrasound of the liver.", "", "another modality"),
        ("Chest radiographs before and after drainage.", "", "several panels"),
        ("CT scan. A, axial. B, coronal.", "", "several panels"),
        ("The tumour (arrow).", "", "modality unknown"),
        ("A defect of the lung.", "", "modality unknown"),  # "ct" within a word
    ],
)
def test_captions_decide_and_doubt_leaves_out(caption: str, stream: str, why: str) -> None:
    assert caption_stream(caption) == (stream, why)


def test_the_articles_licence_is_kept_and_null_is_not_free(tmp_path: Path) -> None:
    data, studies = load(medicat(tmp_path))
    assert "licence of the article: cc-by-nc-nd" in studies[name(2, "1-Figure1-1")].notes
    assert "licence of the article: not stated" in studies[name(4, "5-Figure2-1")].notes
    line = next(e for e in data.found.table if e.what.startswith("licences"))
    assert "cc-by 2" in line.found and "not stated 1" in line.found


def test_the_other_caption_is_used_when_one_is_null_and_the_number_is_dropped(
    tmp_path: Path,
) -> None:
    _, studies = load(medicat(tmp_path))
    assert (
        studies[name(1, "3-Figure1-1")].text == "Chest radiograph showing a right pleural effusion."
    )
    assert (
        caption_text("FIG 3: Two\n lines") == "Two lines" and caption_text("Figures show") == "show"
    )


def test_a_ct_figure_does_not_pretend_to_hounsfield_units(tmp_path: Path) -> None:
    _, studies = load(medicat(tmp_path))
    assert studies[name(1, "3-Figure2-1")].units == {"ct": "display intensity, window unknown"}


def test_an_article_is_in_one_split_only(tmp_path: Path) -> None:
    subjects = load(medicat(tmp_path))[0].subjects()
    everyone = [s for names in subjects.values() for s in names]
    assert len(everyone) == len(set(everyone)) == 3


def test_missing_corrupt_colour_and_repeated_figures_are_counted(tmp_path: Path) -> None:
    figures = medicat(tmp_path) / "figures"
    (figures / (name(1, "3-Figure1-1") + ".png")).unlink()
    (figures / (name(1, "3-Figure2-1") + ".png")).write_bytes(b"\x89PNG\r\n\x1a\n")
    colour(figures / (name(2, "1-Figure1-1") + ".png"))
    table = next(tmp_path.glob("*.jsonl"))
    (tmp_path / "copy.jsonl").write_text(table.read_text())
    data, studies = load(tmp_path)
    kinds = Counter(s.kind for s in data.skipped)
    assert kinds["image missing"] == 1 and kinds["unreadable file"] == 2
    assert kinds["repeated figure"] == len(FIGURES)
    assert set(studies) == {name(4, "5-Figure2-1")}
    assert any("colour" in s.why for s in data.skipped)


def test_figure_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    table = next(medicat(tmp_path).glob("*.jsonl"))
    table.write_text(table.read_text().replace("3-Figure1-1.png", "/../../x.png"))
    with pytest.raises(SourceError, match="outside"):
        MedICaT().scan(tmp_path)


def test_a_wrong_folder_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="pdf_hash"):
        MedICaT().scan(tmp_path)
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(SourceError, match="no line of other"):
        MedICaT().scan(tmp_path)


def figure(root: Path) -> Path:
    return root / "figures" / (name(1, "3-Figure1-1") + ".png")


def test_channels_that_differ_by_the_rounding_of_a_pdf_are_grey(tmp_path: Path) -> None:
    path = figure(medicat(tmp_path))
    before = load(tmp_path)[1][name(1, "3-Figure1-1")].images["xray"]
    pixels = np.asarray(Image.open(path)).copy()
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 50, 40), rng.integers(0, 70, 40)  # 1 % of the pixels
    pixels[rows, columns, 2] = np.clip(pixels[rows, columns, 2].astype(int) + 4, 0, 255)
    Image.fromarray(pixels).save(path)
    after = load(tmp_path)[1][name(1, "3-Figure1-1")].images["xray"]
    assert (after - before).abs().max() < 3 * 2 / 255  # the mean of three channels, and sampling


@pytest.mark.parametrize("place", [".", "release", "release/public"])
@pytest.mark.parametrize("packed", [True, False])
def test_the_table_is_found_packed_and_deeper(tmp_path: Path, place: str, packed: bool) -> None:
    table = next(medicat(tmp_path).glob("*.jsonl"))
    target = tmp_path / place / f"t.jsonl{'.gz' if packed else ''}"
    target.parent.mkdir(parents=True, exist_ok=True)
    content = table.read_bytes()
    table.unlink()
    target.write_bytes(gzip.compress(content) if packed else content)
    assert len(load(tmp_path)[1]) == 4


def test_a_table_of_subcaptions_hides_no_figure(tmp_path: Path) -> None:
    medicat(tmp_path)
    rows = [
        {"pdf_hash": HASH.format(a), "fig_uri": uri, "subcaptions": ["a"]} for a, uri, *_ in FIGURES
    ]
    (tmp_path / "a_subcaptions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data, studies = load(tmp_path)
    assert len(studies) == 4 and data.found.counts()["another table"] == 1


@pytest.mark.parametrize(
    "caption",
    [
        "X-ray diffraction pattern of the sample.",
        "X-ray photoelectron spectrum.",
        "X-ray crystallography of the protein.",
        "Micro-CT of a rat femur.",
        "µCT of a tooth.",
        "PCR amplification, CT values of the samples.",
        "MR Egger estimate, Mendelian randomization.",
        "Severe MR (mitral regurgitation).",
        "Flow chart of the patients with CT.",
        "Histogram of CT attenuation.",
        "1H NMR spectrum.",
    ],
)
def test_what_shares_its_words_with_radiology_is_none(caption: str) -> None:
    stream, why = caption_stream(caption)
    assert not stream and why in ("several modalities", "another modality", "several panels")


def printed(film: np.ndarray, below: int = 24, above: int = 0, side: int = 0) -> np.ndarray:
    """A film on white paper, with dark lines of print in the band below."""
    page = np.pad(film, ((above, below), (side, side)), constant_values=255)
    for line in range(8, below - 3, 6):
        page[len(page) - below + line : len(page) - below + line + 3, 4:-4:4] = 20
    return page


def test_a_caption_that_was_printed_below_the_figure_is_cut_off(tmp_path: Path) -> None:
    path = figure(medicat(tmp_path))
    film = frontal(100, 100)
    key = name(1, "3-Figure1-1")
    save(path, film)
    before = load(tmp_path)[1][key]
    assert not any("print" in n for n in before.notes)
    for page in (printed(film), printed(film, above=10, side=12), printed(film, 0, 9, 9)):
        save(path, page)
        study = load(tmp_path)[1][key]
        assert torch.equal(study.images["xray"], before.images["xray"])
        assert any("100 x 100 of" in n for n in study.notes)
    save(path, printed(film[:20], below=200))
    data, studies = load(tmp_path)
    assert key not in studies and "mostly white paper" in data.skipped[-1].why
