"""Properties of the virtual brain: what is drawn is what the findings say, and nothing else gives
it away."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from medm2g_core.data.brain import pathology, render_brain, sample_findings
from medm2g_core.data.brain import render as brain_render
from medm2g_core.data.brain.atlas import LOBES, BrainAtlas, load_atlas, lobe_index
from medm2g_core.data.brain.render import LEVEL_MM, SPACING_MM, slice_level
from medm2g_core.data.findings import check_finding, size_class
from medm2g_core.streams import Finding, check_image

STREAMS = ("mri_t1", "mri_t2", "mri_pd", "mri_flair")


def tumor(side: str, lobe: str, mm: int) -> Finding:
    return Finding("tumor", side, lobe, size_class("tumor", mm), mm)


@functools.lru_cache(maxsize=256)
def image(seed: int, findings: tuple[Finding, ...], stream: str) -> np.ndarray:
    return render_brain(seed, findings=findings)["images"][stream][0].numpy()


@pytest.fixture(scope="module")
def atlas() -> BrainAtlas:
    return load_atlas()


@pytest.fixture
def planes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[pathology.Plane, pathology.Tumor]]:
    """Every (anatomy, tumour) that is drawn while the test runs."""
    seen: list[tuple[pathology.Plane, pathology.Tumor]] = []

    def spy(plane: pathology.Plane, finding: Finding, rng: np.random.Generator) -> pathology.Tumor:
        drawn = pathology.draw_tumor(plane, finding, rng)
        seen.append((plane, drawn))
        return drawn

    monkeypatch.setattr(brain_render, "draw_tumor", spy)
    return seen


def test_studies_have_four_valid_images_and_valid_findings() -> None:
    for seed in range(6):
        study = render_brain(seed)
        assert tuple(study["images"]) == STREAMS
        for name, picture in study["images"].items():
            assert (
                check_image(picture, name).shape == (1, 128, 128) and picture.dtype == torch.float32
            )
            assert float(picture[0, :4, :4].mean()) < -0.93, "air is near -1"
        for finding in study["findings"]:
            check_finding(finding)
        assert (
            study["person"] == "mni152"
            and study["sex"] in ("female", "male")
            and 20 <= study["age"] < 88
        )
        assert study["spacing_mm"] == (SPACING_MM, SPACING_MM)


def test_a_seed_gives_one_study_and_another_seed_another() -> None:
    a, b, c = render_brain(5), render_brain(5), render_brain(6)
    assert a["findings"] == b["findings"] and a["age"] == b["age"]
    assert all(torch.equal(a["images"][s], b["images"][s]) for s in STREAMS)
    assert not torch.equal(a["images"]["mri_t1"], c["images"]["mri_t1"])


def test_the_whole_head_is_inside_the_picture() -> None:
    for seed in range(8):
        picture = image(seed, (), "mri_t1")
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert border.max() < -0.8


def test_sampled_findings_are_possible_and_a_third_is_normal() -> None:
    rng = np.random.default_rng(0)
    samples = [sample_findings(rng) for _ in range(3000)]
    assert 0.27 < sum(not s for s in samples) / len(samples) < 0.33
    assert max(map(len, samples)) <= 3
    count = Counter(f.name for s in samples for f in s)
    assert min(count.values()) > 300 and len(count) == 4
    for s in samples:
        assert pathology.sort_findings(s) == s
        by_name = {f.name: f for f in s}
        if "vasogenic_edema" in by_name:
            edema, mass = by_name["vasogenic_edema"], by_name["tumor"]
            assert (edema.side, edema.location) == (mass.side, mass.location)


def test_the_level_does_not_depend_on_the_findings() -> None:
    levels: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(600):
        has = any(f.name == "tumor" for f in sample_findings(brain_render._rngs(seed)["findings"]))
        levels[has].append(slice_level(seed))
    everything = levels[True] + levels[False]
    assert LEVEL_MM[0] <= min(everything) and max(everything) <= LEVEL_MM[1]
    assert abs(np.mean(levels[True]) - np.mean(levels[False])) < 3 * 3.2 * np.sqrt(
        1 / 200 + 1 / 400
    )


def test_every_level_cuts_every_lobe_on_both_sides(atlas: BrainAtlas) -> None:
    y, x = np.meshgrid(np.arange(75.0, -110, -2), np.arange(75.0, -76, -2), indexing="ij")
    for z in np.linspace(*LEVEL_MM, 5):
        xyz = np.stack([x, y, np.full_like(x, z)])
        inside = atlas.sample("depth_mm", xyz) < -5
        lobe = lobe_index(xyz)
        for index in range(len(LOBES)):
            for side in (x > 0, x < 0):
                assert 4 * np.count_nonzero(inside & side & (lobe == index)) > 150, "mm^2"


def test_atlas_fractions_fill_the_brain(atlas: BrainAtlas) -> None:
    total = atlas.gm.astype(int) + atlas.wm + atlas.csf
    assert total.max() <= 258
    assert np.abs(total[atlas.depth_mm < -2] - 255).mean() < 6
    assert 5_000 < np.count_nonzero(atlas.ventricle_mm < 0) < 60_000, "mm^3"
    assert atlas.csf[atlas.ventricle_mm < -1].mean() > 200


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lobe", LOBES)
def test_a_tumor_lies_on_its_side_and_in_its_lobe(
    side: str, lobe: str, planes: list[tuple[pathology.Plane, pathology.Tumor]]
) -> None:
    for seed in (1, 2):
        # The difference to the same person without it must be on the right side of the *picture*,
        # too.
        with_it = image(seed, (tumor(side, lobe, 26),), "mri_flair")
        change = np.abs(with_it - image(seed, (), "mri_flair"))
        on_left_of_picture = change[:, :60].sum() > change[:, 68:].sum()
        assert on_left_of_picture == (side == "right")
        plane, drawn = planes[-1]
        assert plane.lobe[drawn.centre] == LOBES.index(lobe)
        assert (plane.xyz[0][drawn.centre] > 0) == (side == "right")


def test_tumors_are_as_large_as_the_report_says(
    planes: list[tuple[pathology.Plane, pathology.Tumor]],
) -> None:
    for mm in (14, 28, 44, 60):
        for seed in (0, 1):
            render_brain(seed, findings=(tumor("left", "frontal", mm),))
            plane, drawn = planes[-1]
            rows, cols = np.nonzero(drawn.solid + drawn.core > 0.5)
            points = np.stack([rows, cols], 1) * plane.mm
            angles = np.linspace(0, np.pi, 36, endpoint=False)
            diameter = (
                max(np.ptp(points @ np.array([np.sin(a), np.cos(a)])) for a in angles) + plane.mm
            )
            assert 0.88 * mm < diameter < 1.12 * mm, (mm, diameter)


@pytest.mark.parametrize("lobe", LOBES)
def test_solid_tumor_is_brighter_than_healthy_white_matter_on_t2_and_flair_and_darker_on_t1(
    lobe: str, planes: list[tuple[pathology.Plane, pathology.Tumor]]
) -> None:
    for seed in (4,):
        study = render_brain(seed, findings=(tumor("right", lobe, 30),))["images"]
        plane, drawn = planes[-1]
        solid = drawn.solid[::2, ::2] > 0.95
        white = (plane.wm[::2, ::2] > 0.95) & (drawn.distance[::2, ::2] > 15)
        for stream, brighter in (("mri_t2", True), ("mri_flair", True), ("mri_t1", False)):
            picture = study[stream][0].numpy()
            assert (picture[solid].mean() > picture[white].mean() + 0.1) == brighter
            if not brighter:
                assert picture[solid].mean() < picture[white].mean() - 0.1


def test_edema_brightens_flair_around_the_tumor_more_the_larger_it_is() -> None:
    for seed in (0, 1):
        mass = tumor("left", "frontal", 24)
        bare = image(seed, (mass,), "mri_flair")
        areas = []
        for size in ("small", "moderate", "large"):
            swollen = image(
                seed, (mass, Finding("vasogenic_edema", "left", "frontal", size)), "mri_flair"
            )
            brighter = (swollen - bare) > 0.15
            areas.append(int(brighter.sum()))
            assert brighter[:, :60].sum() < 0.02 * max(brighter.sum(), 1), "stays on its side"
        assert 0 < areas[0] < areas[1] < areas[2]


def test_white_matter_lesions_change_nothing_but_small_bright_spots_and_more_of_them_by_size() -> (
    None
):
    for seed in (0, 1):
        normal = image(seed, (), "mri_flair")
        areas = []
        for size in ("small", "moderate", "large"):
            change = (
                image(seed, (Finding("white_matter_lesions", size=size),), "mri_flair") - normal
            )
            assert (np.abs(change) < 0.02).mean() > 0.85, "the rest of the picture stays"
            assert change.min() > -0.15
            areas.append(int((change > 0.1).sum()))
        assert 5 < areas[0] < areas[1] < areas[2]


def test_ventricles_grow_with_the_size_class_and_more_than_among_healthy_people() -> None:
    def fluid(seed: int, findings: tuple[Finding, ...]) -> int:
        return int((image(seed, findings, "mri_flair")[38:88, 40:88] < -0.8).sum())

    seeds = range(4)
    healthy = [fluid(s, ()) for s in seeds]
    by_size = [
        [fluid(s, (Finding("ventriculomegaly", size=z),)) for s in seeds]
        for z in ("small", "moderate", "large")
    ]
    for i in range(len(healthy)):
        assert healthy[i] < by_size[0][i] < by_size[1][i] < by_size[2][i]
    assert np.mean(by_size[2]) > 1.8 * np.mean(healthy)


def test_contrasts_order_brain_tissues_as_physics_says(
    planes: list[tuple[pathology.Plane, pathology.Tumor]],
) -> None:
    study = render_brain(3, findings=(tumor("left", "occipital", 14),))["images"]
    plane, drawn = planes[-1]
    far = drawn.distance[::2, ::2] > 20
    white = (plane.wm[::2, ::2] > 0.97) & far
    fluid = (plane.ventricle[::2, ::2] < -2) & far
    level = {
        s: (float(study[s][0].numpy()[white].mean()), float(study[s][0].numpy()[fluid].mean()))
        for s in STREAMS
    }
    assert level["mri_t1"][0] > level["mri_t1"][1]
    assert level["mri_t2"][0] < level["mri_t2"][1]
    assert level["mri_flair"][0] > level["mri_flair"][1] and level["mri_flair"][1] < -0.9


def test_impossible_findings_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="needs a tumor of the same side and lobe"):
        render_brain(0, findings=(Finding("vasogenic_edema", "left", "frontal", "small"),))
    with pytest.raises(ValueError, match="needs a tumor of the same side and lobe"):
        render_brain(
            0,
            findings=(
                tumor("right", "frontal", 20),
                Finding("vasogenic_edema", "left", "frontal", "small"),
            ),
        )
    with pytest.raises(ValueError, match="not a finding of the brain"):
        render_brain(0, findings=(Finding("cardiomegaly", size="small"),))
    with pytest.raises(ValueError, match="is not"):
        render_brain(0, findings=(Finding("tumor", "left", "frontal", "large", 20),))


def test_a_missing_template_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDM2G_DATA", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install nilearn"):
        load_atlas.__wrapped__()
