"""Training: every round moves exactly what it should, and stopping changes nothing."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import BRAIN, CHEST, reports, untrained

from medm2g_core.model import CheckpointError, MedM2G
from medm2g_core.profiles import StageConfig
from medm2g_core.streams import MODALITIES, stream
from medm2g_core.training.corpus import LatentCorpus
from medm2g_core.training.loop import (
    StageInterrupted,
    _step_seed,
    learning_rate,
    run_stage,
    state_file,
)
from medm2g_core.training.stages import (
    ROUNDS,
    AlignmentStage,
    ImageCodecStage,
    RoundStage,
    Stage,
    TextCodecStage,
    inherit_weights,
)

SHORT = StageConfig(steps=4, batch=4, lr=1e-2, warmup=1, ema=0.5)


def fresh_reports(n: int, seed: int) -> list[str]:
    return reports(n, seed=seed)


def make(name: str, model: MedM2G, corpora, latent_corpora) -> Stage:
    if name == "image_codec":
        return ImageCodecStage(model, corpora)
    if name == "text_codec":
        return TextCodecStage(model, fresh_reports)
    if name == "alignment":
        return AlignmentStage(model, corpora)
    return RoundStage(model, latent_corpora, name)


def run(stage: Stage, folder: Path, config: StageConfig = SHORT, **options):
    return run_stage(stage, config, folder, precision="fp32", progress=False, **options)


def snapshot(model: MedM2G) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def changed(model: MedM2G, before: dict[str, torch.Tensor]) -> set[str]:
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


# ---- what moves


def may_move(name: str, key: str) -> bool:
    """The rule, written down a second time."""
    part, _, rest = key.partition(".")
    if name in ("image_codec", "text_codec", "alignment"):
        return part == name
    if part not in ("flows", "environments"):
        return False
    modality = rest.split(".")[0]
    if key.endswith("prompt.trained_with"):
        return modality in {"round1": ("text", "xray"), "round2": ("ct",), "round3": ("mri",)}[name]
    if name == "round1":
        return modality in ("text", "xray")
    new, frozen = {"round2": ("ct", "text"), "round3": ("mri", "ct")}[name]
    if modality == new:
        return True
    hears_new = any(f".{way}.{new}" in key for way in ("gate", "prompt.details", "maps"))
    return part == "flows" and modality == frozen and hears_new


@pytest.mark.parametrize(
    "name", ["image_codec", "text_codec", "alignment", "round1", "round2", "round3"]
)
def test_a_stage_moves_exactly_the_parameters_it_should(
    model, corpora, latent_corpora, tmp_path, name
):
    before = snapshot(model)
    stage = make(name, model, corpora, latent_corpora)
    run(stage, tmp_path, StageConfig(steps=6, batch=4, lr=1e-2, warmup=1, ema=0.1))
    moved = changed(model, before)
    assert {k for k in moved if not may_move(name, k)} == set()
    declared = {n for n, _ in stage.trainable()}
    assert {k for k in declared if not may_move(name, k)} == set()
    statistics = {
        k for k in moved if ".running_" in k or k.endswith("num_batches_tracked")
    }  # of the aligned heads
    assert name == "alignment" or not statistics
    assert declared >= moved - statistics - {
        k for k in moved if k.endswith(".trained_with") or "lm_head" in k
    }
    # Nearly everything that may move does, the rest being ears for streams that this round does not
    # have.
    ears = (".gate.", ".details.", ".maps.", "temb")
    still = {k for k in declared - moved if not any(ear in k for ear in ears)}
    assert len(still) <= 0.05 * len(declared) + 2, sorted(still)


def test_round_2_opens_only_the_ears_of_the_frozen_text_flow(model, latent_corpora):
    names = {n for n, _ in RoundStage(model, latent_corpora, "round2").trainable()}
    text = {n for n in names if n.startswith(("flows.text.", "environments.text."))}
    assert text and all(".gate.ct" in n or ".prompt.details.ct." in n for n in text)
    assert sum(".gate.ct" in n for n in text) == model.profile.flow.text_layers
    assert not any(
        n.startswith(("flows.xray", "environments.xray", "flows.mri", "environments.mri"))
        for n in names
    )


@pytest.mark.parametrize(
    ("name", "heir", "donor"), [("round2", "ct", "xray"), ("round3", "mri", "ct")]
)
def test_a_new_flow_starts_as_a_copy_of_a_trained_one(model, name, heir, donor):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inherit_weights(model, name)
    after = model.state_dict()
    copied = 0
    for key, tensor in after.items():
        twin = before.get(key.replace(f".{heir}.", f".{donor}.", 1))
        own = key.startswith((f"flows.{heir}.", f"environments.{heir}."))
        if own and twin is not None and twin.shape == tensor.shape:
            assert torch.equal(tensor, twin), key
            copied += 1
        else:
            assert torch.equal(tensor, before[key]), key
    assert copied > 50


def test_rounds_are_told_which_modalities_they_meet(model, latent_corpora):
    for name in ("round1", "round2", "round3"):
        RoundStage(model, latent_corpora, name)
    knows = {
        m: {o for o in MODALITIES if model.prompt_projection(m).was_trained_with(o)}
        for m in MODALITIES
    }
    assert knows == {
        "text": {"xray", "ct"},
        "xray": {"text"},
        "ct": {"text", "mri"},
        "mri": {"ct", "mri"},
    }


def test_all_pairs_meets_every_pair(model, latent_corpora):
    RoundStage(model, latent_corpora, "all_pairs")
    for m in MODALITIES:
        own = {m} if m != "mri" else set()
        assert {o for o in MODALITIES if model.prompt_projection(m).was_trained_with(o)} == set(
            MODALITIES
        ) - own


def test_no_round_pairs_what_must_emerge():
    """text-MRI, X-ray-CT and X-ray-MRI never meet in rounds 1 to 3."""
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
        own[id(guide)] = n
        return guide

    seen = []

    def watch_flow(n, z, level, prompt, guides):
        seen.append((n, [own[id(g)] for g in guides]))
        return flow(n, z, level, prompt, guides)

    monkeypatch.setattr(model, "environment", watch_environment)
    monkeypatch.setattr(model, "flow", watch_flow)
    for seed in range(4):
        own.clear()
        stage(4, torch.Generator().manual_seed(seed))
    assert seen and all(n not in guides for n, guides in seen)
    assert any(guides for _, guides in seen)


# ---- latents


def test_given_guides_are_clean_together_in_half_of_the_studies(model, latent_corpora, monkeypatch):
    names = ("mri_t1", "mri_t2", "mri_pd", "mri_flair")
    stage = RoundStage(model, latent_corpora, "round3")
    heard: dict[str, torch.Tensor] = {}
    environment = model.environment

    def watch(n, z, level, present):
        heard[n] = level
        return environment(n, z, level, present)

    monkeypatch.setattr(model, "environment", watch)
    n, g = 400, torch.Generator().manual_seed(0)
    t = torch.rand(n, generator=g)
    z = {m: torch.randn(n, *model.latent_shape(m), generator=g) for m in names}
    stage._guides(names, t, z, z, g)
    s = torch.stack([heard[m] for m in names])  # (4, n)
    clean, same = (s == 0).all(0).float().mean(), (s == t).all(0).float().mean()
    assert clean == pytest.approx(0.5 + 0.3 * 0.5**4, abs=0.07)
    assert same == pytest.approx(0.2 + 0.3 * 0.2**4, abs=0.06)
    mixed = ((s == 0).any(0) & (s > 0).any(0)).float().mean()  # some given, others drawn along
    assert mixed > 0.1


def test_cached_latents_are_those_of_the_model(model, corpora, tmp_path):
    built = LatentCorpus.build(model, corpora[0], tmp_path)
    index, wording = torch.tensor([2, 0]), torch.tensor([1, 0])
    texts = [corpora[0].reports[2][1], corpora[0].reports[0][0]]
    assert torch.allclose(
        built.latent("text", index, wording), model.encode("text", texts), atol=5e-3
    )
    image = corpora[0].images["ct"][index].float()
    assert torch.allclose(built.latent("ct", index, wording), model.encode("ct", image), atol=5e-3)
    e = built.embedding("text", index, wording)
    own = model.embed({"text": texts})["text"]
    assert torch.equal(e.mask, own.mask) and torch.allclose(e.pooled, own.pooled, atol=5e-3)
    assert set(built.latents) == {"text", *CHEST} and len(built) == 4


def test_the_cache_is_used_and_noticed_when_stale(model, corpora, tmp_path, monkeypatch):
    LatentCorpus.build(model, corpora[1], tmp_path)
    calls = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda n, v: calls.append(n) or encode(n, v))
    LatentCorpus.build(model, corpora[1], tmp_path)
    assert not calls
    with torch.no_grad():
        next(model.image_codec.parameters()).add_(0.1)
    LatentCorpus.build(model, corpora[1], tmp_path)
    assert set(calls) == {"text", *BRAIN}


# ---- stop and go on


def test_every_step_and_process_has_a_seed_of_its_own():
    """Distinct in the 32 bits that torch's CPU generator keeps."""
    seeds = {
        _step_seed(0, "round1", step, rank) % 2**32 for step in range(2500) for rank in range(4)
    }
    assert len(seeds) > 9990
    first = {
        torch.rand(1, generator=torch.Generator().manual_seed(_step_seed(0, "round1", s, 0))).item()
        for s in range(1000)
    }
    assert len(first) > 990


def test_the_learning_rate_warms_up_and_falls_to_a_twentieth():
    config = StageConfig(steps=100, lr=1.0, warmup=10)
    rates = [learning_rate(config, i) for i in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0.05 <= rates[-1] < 0.06


def test_a_restart_begins_the_schedule_anew_and_a_short_trial_has_none():
    config = StageConfig(steps=100, restart=40, lr=1.0, warmup=10)
    rates = [learning_rate(config, i) for i in range(100)]
    short, long = StageConfig(steps=40, lr=1.0, warmup=10), StageConfig(steps=60, lr=1.0, warmup=10)
    assert rates == [learning_rate(short, i) for i in range(40)] + [
        learning_rate(long, i) for i in range(60)
    ]
    assert config.shortened(60).restart == 0
    early = dataclasses.replace(config, steps=40)  # over before the restart: one schedule
    assert [learning_rate(early, i) for i in range(40)] == rates[:40]


def test_a_restarted_training_stands_at_the_average_of_its_first_leg(
    smoke, corpora, latent_corpora, tmp_path
):
    """At the restart it has the very weights that a training of the first cycle alone would have
    ended with."""
    alone, restarted = untrained(smoke), untrained(smoke)
    run(make("round1", alone, corpora, latent_corpora), tmp_path / "a")
    stage = make("round1", restarted, corpora, latent_corpora)
    seen, forward = [], stage.forward

    def watched(batch, generator):
        seen.append(snapshot(restarted))
        return forward(batch, generator)

    stage.forward = watched
    run(stage, tmp_path / "b", dataclasses.replace(SHORT, steps=7, restart=SHORT.steps))
    end = alone.state_dict()
    assert len(seen) == 7
    assert [k for k in end if not torch.equal(end[k], seen[4][k])] == []
    assert any(not torch.equal(end[k], seen[3][k]) for k in end), (
        "the average is not the last step's weights"
    )
    after = restarted.state_dict()
    assert any(not torch.equal(after[k], end[k]) for k in end), "and it goes on from there"


def resume_in_pieces(
    name: str, model: MedM2G, corpora, latent_corpora, folder: Path, config: StageConfig = SHORT
) -> MedM2G:
    for _ in range(10):
        try:
            run(make(name, model, corpora, latent_corpora), folder, config, stop_after=1)
            return model
        except StageInterrupted:
            # What a new process would start from: other weights, everything else from the state
            # file.
            with torch.no_grad():
                for _, p in make(name, model, corpora, latent_corpora).trainable():
                    p.add_(1.0)
    raise AssertionError("never finished")


@pytest.mark.parametrize("name", ["image_codec", "text_codec", "round1"])
def test_interrupted_training_ends_in_the_same_weights(
    smoke, corpora, latent_corpora, tmp_path, name
):
    straight, pieces = untrained(smoke), untrained(smoke)
    run(make(name, straight, corpora, latent_corpora), tmp_path / "a")
    resume_in_pieces(name, pieces, corpora, latent_corpora, tmp_path / "b")
    a, b = straight.state_dict(), pieces.state_dict()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    control = untrained(smoke)
    run(make(name, control, corpora, latent_corpora), tmp_path / "c", seed=1)
    assert any(not torch.equal(a[k], v) for k, v in control.state_dict().items() if k in a)


def test_training_interrupted_about_its_restart_ends_in_the_same_weights(
    smoke, corpora, latent_corpora, tmp_path
):
    """Also where it was stopped right before the restart, whose optimiser moments must not come
    back."""
    config = dataclasses.replace(SHORT, restart=2, optimizer="muon")
    straight, pieces = untrained(smoke), untrained(smoke)
    run(make("round1", straight, corpora, latent_corpora), tmp_path / "a", config)
    resume_in_pieces("round1", pieces, corpora, latent_corpora, tmp_path / "b", config)
    a, b = straight.state_dict(), pieces.state_dict()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_a_finished_stage_leaves_its_state_for_the_caller_to_delete(model, corpora, tmp_path):
    summary = run(ImageCodecStage(model, corpora), tmp_path)
    file = state_file(tmp_path, "image_codec")
    assert summary["steps"] == SHORT.steps and summary["processes"] == 1 and file.is_file()
    assert (
        len((tmp_path / "image_codec.log.jsonl").read_text().splitlines()) == 2
    )  # first and last step
    before = snapshot(model)
    again = run(
        ImageCodecStage(model, corpora), tmp_path
    )  # nothing left to do: the same weights come back
    assert changed(model, before) == set() and again["steps"] == SHORT.steps
    assert all(p.requires_grad for p in model.parameters()) and not model.training


@pytest.mark.parametrize("other", ["seed", "config"])
def test_a_state_of_another_configuration_is_refused(model, corpora, tmp_path, other):
    with pytest.raises(StageInterrupted):
        run(ImageCodecStage(model, corpora), tmp_path, stop_after=1)
    options = {"seed": 3} if other == "seed" else {"config": StageConfig(steps=9, batch=4)}
    with pytest.raises(
        CheckpointError, match=r"image_codec\.state\.safetensors belongs to another configuration"
    ):
        run(ImageCodecStage(model, corpora), tmp_path, **options)


def test_a_damaged_state_is_refused(model, corpora, tmp_path):
    with pytest.raises(StageInterrupted):
        run(ImageCodecStage(model, corpora), tmp_path, stop_after=1)
    file = state_file(tmp_path, "image_codec")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        run(ImageCodecStage(model, corpora), tmp_path)


class Interrupting(ImageCodecStage):
    """Sends this process a signal in the middle of a step."""

    at, signal = 2, signal.SIGINT

    def forward(self, batch, generator):
        self.at -= 1
        if self.at == 0:
            os.kill(os.getpid(), self.signal)
        return super().forward(batch, generator)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_can_be_resumed(smoke, corpora, tmp_path, number):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    model = untrained(smoke)
    stage = Interrupting(model, corpora)
    stage.signal = number
    with pytest.raises(StageInterrupted, match="stopped at step 2 of 4"):
        run(stage, tmp_path)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    run(ImageCodecStage(model, corpora), tmp_path)
    straight = untrained(smoke)
    run(ImageCodecStage(straight, corpora), tmp_path / "straight")
    assert changed(model, straight.state_dict()) == set()


def test_a_loss_that_is_not_finite_stops_training(model, corpora, tmp_path):
    with torch.no_grad():
        next(model.image_codec.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="image_codec"):
        run(ImageCodecStage(model, corpora), tmp_path)


def test_stages_of_one_process_may_differ_in_precision(model, corpora, tmp_path):
    for name, precision in (("a", "bf16"), ("b", "fp32")):
        stage = ImageCodecStage(model, corpora)
        summary = run_stage(stage, SHORT, tmp_path / name, precision=precision, progress=False)
        assert summary["precision"] == precision


def test_training_leaves_the_global_generator_alone(model, corpora, tmp_path):
    state = torch.random.get_rng_state()
    run(TextCodecStage(model, fresh_reports), tmp_path)
    assert torch.equal(state, torch.random.get_rng_state())


TWO_PROCESSES = """
    import sys
    from pathlib import Path

    import torch
    import torch.distributed as dist

    sys.path.insert(0, {tests!r})
    from conftest import CHEST, pictures, reports, untrained
    from medm2g_core.profiles import StageConfig, profile
    from medm2g_core.training.corpus import Corpus
    from medm2g_core.training.loop import run_stage
    from medm2g_core.training.stages import ImageCodecStage

    torch.set_num_threads(1)
    model = untrained(profile("smoke"))
    corpus = Corpus("chest", {{n: pictures(4).half() for n in CHEST}}, [[t] for t in reports(4)])
    start = torch.cat([p.detach().flatten() for p in model.image_codec.parameters()])
    config = StageConfig(steps=3, batch=2, warmup=1, ema=0.5)
    result = run_stage(ImageCodecStage(model, [corpus]), config, Path({folder!r}),
                       precision="fp32", progress=False)
    assert dist.is_initialized() and dist.get_world_size() == 2 == result["processes"]
    mine = torch.cat([p.detach().flatten() for p in model.image_codec.parameters()])
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    assert torch.equal(*both), "the processes ended with different weights"
    assert not torch.equal(mine, start)
    # files, because two processes' prints may run into each other
    Path({folder!r}, f"agrees-{{dist.get_rank()}}").touch()
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_to_equal_weights(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(
            TWO_PROCESSES.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
        )
    )
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            str(script),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(f.name for f in tmp_path.glob("agrees-*")) == ["agrees-0", "agrees-1"]
