"""Small trees of IU X-Ray in its three forms, with the true names, headers and faults; texts and
pixels are made up."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from replicas.films import frontal, lateral, save

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <meta type="rr"/>
   <uId id="{uid}"/>
   <pmcId id="{number}"/>
   <licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
   <MedlineCitation Owner="Indiana University"><Article><Abstract>
      <AbstractText Label="COMPARISON">None.</AbstractText>
      <AbstractText Label="INDICATION">Cough.</AbstractText>
      <AbstractText Label="FINDINGS">{findings}</AbstractText>
      <AbstractText Label="IMPRESSION">{impression}</AbstractText>
   </Abstract></Article></MedlineCitation>
   <MeSH>{mesh}</MeSH>
   {images}
</eCitation>
"""

# number: findings, impression, MeSH, images as the XML names them (the last letter: Frontal or
# Lateral)
STUDIES: dict[int, tuple[str, str, tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    # the XML says CXR1_1, everything else CXR1; its first image is the lateral one
    1: (
        "The heart is normal. No XXXX or XXXX of effusion.",
        "Normal chest x-XXXX.",
        ("normal",),
        (("CXR1_1_IM-0001-3001", "L"), ("CXR1_1_IM-0001-4001", "F")),
    ),
    2: (
        "Left effusion of 3.5 cm, &lt; 1 liter.",
        "Effusion.",
        ("Pleural Effusion/left", "Cardiomegaly/mild"),
        (("CXR2_IM-0652-1001", "F"), ("CXR2_IM-0652-2001", "L")),
    ),
    10: (
        "",
        "No acute disease.",
        ("normal",),
        (("CXR10_IM-0002-1001", "F"), ("CXR10_IM-0002-2001", "L")),
    ),
    33: ("", "", (), (("CXR33_IM-1234-0001-0001", "F"), ("CXR33_IM-1234-0001-0002", "L"))),
    44: ("Clear lungs.", "Clear.", ("normal",), ()),
    55: ("Clear.", "", ("normal",), (("CXR55_IM-0055-1001", "F"),)),
    66: ("Scar.", "", (), (("CXR66_IM-0066-1002", "L"),)),
    77: ("", " ", ("normal",), ()),
    99: (
        "Three films.",
        "Nodule.",
        ("Nodule/lung",),
        (("CXR99_IM-9-1001", "F"), ("CXR99_IM-9-1002", "L"), ("CXR99_IM-9-3001", "F")),
    ),
}


def kaggle_name(image: str) -> str:
    """``CXR1_1_IM-0001-3001`` -> ``1_IM-0001-3001.dcm.png``."""
    return image.replace("CXR1_1_", "CXR1_").removeprefix("CXR") + ".dcm.png"


def write_projections(path: Path) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["uid", "filename", "projection"])
        for number, (_, _, _, images) in STUDIES.items():
            for name, view in images:
                table.writerow([number, kaggle_name(name), "Frontal" if view == "F" else "Lateral"])


def write_headers(path: Path) -> None:
    """The table of DICOM headers: both views of a pair are often called PA."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["imageid", "View Position"])
        for number, (_, _, _, images) in STUDIES.items():
            for name, view in images:
                said = "PA" if view == "F" or number == 2 else "LL"
                table.writerow([name.replace("CXR1_1_", "CXR1_"), said])


def raw(root: Path, images: bool = True) -> Path:
    """OpenI's form. Image files lie flat and are called after the XML's names, except those of
    CXR1."""
    folder = root / "NLMCXR_reports" / "ecgen-radiology"
    folder.mkdir(parents=True)
    for number, (findings, impression, mesh, films) in STUDIES.items():
        xml = XML.format(
            uid=f"CXR{number}",
            number=number,
            findings=findings,
            impression=impression,
            mesh="".join(f"<major>{m}</major>" for m in mesh),
            images="".join(
                f'<parentImage id="{n}"><figureId>F1</figureId></parentImage>' for n, _ in films
            ),
        )
        (folder / f"{number}.xml").write_text(xml, encoding="utf-8")
        for name, view in films if images else ():
            film = frontal(seed=number) if view == "F" else lateral(seed=number)
            save(root / "NLMCXR_png" / f"{name.replace('CXR1_1_', 'CXR1_')}.png", film)
    return root


def kaggle(root: Path) -> Path:
    """Raddar's form."""
    with (root / "indiana_reports.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            [
                "uid",
                "MeSH",
                "Problems",
                "image",
                "indication",
                "comparison",
                "findings",
                "impression",
            ]
        )
        for number, (findings, impression, mesh, _) in STUDIES.items():
            findings = findings.replace("&lt;", "<")
            table.writerow(
                [
                    number,
                    ";".join(mesh),
                    ";".join(mesh),
                    "Xray Chest",
                    "Cough.",
                    "",
                    findings,
                    impression,
                ]
            )
    write_projections(root / "indiana_projections.csv")
    for number, (_, _, _, films) in STUDIES.items():
        for name, view in films:
            film = frontal(seed=number) if view == "F" else lateral(seed=number)
            save(root / "images" / "images_normalized" / kaggle_name(name), film)
    return root


def r2gen(root: Path) -> Path:
    """R2Gen's form; the first image of the second study is its lateral view."""
    studies: dict[str, list[dict[str, object]]] = {"train": [], "val": [], "test": []}
    rows = (
        ("CXR2384_IM-0942", "train"),
        ("CXR2926_IM-1328", "train"),
        ("CXR7_IM-1", "val"),
        ("CXR8_IM-2", "test"),
    )
    for k, (name, split) in enumerate(rows):
        films = [frontal(seed=k), lateral(seed=k)]
        for i, film in enumerate(films[::-1] if k == 1 else films):
            save(root / "iu_xray" / "images" / name / f"{i}.png", film)
        report = "The heart is normal in size. The xxxx are clear."
        paths = [f"{name}/0.png", f"{name}/1.png"]
        studies[split].append({"id": name, "report": report, "image_path": paths, "split": split})
    (root / "iu_xray" / "annotation.json").write_text(json.dumps(studies))
    return root
