"""Translation baselines and scores: what they learn, and what they cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import pictures

from medm2g_core.evaluation.bench import Bench
from medm2g_core.evaluation.image_to_image import GROUPS, TASKS, translation
from medm2g_core.metrics.pixels import psnr
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.rivals.translator import (
    Patches,
    RegressionSettings,
    Translation,
    Translator,
    train_translator,
)
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.fit import fit
from medm2g_core.training.loop import StageInterrupted

TASK = Translation("brain", ("mri_t1",), "mri_t2")


@pytest.fixture(scope="module")
def pairs() -> Corpus:
    """Four smooth pictures whose T2 is the negative of their T1, and a PD that has nothing to do
    with it."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 1, 4, 4, generator=g) * 2 - 1
    x = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(-1, 1)
    return Corpus(
        "brain",
        {"mri_t1": x.half(), "mri_t2": (-x).half(), "mri_pd": x.roll(1, 0).half()},
        [["a"]] * 4,
    )


def small(adversarial: bool = False, steps: int = 150, **changes) -> RegressionSettings:
    values = {"batch": 4, "lr": 5e-3, "channels": (16, 24)} | changes
    return RegressionSettings((TASK,), 60.0, 1, adversarial, steps, **values)


def test_regression_learns_pairs_by_heart_and_the_wrong_input_does_not_help(pairs, tmp_path):
    net = train_translator(small(), {"brain": pairs}, cache=tmp_path, progress=False)
    given, truth = pairs.images["mri_t1"].float(), pairs.images["mri_t2"].float()
    right = psnr(net.translate({"mri_t1": given}, "mri_t2"), truth).mean()
    wrong = psnr(net.translate({"mri_t1": given.roll(1, 0)}, "mri_t2"), truth).mean()
    assert right > 20 and wrong < right - 6


def test_a_cached_baseline_is_the_same_network_and_a_damaged_one_is_trained_again(pairs, tmp_path):
    settings = small(steps=3)
    net = train_translator(settings, {"brain": pairs}, cache=tmp_path, progress=False)
    (file,) = tmp_path.glob("*.safetensors")
    stamp = file.stat().st_mtime_ns
    again = train_translator(settings, {"brain": pairs}, cache=tmp_path, progress=False)
    given = {"mri_t1": pairs.images["mri_t1"].float()}
    assert torch.equal(net.translate(given, "mri_t2"), again.translate(given, "mri_t2"))
    assert file.stat().st_mtime_ns == stamp and again.info["steps"] == net.info["steps"]
    file.write_bytes(b"half")
    with pytest.warns(UserWarning, match="damaged .* made anew"):
        train_translator(settings, {"brain": pairs}, cache=tmp_path, progress=False)
    assert file.stat().st_size > 1000
    with pytest.raises(ValueError, match="need studies of their regions"):
        train_translator(settings, {"chest": pairs}, cache=tmp_path)


@pytest.mark.parametrize("adversarial", [False, True])
def test_a_translator_that_was_stopped_goes_on(adversarial, pairs, tmp_path, monkeypatch):
    settings, stop = small(adversarial, steps=8), {"stop_after": 3}
    monkeypatch.setattr("medm2g_core.rivals.translator.bf16_pays", lambda device: False)
    monkeypatch.setattr(
        "medm2g_core.rivals.translator.fit", lambda *a, **k: fit(*a, **{**k, **stop})
    )
    with pytest.raises(StageInterrupted, match="stopped at step 3"):
        train_translator(settings, {"brain": pairs}, cache=tmp_path, progress=False)
    (state,) = tmp_path.iterdir()
    stop["stop_after"] = None
    resumed = train_translator(settings, {"brain": pairs}, cache=tmp_path, progress=False)
    assert not state.exists() and resumed.info["steps"] == 8
    whole = train_translator(settings, {"brain": pairs}, cache=tmp_path / "x", progress=False)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_an_absent_stream_says_only_that_it_is_absent():
    """What stands in the slot of a stream that is not given cannot matter, and that it is missing
    does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Translator((16, 24)).eval()
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one, both = net({"mri_t1": x}, "ct"), net({"mri_t1": x, "mri_t2": torch.zeros_like(x)}, "ct")
    assert one.shape == x.shape and not torch.allclose(one, both)
    assert not torch.allclose(one, net({"mri_t1": x}, "xray"))


def test_the_critic_sees_the_condition_and_gives_the_generator_a_gradient():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic, net = Patches(8), Translator((16, 24))
    x = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    out = net({"ct": x}, "mri_t2")
    score = critic({"ct": x}, out, "mri_t2")
    assert score.ndim == 4 and score.shape[-1] > 1  # a map of patches
    assert not torch.allclose(score, critic({"ct": x.flip(0)}, out, "mri_t2"))
    (score - 1).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in critic.parameters())
    assert sum(p.grad.abs().sum() for p in net.parameters() if p.grad is not None) > 0


def test_pix2pix_trains_both_players(pairs, tmp_path):
    net = train_translator(small(True, 60), {"brain": pairs}, cache=tmp_path, progress=False)
    given, truth = pairs.images["mri_t1"].float(), pairs.images["mri_t2"].float()
    untrained = Translator((16, 24)).eval()
    assert (
        psnr(net.translate({"mri_t1": given}, "mri_t2"), truth).mean()
        > 3 + psnr(untrained.translate({"mri_t1": given}, "mri_t2"), truth).mean()
    )


def test_every_translation_belongs_to_one_group_of_one_target_modality():
    assert sorted(map(str, TASKS)) == sorted(str(t) for group in GROUPS.values() for t in group)
    assert len(GROUPS["mri"]) == 6


def test_one_draw_or_the_mean_is_chosen_on_validation_studies(model, monkeypatch, tmp_path) -> None:
    """Whichever is better on the test studies: those of the validation split are made to tell."""
    monkeypatch.setattr("medm2g_core.rivals.translator.cache_dir", lambda: tmp_path)
    bench = Bench(MedM2GPipeline(model), n_chest=4, n_brain=4, reference=4, steps=1, progress=False)
    size = model.profile.resolution
    images = {n: pictures(6, size).half() for n in (*TASKS[0].given, TASKS[0].target)}
    corpora = {"brain": Corpus("brain", images, [[]] * 6)}
    truth = bench.studies("brain", "val").stack(TASKS[0].target)
    draws = bench.draws
    wanted = ["model", "model, mean of 2"]

    def told(*args: object, split: str = "test", **options: object) -> torch.Tensor:
        out = draws(*args, split=split, **options)
        if split == "val":  # right at once, or right in the mean only
            wrong = 0.2 * torch.stack([torch.ones_like(truth), -torch.ones_like(truth)])
            out = truth + wrong
            out[0] = truth if wanted[0] == "model" else out[0]
        return out

    monkeypatch.setattr(bench, "draws", told)
    results = []
    for _ in range(2):
        outcome = translation(bench, {}, corpora, seconds={"mri": 0.2}, means=2, tasks=TASKS[:1])
        (choice,) = outcome.facts["settings chosen on validation"]
        assert choice["chosen"] == wanted[0] and choice["n"] == 4
        assert {r.who for r in outcome.rows if r.chosen} == {wanted[0]}
        results.append([replace(r, chosen=False) for r in outcome.rows])
        wanted.reverse()
    assert results[0] == results[1], "test scores are the same whatever validation says"
