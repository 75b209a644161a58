"""A small tree of MIMIC-CXR-JPG or MIMIC-CXR with the true names, headers and faults; texts and
pixels are made up."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

from replicas.films import frontal, lateral, save, save_dicom

RULER = " " + "_" * 78

FULL = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___-year-old woman with cough  // pneumonia?
 
 COMPARISON:  ___.
 
 FINDINGS: 
 
 There is a small left pleural effusion.  Seen on ___: no change
 of the heart.
 
 IMPRESSION: 
 
 Small left effusion.
"""
TWICE = """                                 FINAL REPORT
 HISTORY:  Fever.

 IMPRESSION:  First reading, withdrawn.

 FINDINGS AND IMPRESSION:  The lungs are clear.
"""
ADDENDUM = f"""                                 FINAL ADDENDUM
 ADDENDUM:  The wrong side was named.

 IMPRESSION:  Belongs to the addendum.
{RULER}
                                 FINAL REPORT
 AP CHEST, 9:30 A.M.

 HISTORY:  Chest tube.

 CONCLUSION:  No pneumothorax.
"""
PLAIN = """                                 FINAL REPORT
 PORTABLE CHEST FILM

 The patient is rotated.

 Heart size is normal and lungs are clear.
"""
EMPTY = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PORTABLE AP)

 INDICATION:  ___M with fall

 FINDINGS:

 IMPRESSION:

"""
MISSPELT = """                                 FINAL REPORT
 IMPRESSON:  Mild edema.
"""

# study: subject, split, report, views (None: blank ViewPosition)
STUDIES: dict[int, tuple[int, str, str | None, tuple[str | None, ...]]] = {
    50000001: (10000032, "train", FULL, ("LATERAL", "PA")),
    50000002: (10000032, "train", TWICE, ("AP", "AP")),  # two frontal views, one report
    50000003: (11000011, "validate", ADDENDUM, ("AP",)),
    50000004: (12000012, "test", PLAIN, (None, "PA")),
    50000005: (13000013, "train", EMPTY, ("AP",)),
    50000006: (13000013, "train", FULL, (None,)),
    50000007: (14000014, "train", FULL, ("LATERAL", "LL")),
    50000008: (15000015, "train", MISSPELT, ("PA",)),
    50000009: (16000016, "train", None, ("PA",)),
}
CHEXPERT = {
    50000001: {"Pleural Effusion": "1.0", "Pneumonia": "-1.0", "Pneumothorax": "0.0"},
    50000002: {"No Finding": "1.0"},
}


def image_id(study: int, k: int) -> str:
    """Names such as ``02aa804e-bde0afdd-112c0b34-7bc16630-4e384014``."""
    return f"{study:08x}-{k:08x}-112c0b34-7bc16630-4e384014"


def folder_of(study: int) -> Path:
    subject = str(STUDIES[study][0])
    return Path(f"p{subject[:2]}", f"p{subject}", f"s{study}")


def mimic_cxr(
    root: Path, *, dicom: bool = False, packed: bool = True, reports: str = "beside"
) -> Path:
    """``reports``: ``"beside"`` the study's folder, ``"inside"`` it, ``"own"`` (elsewhere) or
    ``"none"``."""
    root.mkdir(parents=True, exist_ok=True)
    labels = sorted({n for each in CHEXPERT.values() for n in each})
    rows = [
        (image_id(s, k), s, k, view)
        for s, (*_, views) in STUDIES.items()
        for k, view in enumerate(views)
    ]
    tables = {
        "metadata": (
            [["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows"]]
            + [[i, STUDIES[s][0], s, view or "", 3056] for i, s, _, view in rows]
        ),
        "split": (
            [["dicom_id", "study_id", "subject_id", "split"]]
            + [[i, s, STUDIES[s][0], STUDIES[s][1]] for i, s, *_ in rows]
        ),
        "chexpert": (
            [["subject_id", "study_id", *labels]]
            + [
                [STUDIES[s][0], s, *(each.get(n, "") for n in labels)]
                for s, each in CHEXPERT.items()
            ]
        ),
    }
    for name, table in tables.items():
        path = root / f"mimic-cxr-2.0.0-{name}.csv{'.gz' if packed else ''}"
        with gzip.open(path, "wt", newline="") if packed else path.open("w", newline="") as file:
            csv.writer(file).writerows(table)
    for i, study, k, view in rows:
        film = lateral(seed=k) if view in ("LATERAL", "LL") else frontal(seed=study % 97 + k)
        path = root / "files" / folder_of(study) / i
        if dicom:
            save_dicom(path.with_suffix(".dcm"), film, inverted=True)
        else:
            save(path.with_suffix(".jpg"), film, kind="JPEG")
    for study, (_, _, text, _) in STUDIES.items():
        if text is None or reports == "none":
            continue
        folder = root.parent / "reports" / "files" if reports == "own" else root / "files"
        path = (
            folder / folder_of(study) / f"s{study}.txt"
            if reports == "inside"
            else folder / folder_of(study)
        )
        path = path if reports == "inside" else path.with_name(f"s{study}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
