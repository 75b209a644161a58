"""Central alignment and the visual invariant: against plain references, and what each is blind
to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import pictures, reports
from torch.nn import functional as F

from medm2g_core.alignment.objective import (
    Contradictions,
    augmented_view,
    central_alignment_loss,
    cross_correlation,
    info_nce,
    shared_studies,
    visual_invariant_loss,
)
from medm2g_core.profiles import AlignmentConfig
from medm2g_core.streams import STREAMS


def unit(n: int, d: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


LOG_SCALE = torch.tensor(1 / 0.07).log()


def reference_info_nce(a: np.ndarray, b: np.ndarray, tau: float) -> float:
    """-log of the softmax at the own partner, both ways, written out."""
    total = 0.0
    for x, y in ((a, b), (b, a)):
        for i in range(len(x)):
            scores = [float(x[i] @ y[j]) / tau for j in range(len(y))]
            total += -scores[i] + np.log(sum(np.exp(s) for s in scores))
    return total / (2 * len(a))


def test_info_nce_equals_a_plain_reference():
    a, b = unit(7), unit(7, seed=1)
    expected = reference_info_nce(a.double().numpy(), b.double().numpy(), 0.07)
    assert info_nce(a, b, LOG_SCALE).item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_is_symmetric_and_lowest_for_matching_pairs():
    a, b = unit(7), unit(7, seed=1)
    assert torch.allclose(info_nce(a, b, LOG_SCALE), info_nce(b, a, LOG_SCALE))
    assert info_nce(a, a, LOG_SCALE) < info_nce(a, b, LOG_SCALE)
    assert info_nce(a, a, LOG_SCALE) < info_nce(a, a.roll(1, 0), LOG_SCALE)


def test_the_temperature_is_clamped():
    a, b = unit(7), unit(7, seed=1)
    assert torch.equal(
        info_nce(a, b, torch.tensor(100.0).log() + 1e-3), info_nce(a, b, torch.tensor(20.0))
    )


@pytest.mark.parametrize("n", [2, 3, 5])
def test_central_alignment_uses_n_minus_1_pairs_and_all_uses_every_pair(n, monkeypatch):
    seen = []

    def spy(a, b, scale):
        seen.append((a, b))
        return info_nce(a, b, scale)

    monkeypatch.setattr("medm2g_core.alignment.objective.info_nce", spy)
    pooled = {name: unit(4, seed=i) for i, name in enumerate(list(STREAMS)[:n])}
    central = central_alignment_loss(pooled, LOG_SCALE)
    assert len(seen) == n - 1 and all(a is pooled["text"] for a, _ in seen)
    expected = torch.stack(
        [info_nce(pooled["text"], p, LOG_SCALE) for k, p in pooled.items() if k != "text"]
    ).mean()
    assert torch.allclose(central, expected)
    seen.clear()
    central_alignment_loss(pooled, LOG_SCALE, "all")
    assert len(seen) == n * (n - 1) // 2


@pytest.mark.parametrize(("pairs", "n"), [("central", 2), ("all", 3)])
def test_modalities_are_compared_on_the_studies_that_have_both(pairs, n):
    text, xray, ct = unit(6), unit(4, seed=1), unit(3, seed=2)
    rows = {
        "text": torch.arange(6),
        "xray": torch.tensor([0, 2, 3, 5]),
        "ct": torch.tensor([1, 2, 5]),
    }
    pooled = {"text": text, "xray": xray, "ct": ct}
    losses = [
        info_nce(text[rows["xray"]], xray, LOG_SCALE),
        info_nce(text[rows["ct"]], ct, LOG_SCALE),
        info_nce(xray[[1, 3]], ct[[1, 2]], LOG_SCALE),  # studies 2 and 5
    ]
    expected = torch.stack(losses[:n]).mean()
    shared = shared_studies(rows)
    assert torch.allclose(central_alignment_loss(pooled, LOG_SCALE, pairs, shared=shared), expected)
    apart = {"text": rows["text"], "xray": torch.arange(4), "ct": torch.tensor([4, 5, 5])[:2]}
    pooled["ct"] = ct[:2]
    shared = shared_studies(apart)
    central = central_alignment_loss(pooled, LOG_SCALE, "central", shared=shared)
    assert torch.equal(central_alignment_loss(pooled, LOG_SCALE, "all", shared=shared), central)


# ---- contradictions


def test_a_contradiction_is_one_more_wrong_answer_for_its_own_picture_alone():
    """Studies 0 and 2 are contradicted, study 2 twice."""
    text, image, wrong = unit(4), unit(4, seed=1), unit(3, seed=2)
    of = torch.tensor([2, 0, 2])
    total = 0.0
    for i in range(4):
        there = [(text[i] @ image[j]).item() / 0.07 for j in range(4)]
        back = [(image[i] @ text[j]).item() / 0.07 for j in range(4)]
        back += [
            (image[i] @ w).item() / 0.07 for w, k in zip(wrong, of.tolist(), strict=True) if k == i
        ]
        for scores in (there, back):
            total += np.log(np.exp(scores).sum()) - scores[i]
    contradictions = Contradictions(wrong, of)
    loss = central_alignment_loss(
        {"text": text, "xray": image}, LOG_SCALE, contradictions=contradictions
    )
    assert loss.item() == pytest.approx(total / 8, rel=1e-5)


def test_a_contradiction_is_only_ever_pushed_away_and_only_from_its_picture():
    text, image = unit(4), unit(4, seed=1)
    wrong = unit(1, seed=2).requires_grad_()
    contradictions = Contradictions(wrong, torch.tensor([2]))
    pooled = {"text": text, "xray": image}
    central_alignment_loss(pooled, LOG_SCALE, contradictions=contradictions).backward()
    direction = F.cosine_similarity(wrong.grad, image[2:3])
    assert direction.item() == pytest.approx(1, abs=1e-5), "a step down leads away from picture 2"


def test_contradictions_of_studies_without_that_picture_cost_nothing():
    text, image, wrong = unit(4), unit(2, seed=1), unit(2, seed=2)
    shared = shared_studies({"text": torch.arange(4), "xray": torch.tensor([1, 3])})
    pooled = {"text": text, "xray": image}
    without = central_alignment_loss(pooled, LOG_SCALE, shared=shared)
    for of, same in (([0, 2], True), ([0, 3], False)):
        contradictions = Contradictions(wrong, torch.tensor(of))
        loss = central_alignment_loss(
            pooled, LOG_SCALE, shared=shared, contradictions=contradictions
        )
        assert torch.allclose(loss, without) == same


def test_central_alignment_never_compares_two_images_directly():
    """Text is the centre: with text held, two images gain nothing from being like each other."""
    text, xray, ct = unit(4), unit(4, seed=1), unit(4, seed=2).requires_grad_()
    central_alignment_loss({"text": text, "xray": xray, "ct": ct}, LOG_SCALE).backward()
    first = ct.grad.clone()
    ct.grad = None
    central_alignment_loss({"text": text, "xray": unit(4, seed=9), "ct": ct}, LOG_SCALE).backward()
    assert torch.equal(first, ct.grad)


def test_alignment_without_text_is_refused():
    with pytest.raises(ValueError, match="text"):
        central_alignment_loss({"xray": unit(4), "ct": unit(4)}, LOG_SCALE)


# ---- visual invariant


OFF_DIAGONAL, FULL = AlignmentConfig(invariant="off_diagonal"), AlignmentConfig(invariant="full")


def decorrelated(n: int = 64, d: int = 8, seed: int = 0) -> torch.Tensor:
    """(n, d) with zero means and orthogonal columns: no two dimensions are correlated."""
    x = np.random.default_rng(seed).standard_normal((n, d))
    x -= x.mean(0)
    return torch.from_numpy(np.linalg.qr(x)[0]).float()


def reference_invariant(a: np.ndarray, b: np.ndarray, weight: float | None) -> float:
    n, d = a.shape
    off = diagonal = 0.0
    for i in range(d):
        for j in range(d):
            x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            c = (x @ y / (n - 1)) / ((x.std(ddof=1) + 1e-4) * (y.std(ddof=1) + 1e-4))
            if i == j:
                diagonal += (1 - c) ** 2
            else:
                off += c**2
    return off / (d - 1) + (0.0 if weight is None else weight * diagonal)


@pytest.mark.parametrize("config", [OFF_DIAGONAL, FULL])
def test_the_invariant_equals_a_plain_reference(config):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 16, 6, generator=g)
    weight = config.diagonal_weight if config.invariant == "full" else None
    expected = reference_invariant(a.double().numpy(), b.double().numpy(), weight)
    assert visual_invariant_loss(a, b, config).item() == pytest.approx(expected, rel=1e-4)


def test_the_cross_correlation_is_that_of_numpy():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 16, 5, generator=g)
    expected = np.corrcoef(a.numpy(), b.numpy(), rowvar=False)[:5, 5:]
    assert np.allclose(cross_correlation(a, b).numpy(), expected, atol=1e-3)


def test_two_identical_decorrelated_views_are_perfect():
    x = decorrelated()
    assert visual_invariant_loss(x, x, OFF_DIAGONAL) < 1e-6
    assert visual_invariant_loss(x, x, FULL) < 1e-4


def test_unrelated_views_please_the_off_diagonal_term_but_not_the_full_one():
    x = decorrelated(d=16)
    a, b = x[:, :8], x[:, 8:]
    assert visual_invariant_loss(a, b, OFF_DIAGONAL) < 1e-6
    assert visual_invariant_loss(a, b, FULL) > 0.9 * 8 * FULL.diagonal_weight


def test_redundant_dimensions_cost():
    x = decorrelated(d=4).repeat(1, 2)
    assert visual_invariant_loss(x, x, OFF_DIAGONAL) > 0.9


def test_off_costs_nothing_and_a_batch_of_one_is_refused():
    x = decorrelated()
    assert visual_invariant_loss(x, x.roll(1, 0), AlignmentConfig(invariant="off")) == 0
    with pytest.raises(ValueError, match="at least 2"):
        visual_invariant_loss(x[:1], x[:1], FULL)


# ---- second views


def test_augmentation_keeps_sides_shape_and_range():
    image = torch.full((8, 1, 32, 32), -0.6)
    image[..., :, :16] = 0.6
    view = augmented_view(image, torch.Generator().manual_seed(0))
    assert view.shape == image.shape and view.abs().max() <= 1
    left, right = view[..., :16].mean((1, 2, 3)), view[..., 16:].mean((1, 2, 3))
    assert (left > right + 0.5).all()
    top = image.transpose(-1, -2).contiguous()
    view = augmented_view(top, torch.Generator().manual_seed(0))
    assert (view[..., :16, :].mean((1, 2, 3)) > view[..., 16:, :].mean((1, 2, 3)) + 0.5).all()


def test_augmentation_follows_its_generator_and_changes_the_image_a_little():
    image = pictures(4)
    a, b = (augmented_view(image, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(a, augmented_view(image, torch.Generator().manual_seed(0)))
    assert not torch.equal(a, b)
    difference = (a - image).abs().mean()
    assert 0.01 < difference < 0.4


# ---- encoders


@torch.no_grad()
def test_every_stream_embeds_to_unit_length_in_one_space(model):
    out = model.embed({n: pictures(2) if s.is_image else reports(2) for n, s in STREAMS.items()})
    dim = model.profile.alignment.embed_dim
    for name, e in out.items():
        assert e.pooled.shape == (2, dim) and torch.allclose(
            e.pooled.norm(dim=1), torch.ones(2), atol=1e-5
        ), name
        assert (
            e.tokens.shape[2] == dim
            and e.tokens.shape[:2] == e.mask.shape
            and e.mask.dtype == torch.bool
        )


@torch.no_grad()
def test_a_report_embeds_alike_alone_and_padded(model):
    texts = sorted(reports(12), key=len)
    alone = model.embed({"text": texts[:1]})["text"]
    padded = model.embed({"text": [texts[0], texts[-1]]})["text"]
    assert padded.mask[0].sum() == alone.mask.sum() < padded.mask.shape[1]
    assert torch.allclose(alone.pooled[0], padded.pooled[0], atol=1e-5)


@torch.no_grad()
def test_the_mr_encoder_can_tell_contrasts_apart_once_trained(model):
    encoder = model.alignment.encoders["mri"]
    image = pictures(2)
    same = [model.embed({n: image})[n].pooled for n in ("mri_t1", "mri_t2")]
    assert torch.equal(*same)  # the contrast embedding starts at zero
    encoder.contrast.weight.normal_(generator=torch.Generator().manual_seed(0))
    different = [model.embed({n: image})[n].pooled for n in ("mri_t1", "mri_t2")]
    assert not torch.allclose(*different, atol=1e-4)
