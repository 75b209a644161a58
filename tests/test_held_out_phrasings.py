"""The mark of negation and phrasing: counted right, and drawn from the very texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medm2g_core.data.held_out import HELD_OUT
from medm2g_core.data.labeller import label_report
from medm2g_core.evaluation.bench import Bench
from medm2g_core.evaluation.phrasing import AFFIRMED, DENIED, TIDY, phrasing, phrasing_rows, sees
from medm2g_core.evaluation.table import LESS_IS_BETTER
from medm2g_core.judges.judge import Judge
from medm2g_core.judges.labels import labels_of
from medm2g_core.judges.network import JudgeNet
from medm2g_core.pipeline import MedM2GPipeline

THRESHOLD = 0.25


class Eye(JudgeNet):
    """Sees every finding as much as a picture is bright."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bright = x.mean((1, 2, 3))[:, None]
        return bright.expand(-1, len(labels_of("chest"))), bright


@pytest.fixture
def judge() -> Judge:
    net = Eye(len(labels_of("chest"))).eval()
    net.thresholds.fill_(THRESHOLD)
    return Judge("chest", "xray", net, {})


def bright(levels: list[float]) -> torch.Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 1, 32, 32)


def test_a_finding_is_seen_above_the_threshold_of_the_judge(judge):
    seen = sees(judge, bright([0.2, 0.3, -1.0, 0.26]), "cardiomegaly")
    assert seen.tolist() == [False, True, False, True]


def test_rows_count_the_draws_of_each_text_that_show_the_finding(judge):
    """A model that hears the word alone draws it whenever it is named: right where affirmed, wrong
    where denied; one draw in four of the denied ones is spared."""
    asked = []

    def draw(text: str) -> torch.Tensor:
        asked.append(text)
        denied = text in {h.denied for h in HELD_OUT}
        said = bool(label_report(text, "chest").findings)
        return bright(
            [1.0] * 4 if not denied and said else [1.0] * 3 + [0.0] if denied else [0.0] * 4
        )

    outcome = phrasing_rows(draw, judge)
    assert {t for h in HELD_OUT for t in (h.affirmed, h.denied)} <= set(asked)
    own = [r for r in outcome.rows if r.who == "model"]
    assert len(own) == 2 * len(HELD_OUT) and all(r.n == 4 for r in outcome.rows)
    assert {r.value for r in own if r.metric == DENIED} == {0.75}
    unread = {h.affirmed for h in HELD_OUT if not label_report(h.affirmed, "chest").findings}
    for r in own:
        if r.metric == AFFIRMED and not any(t in r.task for t in unread):
            assert r.value == 1.0
    tidy = {(r.metric, r.value) for r in outcome.rows if r.who == TIDY}
    assert tidy == {(AFFIRMED, 1.0), (DENIED, 0.0)}
    assert DENIED in LESS_IS_BETTER and AFFIRMED not in LESS_IS_BETTER


def test_every_text_is_drawn_by_the_model_from_the_same_noise(model, judge):
    bench = Bench(MedM2GPipeline(model), n_chest=1, n_brain=1, reference=1, steps=1, progress=False)
    given = []
    call = bench.pipe.__call__

    def heard(raw, want, **options):
        given.append((list(raw["text"]), [g.initial_seed() for g in options["generator"]]))
        return call(raw, want, **options)

    class Pipe:
        set_progress_bar_config = staticmethod(lambda **_: None)

        def __call__(self, raw, want, **options):
            return heard(raw, want, **options)

    bench.pipe = Pipe()
    outcome = phrasing(bench, {("chest", "xray"): judge}, HELD_OUT[:1], draws=3)
    assert [texts for texts, _ in given][2:] == [
        [HELD_OUT[0].affirmed] * 3,
        [HELD_OUT[0].denied] * 3,
    ]
    assert {tuple(seeds) for _, seeds in given} == {(0, 1, 2)}
    assert len(outcome.rows) == 4 and all(r.n == 3 and np.isfinite(r.value) for r in outcome.rows)
