"""The training loop: stopping changes nothing, and what it ends with is what it says."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import untrained
from training_helpers import SHORT, changed, fresh_reports, make, run, snapshot
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from medm2g_core.flows.guidance import guided_layers
from medm2g_core.model import PARTS, CheckpointError, MedM2G
from medm2g_core.profiles import StageConfig
from medm2g_core.training import loop
from medm2g_core.training.loop import (
    LOWEST_RATE,
    StageInterrupted,
    _step_seed,
    learning_rate,
    run_stage,
    state_file,
)
from medm2g_core.training.stages import (
    AlignmentStage,
    ImageCodecStage,
    RoundStage,
    TextCodecStage,
)

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


def test_after_the_warm_up_the_learning_rate_is_transformers_cosine_with_a_floor():
    config = StageConfig(steps=60, lr=1.0, warmup=10)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, config.warmup, config.steps, min_lr_rate=LOWEST_RATE
    )
    for step in range(config.steps):
        if step >= config.warmup:
            assert learning_rate(config, step) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_a_restarted_training_stands_at_the_average_of_its_first_cycle(
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
            # What a new process would start from: other weights and buffers, everything else from
            # the state file.
            with torch.no_grad():
                for _, p in make(name, model, corpora, latent_corpora).trainable():
                    p.add_(1.0)
                for n, b in model.named_buffers():
                    if "running_" in n or "num_batches" in n:
                        b.add_(1)
    raise AssertionError("never finished")


@pytest.mark.parametrize("name", ["image_codec", "text_codec", "alignment", "reports", "round1"])
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


def test_a_resumed_training_has_the_integer_buffers_of_one_that_was_not_stopped(
    smoke, corpora, tmp_path, monkeypatch
):
    """Batch norm counts its batches in an integer; seen before the averaged weights get their own
    statistics."""
    monkeypatch.setattr("medm2g_core.training.loop._update_batch_norms", lambda *_: None)
    straight, pieces = untrained(smoke), untrained(smoke)
    run(AlignmentStage(straight, corpora), tmp_path / "a")
    resume_in_pieces("alignment", pieces, corpora, [], tmp_path / "b")
    a, b = straight.state_dict(), pieces.state_dict()
    counts = [k for k in a if k.endswith("num_batches_tracked")]
    assert counts and any(a[k] > 0 for k in counts)
    assert [k for k in counts if a[k] != b[k]] == []


@torch.no_grad()
def test_averaged_weights_have_batch_norm_statistics_of_their_own(
    smoke, corpora, tmp_path, monkeypatch
):
    """Those of the run are of weights that it has left; with an average that lags they are far
    off."""
    model = untrained(smoke)
    stage = AlignmentStage(model, corpora)
    heads, of_the_run = stage.batch_norms(), []
    update = loop._update_batch_norms

    def watched(*args):
        of_the_run.extend(m.running_mean.clone() for m in heads)
        update(*args)

    monkeypatch.setattr(loop, "_update_batch_norms", watched)
    with torch.enable_grad():
        run(stage, tmp_path, StageConfig(steps=12, batch=4, lr=3e-2, warmup=1, ema=0.98))
    seen: dict[int, list[torch.Tensor]] = {}
    for i, m in enumerate(heads):
        m.register_forward_pre_hook(lambda _, x, i=i: seen.setdefault(i, []).append(x[0]))
    for seed in range(12):
        stage(8, torch.Generator().manual_seed(1000 + seed))
    assert len(heads) == 4
    for i, m in enumerate(heads):
        x = torch.cat(seen[i])
        own, other = ((mean - x.mean(0)).abs().mean() for mean in (m.running_mean, of_the_run[i]))
        assert own < 0.5 * other and own < 0.3 * x.std(0).mean()


def test_training_another_stage_leaves_the_batch_norms_alone(model, latent_corpora, tmp_path):
    before = snapshot(model)
    run(RoundStage(model, latent_corpora, "round1"), tmp_path)
    assert not {k for k in changed(model, before) if "running_" in k or "num_batches" in k}


def test_two_trainings_of_one_seed_give_the_same_bytes(smoke, corpora, latent_corpora, tmp_path):
    """Several entries of metadata lie in a file in an order that differs from one to the next."""
    for folder in (tmp_path / "a", tmp_path / "b"):
        model = untrained(smoke)
        run(make("round1", model, corpora, latent_corpora), folder)
        model.save_pretrained(folder)
    files = sorted(p.name for p in (tmp_path / "a").glob("*.safetensors"))
    assert len(files) == len(PARTS) + 1
    different = [
        f
        for f in [*files, "config.json", "tokenizer.json"]
        if (tmp_path / "a" / f).read_bytes() != (tmp_path / "b" / f).read_bytes()
    ]
    assert set(different) <= {"round1.state.safetensors"}  # it holds the seconds that passed


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


def test_the_log_of_a_round_holds_the_gates_that_it_moves(model, latent_corpora, tmp_path):
    """Old readers, which take numbers, see the same values a line as before."""
    stage = make("round2", model, [], latent_corpora)
    before = stage.gates()
    run(stage, tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "round2.log.jsonl").read_text().splitlines()]
    first, last = lines[0]["gates"], lines[-1]["gates"]
    assert first.keys() == last.keys() == before.keys()
    layers = guided_layers(model.flows["ct"])
    assert len(last["ct<-text"]) == len(layers) > 0
    assert last["ct<-text"] != pytest.approx(before["ct<-text"], abs=1e-4)
    assert "gates" not in {k for k, v in lines[0].items() if isinstance(v, int | float)}


def test_a_stage_without_gates_logs_none(model, corpora, tmp_path):
    run(make("image_codec", model, corpora, []), tmp_path)
    assert '"gates"' not in (tmp_path / "image_codec.log.jsonl").read_text()


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
    from medm2g_core.training import latents as latents_module
    from medm2g_core.training.corpus import Corpus
    from medm2g_core.training.latents import LatentCorpus
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
    # the latents are encoded once, each process its share
    latents_module.SHARD, encode, own = 1, latents_module._encode, []
    latents_module._encode = lambda m, c, s, *rest: own.append(s.start) or encode(m, c, s, *rest)
    latents = LatentCorpus.build(model, corpus, Path({folder!r}) / "work")
    assert own == [[0, 2], [1, 3]][dist.get_rank()], own
    latents_module._encode = encode
    whole = LatentCorpus.build(model, corpus)
    assert all(torch.equal(latents.latents[n], whole.latents[n]) for n in whole.latents)
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
