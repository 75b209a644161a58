"""Properties of the MR signal model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medm2g_core.data.mri import (
    FULL_SCALE,
    SEQUENCES,
    TISSUES,
    Sequence,
    bias_field,
    finish,
    render,
    signal,
)


def level(tissue: str, contrast: str) -> float:
    t = TISSUES[tissue]
    return float(signal(t.t1_ms, t.t2_ms, t.pd, contrast))


def test_fluid_is_the_brightest_on_t2_and_the_darkest_on_t1_and_flair() -> None:
    solid = ("gm", "wm", "fat", "muscle", "soft_tissue")
    assert all(level("fluid", "t2") > level(t, "t2") for t in solid)
    assert all(level("fluid", "t1") < level(t, "t1") for t in solid)
    assert all(level("fluid", "flair") < level(t, "flair") for t in solid)


def test_fat_is_the_brightest_on_t1() -> None:
    assert all(level("fat", "t1") > level(t, "t1") for t in TISSUES if t != "fat")


def test_grey_and_white_matter_swap_order_between_t1_and_t2() -> None:
    assert level("wm", "t1") > level("gm", "t1")
    assert level("gm", "t2") > level("wm", "t2")
    assert level("gm", "pd") > level("wm", "pd")
    assert level("gm", "flair") > level("wm", "flair")


def test_flair_nulls_csf_and_another_inversion_time_does_not() -> None:
    csf = TISSUES["csf"]
    assert level("csf", "flair") < 1e-4
    off = Sequence("off", SEQUENCES["flair"].tr_ms, SEQUENCES["flair"].te_ms, ti_ms=1800.0)
    assert float(signal(csf.t1_ms, csf.t2_ms, csf.pd, off)) > 0.1


@pytest.mark.parametrize("lesion", ["tumor", "edema", "wm_lesion"])
def test_lesions_outshine_brain_on_t2_and_flair(lesion: str) -> None:
    for contrast in ("t2", "flair"):
        assert level(lesion, contrast) > 1.2 * max(level("gm", contrast), level("wm", contrast))
    assert level(lesion, "t1") < level("wm", "t1")


def test_bone_and_air_give_no_signal() -> None:
    for contrast in SEQUENCES:
        assert level("air", contrast) == 0.0
        assert level("bone", contrast) < 1e-3


def test_long_repetition_and_no_echo_time_give_the_proton_density() -> None:
    seq = Sequence("pd limit", tr_ms=1e7, te_ms=0.0)
    for t in TISSUES.values():
        assert float(signal(t.t1_ms, t.t2_ms, t.pd, seq)) == pytest.approx(t.pd, abs=1e-5)


def test_signal_matches_the_equations_by_hand() -> None:
    se = SEQUENCES["t1"]
    by_hand = 0.7 * (1 - math.exp(-se.tr_ms / 656)) * math.exp(-se.te_ms / 72)
    assert float(signal(656.0, 72.0, 0.7, "t1")) == pytest.approx(by_hand, rel=1e-5)
    ir = SEQUENCES["flair"]
    assert ir.ti_ms is not None
    mz = abs(1 - 2 * math.exp(-ir.ti_ms / 656) + math.exp(-ir.tr_ms / 656))
    assert float(signal(656.0, 72.0, 0.7, "flair")) == pytest.approx(
        0.7 * mz * math.exp(-ir.te_ms / 72), rel=1e-5
    )


def test_signal_broadcasts() -> None:
    out = signal(torch.full((4, 1), 800.0), torch.full((1, 5), 80.0), 0.8, "t2")
    assert out.shape == (4, 5) and out.dtype == torch.float32


def test_noise_floor_is_rician() -> None:
    noise = 0.05
    image = finish(torch.zeros(200, 200), "t2", np.random.default_rng(0), noise=noise)
    level_ = (image + 1) / 2
    assert float(level_.mean()) == pytest.approx(noise * math.sqrt(math.pi / 2), rel=0.02)
    assert float(level_.std()) == pytest.approx(noise * math.sqrt(2 - math.pi / 2), rel=0.03)


def test_noise_is_nearly_gaussian_where_signal_is_strong() -> None:
    image = finish(
        torch.full((200, 200), 0.3), "t2", np.random.default_rng(0), noise=0.02, bias=0.0
    )
    level_ = (image + 1) / 2
    assert float(level_.mean()) == pytest.approx(0.5, abs=0.002)
    assert float(level_.std()) == pytest.approx(0.02, rel=0.03)


def test_scale_is_fixed_and_does_not_depend_on_what_else_is_in_the_image() -> None:
    half = torch.zeros(32, 32)
    half[:, :16] = 1.0
    alone = render({"gm": half}, "t1", np.random.default_rng(1), noise=0.0, bias=0.0)
    beside_fat = render(
        {"gm": half, "fat": 1 - half}, "t1", np.random.default_rng(1), noise=0.0, bias=0.0
    )
    assert torch.equal(alone[:, :16], beside_fat[:, :16])
    assert float(alone[0, 0]) == pytest.approx(
        2 * level("gm", "t1") / FULL_SCALE["t1"] - 1, abs=1e-5
    )
    assert float(alone[0, -1]) == -1.0


def test_partial_volume_is_the_weighted_sum() -> None:
    part = torch.full((8, 8), 0.25)
    image = render(
        {"wm": part, "csf": 1 - part}, "t2", np.random.default_rng(1), noise=0.0, bias=0.0
    )
    want = (0.25 * level("wm", "t2") + 0.75 * level("csf", "t2")) / FULL_SCALE["t2"]
    assert float(image[3, 3]) == pytest.approx(2 * want - 1, abs=1e-5)


def test_shading_is_smooth_positive_and_small() -> None:
    field = bias_field((96, 128), np.random.default_rng(3))
    assert field.shape == (96, 128) and float(field.min()) > 0.6 and float(field.max()) < 1.5
    assert float(field.diff(dim=0).abs().max()) < 0.02


def test_render_is_deterministic_and_in_range() -> None:
    weights = {"fluid": torch.ones(16, 16), "fat": torch.ones(16, 16)}
    a, b = (render(weights, "t2", np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.float32
    assert float(a.max()) <= 1.0 and float(a.min()) >= -1.0


def test_wrong_input_is_refused_with_a_reason() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown MR contrast"):
        signal(1.0, 1.0, 1.0, "t9")
    with pytest.raises(ValueError, match="unknown tissue"):
        render({"cheese": torch.ones(4, 4)}, "t1", rng)
    with pytest.raises(ValueError, match="differ in shape"):
        render({"gm": torch.ones(4, 4), "wm": torch.ones(5, 4)}, "t1", rng)
    with pytest.raises(ValueError, match="needed one slice"):
        finish(torch.ones(1, 4, 4), "t1", rng)
