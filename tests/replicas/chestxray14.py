"""A small tree of ChestX-ray14 with the true names, headers and faults; the pixels are made up."""

from __future__ import annotations

from pathlib import Path

from replicas.films import frontal, save

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient {sex},View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]{tail}"
)
# image, labels, patient, age, sex, list
ROWS = (
    ("00000001_000.png", "Cardiomegaly", 1, 57, "M", "train_val"),
    ("00000001_001.png", "Cardiomegaly|Emphysema", 1, 58, "M", "train_val"),
    ("00000002_000.png", "No Finding", 2, 80, "F", "train_val"),
    ("00000003_000.png", "Pneumothorax|Pleural_Thickening", 3, 412, "F", "train_val"),
    ("00000004_000.png", "Effusion|Infiltration|Mass", 4, 33, "M", "test"),
    ("00000005_000.png", "No Finding", 5, 21, "F", "train_val"),
    ("00000006_000.png", "Hernia", 6, 60, "M", "train_val"),
)
BOXES = """Image Index,Finding Label,Bbox [x,y,w,h],,,
00000004_000.png,Infiltrate,225.084745762712,547.019216763771,86.7796610169491,79.1864406779661,,
"""


def chestxray14(root: Path, *, old: bool = False, kaggle: bool = False) -> Path:
    """``old``: the first release's table. ``kaggle``: twelve folders instead of one."""
    lines = [HEADER.format(sex="Sex" if not old else "Gender", tail="," if old else "")]
    for name, labels, patient, age, sex, _ in ROWS:
        person = f"{patient},{age:03d}Y" if old else f"{patient},{age}"
        lines.append(
            f"{name},{labels},0,{person},{sex},PA,2682,2749,0.143,0.143" + ("," if old else "")
        )
    root.mkdir(parents=True, exist_ok=True)
    (root / ("Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv")).write_text(
        "\n".join(lines) + "\n"
    )
    for part in ("train_val", "test"):
        (root / f"{part}_list.txt").write_text(
            "\n".join(r[0] for r in ROWS if r[-1] == part)
        )  # no newline at the end
    (root / "BBox_List_2017.csv").write_text(BOXES)
    for k, (name, *_) in enumerate(ROWS):
        folder = root / f"images_{1 + k % 2:03d}" / "images" if kaggle else root / "images"
        save(folder / name, frontal(64, 64, seed=k), mode="RGBA" if k == 1 else "L")
    return root
