"""A small tree of MedICaT with the true keys and faults; captions and pixels are made up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from replicas.films import frontal, save

HASH = "26491ab76c6e8d6acc582e71bb6b3b5f5601ccc{}"

# article, figure, caption, radiology, licence
FIGURES: tuple[tuple[int, str, str | None, bool, str | None], ...] = (
    (
        1,
        "3-Figure1-1.png",
        "Figure 1. Chest radiograph showing a right pleural effusion.",
        True,
        "cc-by",
    ),
    (1, "3-Figure2-1.png", "Figure 2. Axial CT of the abdomen with a liver mass.", True, "cc-by"),
    (2, "1-Figure1-1.png", "Fig. 1. T2-weighted MRI of the brain.", True, "cc-by-nc-nd"),
    (2, "1-Figure2-1.png", "Fig 2 (A) CT and (B) MRI of the brain.", True, "cc-by-nc-nd"),
    (3, "2-Figure1-1.png", "Figure 1. MRI of the knee.", True, None),
    (3, "2-Figure2-1.png", "Figure 2. Endoscopic image of the colon.", False, None),
    (3, "2-Figure3-1.png", "Figure 3. The lesion (arrow).", True, None),
    (3, "2-Figure4-1.png", None, True, None),
    (4, "5-Figure1-1.png", "Figure 1. PET/CT of the chest.", True, "cc-by"),
    (4, "5-Figure2-1.png", "Figure 2. Post-contrast T1-weighted MR image.", True, None),
)


def medicat(root: Path) -> Path:
    lines = []
    for article, uri, caption, radiology, licence in FIGURES:
        name = HASH.format(article)
        lines.append(
            json.dumps(
                {
                    "pdf_hash": name,
                    "fig_key": uri.split("-")[1],
                    "fig_uri": uri,
                    "s2_caption": caption if article != 1 else None,  # one of the two may be null
                    "s2orc_caption": caption,
                    "s2orc_references": None,
                    "radiology": radiology,
                    "scope": not radiology,
                    "predicted_type": "Medical images",
                    "oa_info": {
                        "doi": f"10.1/{article}",
                        "oa": {"is_oa": True, "license": licence},
                    },
                }
            )
        )
        save(root / "figures" / f"{name}_{uri}", frontal(50, 70, seed=len(lines)), mode="RGB")
    lines.insert(3, '{"pdf_hash": "cut off')
    (root / "s2_full_figures_oa_nonroco_combined_medicat_public.jsonl").write_text("\n".join(lines))
    return root


def colour(path: Path) -> None:
    """Replace a figure by a colour picture, as a screenshot or a photograph is."""
    pixels = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
