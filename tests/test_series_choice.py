"""The chooser of series: by what every file's header says, or a refusal that lists them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from film_helpers import dicom_film, film
from replicas.files import chest, dicom_slice, save_series

from medm2g_core.data.files import FileError, read_stream
from medm2g_core.data.header_evidence import looks_like
from medm2g_core.data.plausibility import check_header


def save_mr(folder: Path, level: float, uid: str, count: int = 6, **tags: object) -> None:
    """A head of noise around ``level``."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for k in range(count):
        head = np.zeros((48, 48), np.uint16)
        head[6:42, 8:40] = rng.normal(level, level / 10, (36, 32))
        plain = {"Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None}
        ds = dicom_slice(head, SeriesInstanceUID=uid, InstanceNumber=k, **plain, **tags)
        ds.ImagePositionPatient = [0, 0, 5.0 * k]
        ds.save_as(folder / f"{k}")


TIMES = {
    "t1": {"RepetitionTime": 500, "EchoTime": 10},
    "t2": {"RepetitionTime": 4500, "EchoTime": 100},
    "pd": {"RepetitionTime": 3000, "EchoTime": 15},
    "flair": {"RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500},
    "mprage": {"RepetitionTime": 2300, "EchoTime": 2.9, "InversionTime": 900},
}
NAMES = {
    "t1": "Ax T1 SE",
    "t2": "t2_tse_tra",
    "pd": "PD FSE",
    "flair": "T2 FLAIR",
    "dwi": "ep2d_diff_3scan_trace_p2",
}


def say(kinds: dict[str, dict[str, object]], root: Path) -> None:
    for i, tags in enumerate(kinds.values()):
        save_mr(root / f"s{i}", 100.0 * (i + 1), f"1.2.{i}", **tags)


@pytest.mark.parametrize("wanted", ["t1", "t2", "pd", "flair"])
@pytest.mark.parametrize("by", ["times", "names"])
def test_the_series_of_the_wanted_contrast_is_taken(tmp_path: Path, wanted: str, by: str) -> None:
    kinds = ("t1", "t2", "flair", "pd")
    if by == "times":
        facts: dict[str, dict[str, object]] = {k: dict(TIMES[k]) for k in kinds}
    else:
        facts = {k: {"SeriesDescription": NAMES[k]} for k in kinds}
    for k in kinds:
        facts[k]["SeriesNumber"] = kinds.index(k) + 1
    say(facts, tmp_path)
    loaded = read_stream(tmp_path, f"mri_{wanted}")
    assert loaded.table[0].startswith("->")
    assert f"series {kinds.index(wanted) + 1}," in loaded.table[0] and len(loaded.table) == 4


def test_a_larger_diffusion_series_never_wins(tmp_path: Path) -> None:
    save_mr(tmp_path / "a", 100, "1.2.1", **TIMES["t2"])
    diffusion = {"DiffusionBValue": 1000.0, "EchoTime": 90, "RepetitionTime": 6000}
    save_mr(tmp_path / "b", 300, "1.2.2", count=30, **diffusion)
    save_mr(tmp_path / "c", 300, "1.2.3", count=30, SeriesDescription=NAMES["dwi"])
    save_mr(tmp_path / "d", 300, "1.2.4", 30, ImageType=["DERIVED", "PRIMARY", "ADC"])
    loaded = read_stream(tmp_path, "mri_t2")
    assert any("took the one with 6 images" in n for n in loaded.notes)


def test_an_inversion_prepared_t1_is_a_t1(tmp_path: Path) -> None:
    say({"flair": TIMES["flair"], "mprage": TIMES["mprage"]}, tmp_path)
    assert "TI 900 ms" in read_stream(tmp_path, "mri_t1").notes


def test_series_that_nothing_tells_apart_are_listed_and_refused(tmp_path: Path) -> None:
    say({"a": {"SeriesDescription": "one"}, "b": {"SeriesDescription": "two"}}, tmp_path)
    with pytest.raises(FileError, match=r"2 image stacks could be mri_t1 .* one: 6 .* two: 6"):
        read_stream(tmp_path, "mri_t1")


@pytest.mark.parametrize(("more", "refused"), [(8, True), (30, False)])
def test_a_few_images_more_say_nothing_of_the_contrast(
    tmp_path: Path, more: int, refused: bool
) -> None:
    save_mr(tmp_path / "a", 100, "1.2.1", count=6, SeriesDescription="one")
    save_mr(tmp_path / "b", 300, "1.2.2", count=more, SeriesDescription="two")
    if refused:
        with pytest.raises(FileError, match="their headers do not tell which; put the files of"):
            read_stream(tmp_path, "mri_t2")
        return
    notes = " ".join(read_stream(tmp_path, "mri_t2").notes)
    assert "took the one with 30 images (two)" in notes and "one: 6 images would have" in notes


def test_of_two_equal_ct_series_the_other_is_named(tmp_path: Path) -> None:
    save_series(tmp_path / "a", chest(), SeriesInstanceUID="1.2.1", SeriesDescription="one")
    save_series(tmp_path / "b", chest(), SeriesInstanceUID="1.2.2", SeriesDescription="two")
    notes = " ".join(read_stream(tmp_path, "ct").notes)
    assert (
        "two: 40 images would have fitted as well; to see it, give its files in a folder" in notes
    )


def test_two_films_of_two_patients_are_refused(tmp_path: Path) -> None:
    for person in ("A", "B"):
        ds = dicom_film((film() * 4000).astype(np.uint16), PatientID=person, ViewPosition="PA")
        ds.save_as(tmp_path / person)
    with pytest.raises(FileError, match=r"2 image stacks could be xray and they are of 2 patients"):
        read_stream(tmp_path, "xray")


def test_series_that_all_contradict_are_listed_and_refused(tmp_path: Path) -> None:
    say(
        {
            "flair": TIMES["flair"] | {"SeriesDescription": NAMES["flair"]},
            "dwi": {"DiffusionBValue": 1000.0, "SeriesDescription": NAMES["dwi"]},
        },
        tmp_path,
    )
    with pytest.raises(FileError, match=r"none of the 2 image stacks can be mri_t1.*T2 FLAIR"):
        read_stream(tmp_path, "mri_t1")


def test_the_frontal_film_of_a_series_is_taken(tmp_path: Path) -> None:
    stored = (film() * 4000).astype(np.uint16)
    for name, view, pixels in (("1", "LL", stored[::-1].copy()), ("2", "PA", stored)):
        dicom_film(pixels, ViewPosition=view, SeriesInstanceUID="1.2.3").save_as(tmp_path / name)
    loaded = read_stream(tmp_path, "xray")
    expected = read_stream(tmp_path / "2", "xray")
    assert (loaded.image == expected.image).all()
    (tmp_path / "2").unlink()
    with pytest.raises(FileError, match="ViewPosition is LL, no frontal view"):
        read_stream(tmp_path, "xray")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"SeriesDescription": "CHEST LAT"}, "lateral view by its description"),
        ({"PatientOrientation": ["A", "F"]}, "PatientOrientation says a lateral"),
        ({"ViewPosition": "RLO"}, "ViewPosition is RLO"),
        ({"BodyPartExamined": "HAND"}, "BodyPartExamined is HAND"),
        ({"Modality": "PX"}, "panoramic"),
    ],
)
def test_a_film_of_something_else_is_refused(
    tmp_path: Path, tags: dict[str, object], words: str
) -> None:
    dicom_film((film() * 4000).astype(np.uint16), **tags).save_as(tmp_path / "a.dcm")
    with pytest.raises(FileError, match=f"cannot be the stream xray: .*{words}"):
        read_stream(tmp_path / "a.dcm", "xray")


@pytest.mark.parametrize("part", ["CHEST", "", "UNKNOWN", "Thorax", "TORAX", "PORT CHEST"])
def test_control_a_chest_film_is_taken(tmp_path: Path, part: str) -> None:
    tags = {"BodyPartExamined": part, "ViewPosition": "AP", "PatientOrientation": ["L", "F"]}
    dicom_film((film() * 4000).astype(np.uint16), **tags).save_as(tmp_path / "a.dcm")
    assert not [n for n in read_stream(tmp_path / "a.dcm", "xray").notes if "may not" in n]


def test_the_image_type_of_every_file_is_read(tmp_path: Path) -> None:
    save_series(tmp_path / "s", chest())
    scout = dicom_slice((chest()[:, 32] + 1024).astype(np.int16)[:, ::-1].copy())
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.SeriesInstanceUID, scout.ImageOrientationPatient = "1.2.3", [1, 0, 0, 0, 0, -1]
    scout.save_as(tmp_path / "s" / "zz_last")
    loaded = read_stream(tmp_path / "s", "ct")
    assert any("took the one with 40 images" in n for n in loaded.notes)


@pytest.mark.parametrize(
    "tags",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"ImageType": ["DERIVED", "SECONDARY", "MIP"]},
        {"SeriesDescription": "Topogram 0.6 T20s"},
        {"SeriesDescription": "COR MIP"},
    ],
)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_projection_is_no_ct_slice(tmp_path: Path, tags: dict[str, object], kind: str) -> None:
    ds = dicom_slice((chest()[20] + 1024).astype(np.int16), **tags)
    ds.save_as(tmp_path / "a.dcm")
    with pytest.raises(FileError, match="projection"):
        read_stream(tmp_path / "a.dcm" if kind == "file" else tmp_path, "ct")


@pytest.mark.parametrize(
    ("facts", "like"),
    [
        (TIMES["t1"], "mri_t1"),
        (TIMES["mprage"], "mri_t1"),
        (TIMES["t2"], "mri_t2"),
        (TIMES["pd"], "mri_pd"),
        (TIMES["flair"], "mri_flair"),
        ({"SeriesDescription": "Ax T1 FLAIR", "InversionTime": 800, "EchoTime": 12}, "mri_t1"),
        ({"SeriesDescription": "t2_tirm_tra_dark-fluid"}, "mri_flair"),
        ({"SeriesDescription": "t1_mpr_sag_p2_iso"}, "mri_t1"),
        ({"FileName": "sub-01_FLAIR.nii.gz"}, "mri_flair"),
        ({"FileName": "IXI002-Guys-0828-PD.nii.gz"}, "mri_pd"),
        ({"SeriesDescription": "brain"}, ""),
        ({"DiffusionBValue": 1000.0, "EchoTime": 90.0}, ""),
        ({}, ""),
    ],
)
def test_what_a_header_looks_like(facts: dict[str, object], like: str) -> None:
    assert looks_like(facts) == like


def test_a_flair_given_as_t1_is_refused_and_the_right_stream_named() -> None:
    said = check_header(TIMES["flair"] | {"SeriesDescription": "ax flair"}, "mri_t1").refusal
    assert "cannot be the stream mri_t1: a FLAIR by TR 9000 ms, TE 120 ms, TI 2500 ms" in said
    assert "it fits mri_flair: give it as that" in said


def test_times_alone_against_a_stream_are_a_note() -> None:
    verdict = check_header(TIMES["t2"], "mri_t1")
    assert not verdict.refusal and "may not be mri_t1: T2-weighted by TR" in verdict.notes[0]


def test_of_a_dixon_series_the_image_in_phase_is_taken(tmp_path: Path) -> None:
    for i, kind in enumerate(("FAT", "OUT_PHASE", "IN_PHASE", "WATER")):
        types = ["DERIVED", "PRIMARY", "DIXON", kind]
        level = 100.0 * (i + 1)
        save_mr(tmp_path / kind, level, "1.2.3", ImageType=types, **TIMES["t1"])
    loaded = read_stream(tmp_path, "mri_t1")
    assert any("took image type DERIVED/PRIMARY/DIXON/IN_PHASE" in n for n in loaded.notes)


def test_a_soft_kernel_is_preferred_to_a_sharp_one(tmp_path: Path) -> None:
    for name, kernel in (("lung", "B70f"), ("soft", "B31f")):
        tags = {"SeriesInstanceUID": f"1.{len(name)}.{ord(name[0])}", "ConvolutionKernel": kernel}
        save_series(tmp_path / name, chest(), SeriesDescription=name, **tags)
    assert "soft: 40 images" in read_stream(tmp_path, "ct").table[0]


def test_the_series_before_contrast_is_preferred(tmp_path: Path) -> None:
    named = {"SeriesDescription": "t1_se_tra"} | TIMES["t1"]
    save_mr(tmp_path / "a", 300, "1.2.1", ContrastBolusAgent="Gadobutrol", SeriesNumber=1, **named)
    save_mr(tmp_path / "b", 100, "1.2.2", SeriesNumber=2, **named)
    assert "series 2," in read_stream(tmp_path, "mri_t1").table[0]
