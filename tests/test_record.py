"""What the recorder, the gate table and the trajectory say of a draw, and that looking changes
nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import pictures, speak_up, untrained

from medm2g_core.flows.guidance import CrossGuidedAttnProcessor
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.profiles import Profile
from medm2g_core.show.record import gate_table, record, sites
from medm2g_core.show.trajectory import Trajectory
from medm2g_core.training.rounds import ROUNDS, record_trained_with

STEPS = 2


def draw(model: MedM2G, want: list[str], **options: object) -> dict[str, torch.Tensor]:
    pipe = MedM2GPipeline(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        {"ct": pictures(2, model.profile.resolution)},
        want,
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3),
        **options,  # type: ignore[arg-type]
    ).latents


def test_recording_changes_nothing_and_ends_with_the_block(model: MedM2G) -> None:
    before = draw(model, ["mri_t2"])["mri_t2"]
    with record(model) as tape:
        during = draw(model, ["mri_t2"])["mri_t2"]
    heard = len(tape.looks)
    after = draw(model, ["mri_t2"])["mri_t2"]
    assert torch.equal(before, during) and torch.equal(before, after)
    assert heard == len(tape.looks) > 0


def test_recording_ends_when_the_block_fails(model: MedM2G) -> None:
    with pytest.raises(RuntimeError, match="boom"), record(model):
        raise RuntimeError("boom")
    for site in model.modules():
        assert "_look" not in vars(site)
    assert not any(flow._forward_pre_hooks for flow in model.flows.values())


def test_every_look_names_flow_guide_site_and_level(model: MedM2G) -> None:
    with record(model) as tape:
        draw(model, ["mri_t1", "mri_t2"])
    expected = {("mri_t1", "ct"), ("mri_t1", "mri_t2"), ("mri_t2", "ct"), ("mri_t2", "mri_t1")}
    assert {(look.flow, look.guide) for look in tape.looks} == expected
    assert {look.site for look in tape.looks} == set(sites(model, "mri"))
    one = tape.select(flow="mri_t1", guide="ct", site=next(iter(sites(model, "mri"))))
    assert [look.level for look in one] == pytest.approx([1.0, 0.5])


def test_weights_sum_to_one_and_lie_on_their_grids(model: MedM2G) -> None:
    with record(model) as tape:
        draw(model, ["mri_t2"])
    for look in tape.looks:
        _, heads, places, tokens = look.weights.shape
        assert heads == model.profile.flow.guidance_heads
        assert look.query_grid is not None and look.key_grid is not None
        assert places == look.query_grid[0] * look.query_grid[1]
        assert tokens == look.key_grid[0] * look.key_grid[1]
        torch.testing.assert_close(look.weights.sum(-1), torch.ones(look.weights.shape[:-1]))


def test_the_recorded_weights_give_what_the_layer_says(model: MedM2G) -> None:
    """The second computation is the same attention as the fused one."""
    name, site = next(iter(sites(model, "mri").items()))
    look, said = site._look, []
    site._look = lambda *a: said.append((a, look(*a))) or said[-1][1]  # type: ignore[assignment, func-returns-value]
    with record(model) as tape:
        draw(model, ["mri_t2"])
    (h, guide, _), told = said[0]
    first = tape.select(site=name)[0]
    _, _, v = site.query_key_value(h, guide, first.query_grid)
    torch.testing.assert_close(
        site.to_out((first.weights @ v).transpose(1, 2).flatten(2)), told, atol=1e-5, rtol=1e-4
    )
    share = site.gate["ct"].abs() * told.norm(dim=-1) / h.norm(dim=-1)
    torch.testing.assert_close(first.share, share)


def test_an_absent_guide_has_no_share(model: MedM2G) -> None:
    with record(model) as tape:
        pipe = MedM2GPipeline(model)
        pipe.set_progress_bar_config(disable=True)
        given = {"ct": pictures(1, model.profile.resolution)}
        pipe(given, ["mri_t2"], num_inference_steps=1, guidance_scale=3.0)
    told, untold = tape.looks[0].share  # the copies of classifier-free guidance
    assert told.min() > 0 and not untold.any()


def test_guidance_without_attention_is_refused(smoke: Profile) -> None:
    flow = dataclasses.replace(smoke.flow, guidance="adapter")
    other = speak_up(untrained(dataclasses.replace(smoke, flow=flow)))
    with pytest.raises(ValueError, match="adapter"), record(other):
        pass


def test_sites_come_in_the_order_of_computation(model: MedM2G) -> None:
    for modality in model.flows:
        found = sites(model, modality)
        everywhere = [m for m in model.flows[modality].modules() if _is_site(m)]
        assert set(map(id, found.values())) == set(map(id, everywhere))
    with record(model) as tape:
        draw(model, ["mri_t2"])
    assert list(dict.fromkeys(look.site for look in tape.looks)) == list(sites(model, "mri"))


def _is_site(module: torch.nn.Module) -> bool:
    return isinstance(module, CrossGuidedAttnProcessor)


def test_the_gate_table_marks_pairs_that_never_met_and_inherited_gates(model: MedM2G) -> None:
    for name in ("round1", "round2", "round3"):
        record_trained_with(model, ROUNDS[name])
    site = next(iter(sites(model, "mri").values()))
    with torch.no_grad():
        site.gate["text"].fill_(0.25)
    gates = gate_table(model)
    of = {(g.flow, g.guide): g for g in reversed(gates)}  # the first site of each pair
    assert of["mri", "ct"].trained and of["mri", "mri"].trained and not of["xray", "ct"].trained
    assert of["mri", "text"].inherited and not of["mri", "text"].trained
    assert of["mri", "text"].value == pytest.approx(0.25)
    assert not of["mri", "xray"].inherited
    assert ("ct", "ct") not in of


def test_a_trajectory_ends_with_what_the_call_returns(model: MedM2G) -> None:
    film = Trajectory()
    z = draw(model, ["mri_t2", "xray"], order="cascade", **film.options)
    assert film.levels["mri_t2"] == film.levels["xray"] == pytest.approx([1.0, 0.5])
    for name, latent in z.items():
        assert torch.equal(film.latents[name][-1], latent)
        # The last Euler step leads exactly to the clean guess.
        torch.testing.assert_close(film.denoised[name][-1], latent, atol=1e-4, rtol=1e-4)
    size = model.profile.resolution
    assert film.images(model, "mri_t2").shape == (STEPS, 2, 1, size, size)


def test_a_trajectory_has_no_pictures_of_a_report(model: MedM2G) -> None:
    film = Trajectory()
    draw(model, ["text"], **film.options)
    with pytest.raises(KeyError, match="no image stream"):
        film.images(model, "text")
