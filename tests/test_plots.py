"""Plots of the notebooks: that they show the values they are given, and refuse what they cannot
show."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch

from medm2g_core.show.plots import curves, grid, matrix, scatter, strip


def test_a_grid_shows_every_picture_with_its_title_in_rows() -> None:
    images = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 1, 8, 8)
    figure = grid(images, [f"p{i}" for i in range(5)], columns=2, limits=(0, 4))
    assert [a.images[0].get_array().max() for a in figure.axes] == [0, 1, 2, 3, 4]
    assert [t.get_text() for t in figure.texts] == [f"p{i}" for i in range(5)]
    tops = [round(a.get_position().y0, 3) for a in figure.axes]
    assert tops[0] == tops[1] > tops[2] == tops[3] > tops[4]


def test_a_strip_is_one_row() -> None:
    figure = strip(torch.zeros(7, 1, 8, 8))
    assert len({round(a.get_position().y0, 3) for a in figure.axes}) == 1


def test_matrices_share_one_scale_and_are_not_blurred() -> None:
    figure = matrix({"a": torch.zeros(3, 3), "b": 2 * torch.eye(3)})
    a, b, _bar = figure.axes
    assert a.images[0].get_clim() == b.images[0].get_clim() == (0, 2)
    assert a.images[0].get_interpolation() == "nearest"


def test_rows_of_a_matrix_are_named_once() -> None:
    a, b, _bar = matrix({"a": torch.eye(2), "b": torch.eye(2)}, rows=["x", "y"]).axes
    assert [t.get_text() for t in a.get_yticklabels()] == ["x", "y"]
    assert [t.get_text() for t in b.get_yticklabels()] == ["", ""]


def test_a_smoothed_line_is_shorter_and_keeps_a_constant() -> None:
    figure = curves({"flat": [3.0] * 10}, xlabel="step", ylabel="loss", smooth=4)
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert np.allclose(line.get_ydata(), 3.0)


def test_curves_take_places_and_a_level() -> None:
    figure = curves(
        {"a": ([0.1, 1.0], [2.0, 1.0])}, xlabel="noise", ylabel="dB", level=("chance", 0.5)
    )
    line, across = figure.axes[0].lines
    assert line.get_xdata().tolist() == [0.1, 1.0] and across.get_ydata()[0] == 0.5
    assert [t.get_text() for t in figure.axes[0].get_legend().texts] == ["a", "chance"]


def test_points_of_one_label_share_a_colour_and_of_one_mark_a_shape() -> None:
    xy = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    figure = scatter(
        xy,
        colour=["a", "b", "a"],
        mark=["m", "m", "n"],
        joined=[(0, 2)],
        xlabel="x",
        ylabel="y",
    )
    groups = [c for c in figure.axes[0].collections if len(c.get_offsets())]
    colours = [tuple(c.get_facecolor()[0]) for c in groups]
    places = [c.get_offsets().tolist() for c in groups]
    assert places == [[[0, 0]], [[2, 0]], [[1, 1]]]
    assert colours[0] == colours[1] != colours[2]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: grid(torch.zeros(2, 1, 4, 4), ["one"]),
        lambda: grid(torch.zeros(2, 1, 4, 4), columns=0),
        lambda: grid([]),
        lambda: matrix({}),
        lambda: matrix({"v": torch.zeros(3)}),
        lambda: curves({}, xlabel="", ylabel=""),
        lambda: curves({"a": ([1.0], [1.0, 2.0])}, xlabel="", ylabel=""),
        lambda: scatter(torch.zeros(2, 3), colour=["a", "b"], xlabel="", ylabel=""),
        lambda: scatter(torch.zeros(2, 2), colour=["a"], xlabel="", ylabel=""),
    ],
)
def test_what_cannot_be_shown_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"needed|places"):
        wrong()


def test_plots_change_no_global_option() -> None:
    before = dict(matplotlib.rcParams)
    curves({"a": [1.0, 2.0]}, xlabel="x", ylabel="y").png()
    assert dict(matplotlib.rcParams) == before
