"""Training: every round moves exactly what it should, and records what its flows are trained
with."""

from __future__ import annotations

import pytest
import torch
from training_helpers import changed, make, run, snapshot

from medm2g_core.profiles import StageConfig
from medm2g_core.streams import MODALITIES, stream
from medm2g_core.training.rounds import (
    ROUNDS,
    Mix,
    Round,
    begin_round,
    initialise_flows,
    record_trained_with,
    trained_with,
)
from medm2g_core.training.stages import RoundStage

# ---- what moves


def may_move(name: str, key: str) -> bool:
    """The rule, written down a second time."""
    part, _, rest = key.partition(".")
    if name in ("image_codec", "text_codec", "alignment"):
        return part == name
    if name == "reports":
        return part == "writer"
    if part not in ("flows", "environments"):
        return False
    modality = rest.split(".")[0]
    if key.endswith("prompt.trained_with"):
        return False  # `begin_round` sets it, training does not
    if name == "round1":
        return modality in ("text", "xray")
    new, frozen = {"round2": ("ct", "text"), "round3": ("mri", "ct")}[name]
    if modality == new:
        return True
    entry = any(f".{way}.{new}" in key for way in ("gate", "prompt.details", "maps"))
    return part == "flows" and modality == frozen and entry


@pytest.mark.parametrize(
    "name", ["image_codec", "text_codec", "alignment", "reports", "round1", "round2", "round3"]
)
def test_a_stage_moves_exactly_the_parameters_it_should(
    model, corpora, latent_corpora, tmp_path, name
):
    stage = make(name, model, corpora, latent_corpora)
    before = snapshot(model)
    run(stage, tmp_path, StageConfig(steps=6, batch=4, lr=1e-2, warmup=1, ema=0.1))
    moved = changed(model, before)
    assert {k for k in moved if not may_move(name, k)} == set()
    declared = {n for n, _ in stage.trainable()}
    assert {k for k in declared if not may_move(name, k)} == set()
    statistics = {
        k for k in moved if ".running_" in k or k.endswith("num_batches_tracked")
    }  # of the aligned heads
    assert name == "alignment" or not statistics
    assert declared >= moved - statistics - {k for k in moved if "lm_head" in k}
    # Nearly everything that may move does, the rest being entries of sources that this round does
    # not have.
    entries = (".gate.", ".details.", ".maps.", "temb")
    still = {k for k in declared - moved if not any(entry in k for entry in entries)}
    assert len(still) <= 0.05 * len(declared) + 2, sorted(still)


def test_round_2_trains_of_the_frozen_text_flow_only_the_entries_of_ct(model, latent_corpora):
    names = {n for n, _ in RoundStage(model, latent_corpora, "round2").trainable()}
    text = {n for n in names if n.startswith(("flows.text.", "environments.text."))}
    assert text and all(".gate.ct" in n or ".prompt.details.ct." in n for n in text)
    assert sum(".gate.ct" in n for n in text) == model.profile.flow.text_layers
    assert not any(
        n.startswith(("flows.xray", "environments.xray", "flows.mri", "environments.mri"))
        for n in names
    )


@pytest.mark.parametrize(
    ("name", "new", "source"), [("round2", "ct", "xray"), ("round3", "mri", "ct")]
)
def test_a_new_flow_starts_as_a_copy_of_a_trained_one(model, name, new, source):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    initialise_flows(model, ROUNDS[name])
    after = model.state_dict()
    copied = 0
    for key, tensor in after.items():
        original = before.get(key.replace(f".{new}.", f".{source}.", 1))
        own = key.startswith((f"flows.{new}.", f"environments.{new}."))
        if own and original is not None and original.shape == tensor.shape:
            assert torch.equal(tensor, original), key
            copied += 1
        else:
            assert torch.equal(tensor, before[key]), key
    assert copied > 50


def records(model) -> dict[str, set[str]]:
    return {m: set(others) for m, others in trained_with(model).items()}


def test_each_round_records_what_its_flows_are_trained_with(model):
    for name in ("round1", "round2", "round3"):
        begin_round(model, ROUNDS[name])
    assert records(model) == {
        "text": {"xray", "ct"},
        "xray": {"text"},
        "ct": {"text", "mri"},
        "mri": {"ct", "mri"},
    }


def test_all_pairs_records_every_pair(model):
    begin_round(model, ROUNDS["all_pairs"])
    for m in MODALITIES:
        own = {m} if m != "mri" else set()
        assert records(model)[m] == set(MODALITIES) - own


def test_a_stage_that_is_made_leaves_the_model_alone(model, corpora, latent_corpora):
    before = snapshot(model)
    for name in ("image_codec", "alignment", *ROUNDS):
        make(name, model, corpora, latent_corpora)
    assert changed(model, before) == set()


def test_flows_that_go_on_from_trained_weights_keep_what_they_were_trained_with(model):
    for name in ("round1", "round2", "round3"):
        begin_round(model, ROUNDS[name])
    before, weights = records(model), snapshot(model)
    begin_round(model, ROUNDS["round1"], continued=True)
    assert records(model) == before and changed(model, weights) == set()
    begin_round(model, ROUNDS["round1"])  # the control: anew, the text flow was not trained with CT
    assert records(model)["text"] == {"xray"}


def test_a_round_of_other_pairs_adds_them(model):
    for name in ("round1", "round2", "round3"):
        begin_round(model, ROUNDS[name])
    joint = Round(("mri", "xray"), (), (Mix("chest", ("xray", "mri_t1"), 1.0),))
    record_trained_with(model, joint, continued=True)
    assert records(model)["mri"] == {"xray", "ct", "mri"}
    assert records(model)["xray"] == {"text", "mri"}


def test_no_round_pairs_what_must_emerge():
    """text-MRI, X-ray-CT and X-ray-MRI are in no mix of rounds 1 to 3."""
    pairs = set()
    for name in ("round1", "round2", "round3"):
        for streams in (each.streams for each in ROUNDS[name].mixes):
            modalities = {stream(s).modality for s in streams}
            pairs |= {frozenset((a, b)) for a in modalities for b in modalities if a != b}
    assert pairs == {frozenset(p) for p in (("text", "xray"), ("text", "ct"), ("ct", "mri"))}


@pytest.mark.parametrize("name", ["round1", "round2", "round3", "all_pairs"])
def test_in_a_round_no_flow_is_guided_by_itself(model, latent_corpora, name, monkeypatch):
    stage = RoundStage(model, latent_corpora, name)
    own: dict[int, str] = {}
    environment, flow = model.environment, model.flow

    def watch_environment(n, *args):
        guide = environment(n, *args)
        own[id(guide.tokens)] = n
        return guide

    seen = []

    def watch_flow(n, z, level, prompt, guides):
        seen.append((n, [own[id(g.tokens)] for g in guides]))
        return flow(n, z, level, prompt, guides)

    monkeypatch.setattr(model, "environment", watch_environment)
    monkeypatch.setattr(model, "flow", watch_flow)
    for seed in range(4):
        own.clear()
        stage(4, torch.Generator().manual_seed(seed))
    assert seen and all(n not in guides for n, guides in seen)
    assert any(guides for _, guides in seen)
