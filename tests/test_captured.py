"""Steps that a GPU plays as graphs: without one, the same bookkeeping one kernel at a time."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from medm2g_core.profiles import profile
from medm2g_core.streams import STREAMS
from medm2g_core.training.captured import CapturedSteps, kind_of, tensors_in
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.objectives import round_objective
from medm2g_core.training.rounds import ROUNDS
from medm2g_core.training.run import new_model
from medm2g_core.training.stages import RoundStage


def corpus(model, name: str, streams: tuple[str, ...], n: int = 12) -> LatentCorpus:
    """Studies of noise; as many numbers as the real ones have."""
    draw, d = torch.Generator().manual_seed(0), model.profile.alignment.embed_dim

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    wordings = {s: (2,) if s == "text" else () for s in streams}
    return LatentCorpus(
        name,
        {s: noise(n, *wordings[s], *model.latent_shape(s)) for s in streams},
        {s: noise(n, *wordings[s], d) for s in streams},
        {s: noise(n, *wordings[s], 6 if s == "text" else 4, d) for s in streams},
        torch.ones(n, 2, 6, dtype=torch.bool),
        torch.ones(n, 2, 6, dtype=torch.int32),
    )


@pytest.fixture(scope="module")
def stage() -> RoundStage:
    model = new_model(profile("smoke"))
    plan = ROUNDS["joint"]
    streams = {mix.corpus: mix.streams for mix in plan.mixes}
    corpora = [corpus(model, name, own) for name, own in streams.items()]
    return RoundStage(model, corpora, "joint", plan)


def drawn(stage: RoundStage, seed: int):
    return stage.batches.draw(2, torch.Generator().manual_seed(seed), torch.device("cpu"))


def steps(stage: RoundStage) -> CapturedSteps:
    params = [p for _, p in stage.trainable()]
    objective = partial(stage.objective, stage.model)
    return CapturedSteps(objective, params, 1.0, nullcontext, capture=False)


def test_a_kept_step_gives_the_losses_and_gradients_of_one_that_is_computed_anew(stage):
    """Also when it serves a batch after another of the same kind: nothing of the first is left."""
    kept, params = steps(stage), [p for _, p in stage.trainable()]
    for seed in range(6):
        batch = drawn(stage, seed)
        loss, logs = kept(batch)
        own = [None if p.grad is None else p.grad.clone() for p in params]
        for p in params:
            p.grad = None
        expected, expected_logs = round_objective(stage.model, drawn(stage, seed))
        expected.backward()
        torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], 1.0)
        torch.testing.assert_close(loss, expected.detach())
        assert logs.keys() == expected_logs.keys()
        for p, grad in zip(params, own, strict=True):
            assert (grad is None) == (p.grad is None)
            if grad is not None:
                torch.testing.assert_close(grad, p.grad)


def test_batches_of_one_kind_differ_in_values_alone(stage):
    kinds = {}
    for seed in range(20):
        batch = drawn(stage, seed)
        kinds.setdefault(kind_of(batch), []).append(batch)
    assert len(kinds) == 4, "chest with T1, chest with T2, chest reports, brain"
    for same in kinds.values():
        assert len({b.targets for b in same}) == 1
        shapes = {tuple(x.shape for x in tensors_in(b)) for b in same}
        assert len(shapes) == 1


def test_a_batch_with_one_study_more_is_of_another_kind(stage):
    generator = torch.Generator().manual_seed(0)
    larger = stage.batches.draw(3, generator, torch.device("cpu"))
    assert kind_of(larger) != kind_of(drawn(stage, 0))


def test_every_stream_is_a_target_of_the_joint_round(stage):
    met = {t for seed in range(40) for t in drawn(stage, seed).targets}
    assert met == set(STREAMS)


def test_the_joint_round_reaches_every_entry_of_every_map(stage):
    """Each image flow has a matrix for each stream that can guide it; all of them learn."""
    for flow in (stage.model.flows[m] for m in ("xray", "ct", "mri")):
        assert set(flow.maps) == set(STREAMS) - {"text"}
    kept, reached = steps(stage), set()
    for seed in range(40):
        kept(drawn(stage, seed))
        reached |= {
            n for n, p in stage.trainable() if p.grad is not None and p.grad.abs().sum() > 0
        }
    entries = {n for n, _ in stage.trainable() if ".maps." in n and n.endswith("weight")}
    never = {n for n in entries if n not in reached}
    # No study has both a film or a CT and the contrasts of a brain, and none guides itself.
    of_brains = {"mri_pd", "mri_flair"}
    expected = {f"flows.{m}.maps.{s}.weight" for m in ("xray", "ct") for s in of_brains}
    expected |= {f"flows.{s}.maps.{s}.weight" for s in ("xray", "ct")}
    assert never == expected
