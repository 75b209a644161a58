"""Questions of more than one drawing: what is shared, what is changed, and where a draw looked."""

from __future__ import annotations

import pytest
import torch
from explore_helpers import SENTENCE, SIZE, patient, quiet

from medm2g_core.explore.compare import counterfactual, sweep, walk
from medm2g_core.explore.drawing import Settings, draw
from medm2g_core.explore.given import from_patient, typed
from medm2g_core.explore.inside import draw_and_record, gate_map, looked_at, overlay
from medm2g_core.model import MedM2G
from medm2g_core.show.record import Look, Tape
from medm2g_core.streams import StreamError

OTHER = "Findings: There is a large right pneumothorax."


def test_a_counterfactual_that_changes_nothing_differs_nowhere(model: MedM2G) -> None:
    pipe, asked = quiet(model), Settings(want=("xray", "ct"), seed=7, steps=2, draws=2)
    same = counterfactual(pipe, [typed(SENTENCE)], [typed(SENTENCE)], asked)
    assert not any(same.difference(n).any() for n in ("xray", "ct"))
    other = counterfactual(pipe, [typed(SENTENCE)], [typed(OTHER)], asked)
    assert other.difference("xray").shape == (2, 1, SIZE, SIZE) and other.difference("xray").any()
    deaf = Settings(seed=7, steps=2, guidance=0.0)  # the words are not heard: the noise is left
    assert (
        not counterfactual(pipe, [typed(SENTENCE)], [typed(OTHER)], deaf).difference("xray").any()
    )


def test_a_sweep_draws_every_pair_of_values(model: MedM2G) -> None:
    grid = sweep(quiet(model), [typed(SENTENCE)], Settings(), steps=(1, 2), guidance=(1.0, 3.0))
    assert list(grid) == [(1, 1.0), (1, 3.0), (2, 1.0), (2, 3.0)]
    assert [d.settings.steps for d in grid.values()] == [1, 1, 2, 2]
    alone = draw(quiet(model), [typed(SENTENCE)], Settings(steps=2, guidance=3.0))
    assert torch.equal(grid[2, 3.0].images()["xray"], alone.images()["xray"])
    with pytest.raises(ValueError, match="steps"):
        sweep(quiet(model), [], Settings(), steps=(1, 0))


def test_a_walk_begins_at_one_prompt_and_ends_at_the_other(model: MedM2G) -> None:
    pipe, asked = quiet(model), Settings(steps=2, draws=2)
    a, b = [typed(SENTENCE)], [typed(OTHER)]
    there = walk(pipe, a, b, asked)["xray"]
    assert there.shape == (5, 2, 1, SIZE, SIZE)
    back = walk(pipe, b, a, asked)["xray"]
    torch.testing.assert_close(there, back.flip(0), atol=1e-4, rtol=1e-4)
    stay = walk(pipe, a, a, asked, (0.0, 0.3, 1.0))["xray"]
    torch.testing.assert_close(stay[0], stay[2])
    torch.testing.assert_close(stay[0], there[0])
    with pytest.raises(StreamError, match="both ends"):
        walk(pipe, a, [], asked)
    with pytest.raises(StreamError, match="xray"):
        walk(pipe, a, [from_patient(patient(), "xray", SIZE)], asked)


def test_the_looks_of_a_place_are_those_of_its_own_row() -> None:
    weights = torch.zeros(1, 1, 16, 64)
    weights[0, 0, 4 * 2 + 3, 8 * 5 + 6] = 1  # cell (2, 3) of 4 x 4 looks at token (5, 6) of 8 x 8
    weights[0, 0, 0] = 1 / 64
    tape = Tape([Look("mri_t2", "middle", "ct", 0.5, weights, torch.ones(1, 16), (4, 4), (8, 8))])
    (gaze,) = looked_at(tape, "mri_t2", "ct", (0.6, 0.8))
    assert gaze.cell == (2, 3) and gaze.heat[5, 6] == 1 and gaze.near == 1
    (even,) = looked_at(tape, "mri_t2", "ct", (0.0, 0.0))
    assert even.near == pytest.approx(even.chance) == pytest.approx(4 / 64)
    with pytest.raises(ValueError, match="0 to 1"):
        looked_at(tape, "mri_t2", "ct", (1.2, 0))
    with pytest.raises(ValueError, match="never looked"):
        looked_at(tape, "mri_t2", "xray", (0, 0))


def test_recording_changes_nothing_of_what_is_drawn(model: MedM2G) -> None:
    pipe, given = quiet(model), [from_patient(patient(), "ct", SIZE)]
    asked = Settings(want=("mri_t2",), steps=1)
    drawn, tape = draw_and_record(pipe, given, asked)
    assert torch.equal(drawn.images()["mri_t2"], draw(pipe, given, asked).images()["mri_t2"])
    gazes = looked_at(tape, "mri_t2", "ct", (0.5, 0.5))
    assert gazes and all(g.heat.sum().item() == pytest.approx(1, abs=1e-3) for g in gazes)


def test_heat_glows_where_it_is_strongest() -> None:
    heat = torch.zeros(4, 4)
    heat[0, 3] = 1.0
    shown = overlay(torch.full((1, 32, 32), -1.0), heat)
    assert shown.shape == (32, 32, 3) and shown[:8, 24:].max() > 100 and not shown[16:].any()


def test_the_map_of_gates_has_a_row_for_every_pair_that_can_meet(model: MedM2G) -> None:
    axes = gate_map(model).axes[0]
    rows = [t.get_text() for t in axes.get_yticklabels()]
    assert "mri hears ct" in rows and "text hears text" not in rows
