"""Choosing a slice of a volume by looking: sides are right, and what is chosen is what is taken."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets
import nibabel as nib
import numpy as np
import pytest
import torch
from explore_helpers import SIZE, body_ct, quiet
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from replicas.files import SPACING, chest, lpi_affine, save_nifti, save_series

from medm2g_core.data.export import write_stream
from medm2g_core.data.files import FileError, read_stream, read_volume
from medm2g_core.data.volumes import PLANES, Volume
from medm2g_core.explore import viewer_box, viewing
from medm2g_core.explore.given import scan_file
from medm2g_core.explore.panel import ExplorerPanel
from medm2g_core.explore.viewer_box import MISSING, TAKEN_PLANES, TOO_LARGE
from medm2g_core.explore.viewing import View, view_of
from medm2g_core.model import MedM2G
from medm2g_core.streams import CT_WINDOW_HU

TURNED = ["LPI", "RAS", "LAS", "PSR", "SLA", "AIL"]
"""How the axes of a file may run: all mirrored, none, one, and permuted with each mirrored."""

PLACES = [(3, 50, 9), (30, 11, 60), (0, 63, 0)]
"""Slice numbers far from each other and from the middle: axial, coronal, sagittal."""


def _scan() -> np.ndarray:
    """A chest of which no two slices are alike."""
    return chest() + np.random.default_rng(0).normal(0, 8, (40, 64, 64)).astype(np.float32)


def _turned(path: Path, codes: str) -> Path:
    image = nib.Nifti1Image(_scan().transpose(2, 1, 0), lpi_affine(SPACING))
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(codes)))
    nib.save(image.as_reoriented(turn), path)
    return path


def _seen(view: View) -> Any:
    return nib.Nifti1Image.from_bytes(view.nifti)


def _grey(hu: np.ndarray) -> np.ndarray:
    low, high = CT_WINDOW_HU
    return np.rint(np.clip((hu - low) / (high - low), 0, 1) * 255)


def _lowest_mm(image: Any) -> np.ndarray:
    """The smallest x, y and z that voxels of an image have, in RAS+ millimetres."""
    last = np.array(image.shape) - 1
    ends = [(image.affine @ [*(last * corner), 1])[:3] for corner in np.ndindex(2, 2, 2)]
    return np.min(ends, axis=0)


# --- what the viewer is given


@pytest.mark.parametrize("codes", TURNED)
def test_left_is_left_however_the_axes_of_the_file_run(tmp_path: Path, codes: str) -> None:
    path = _turned(tmp_path / "a.nii", codes)
    file, seen = nib.Nifti1Image.from_filename(path), _seen(view_of(read_volume(path, "ct"), "ct"))
    assert "".join(nib.aff2axcodes(file.affine)) == codes
    voxels = np.array(list(np.ndindex(*seen.shape)))[::991]
    mm = voxels @ seen.affine[:3, :3].T + seen.affine[:3, 3]
    mm += _lowest_mm(file) - _lowest_mm(seen)  # the viewer's zero is its own
    back = np.linalg.inv(file.affine)
    there = np.rint(mm @ back[:3, :3].T + back[:3, 3]).astype(int)
    values = file.get_fdata()[tuple(there.T)]
    np.testing.assert_allclose(seen.get_fdata()[tuple(voxels.T)], _grey(values), atol=1)
    assert np.ptp(values) > 1000, "air, lung and body are among them"


@pytest.mark.parametrize(("codes", "place"), [*zip(TURNED, PLACES * 2, strict=True)])
def test_the_slices_that_meet_at_the_cross_hair_are_those_that_the_reader_takes(
    tmp_path: Path, codes: str, place: tuple[int, int, int]
) -> None:
    scan = scan_file(_turned(tmp_path / "a.nii", codes), "ct")
    view = view_of(scan.volume, "ct")
    seen = _seen(view)
    voxel = [round(f * n - 0.5) for f, n in zip(view.fraction(place), seen.shape, strict=True)]
    mm = (seen.affine @ [*voxel, 1])[:3]
    assert view.place(mm) == place
    for axis in range(3):  # as nibabel has the viewer's three planes through this voxel
        shown = np.take(seen.get_fdata(), voxel[2 - axis], axis=2 - axis)[::-1, ::-1].T
        taken = np.take(_scan(), place[axis], axis=axis)
        np.testing.assert_allclose(shown, _grey(taken), atol=1)
    straight = save_nifti(tmp_path / "b.nii", _scan())
    for plane in TAKEN_PLANES:
        number = place[PLANES.index(plane)]
        try:
            expected = read_stream(straight, "ct", size=SIZE, plane=plane, index=number)
        except FileError as error:  # such as a slice of nothing but air
            with pytest.raises(FileError) as refused:
                scan.slice(SIZE, plane=plane, index=number)
            assert str(refused.value).split(": ")[1:] == str(error).split(": ")[1:]
            continue
        given = scan.slice(SIZE, plane=plane, index=number)
        assert (given.plane, given.index) == (plane, number)
        assert torch.equal(given.value, expected.image)  # type: ignore[arg-type]


def test_a_large_volume_is_thinned_to_slices_that_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewing, "MAX_SHOWN_VOXELS", 20_000)
    view = view_of(read_volume(save_nifti(tmp_path / "a.nii", _scan()), "ct"), "ct")
    seen = _seen(view)
    assert 10_000 < seen.get_fdata().size <= 20_000 and max(view.steps) > 1
    assert "not every slice" in view.words((0, 0, 0))
    for place in ((0, 0, 0), (39, 63, 63), (17, 31, 8)):
        fraction = view.fraction(place)
        voxel = [f * n - 0.5 for f, n in zip(fraction, seen.shape, strict=True)]
        assert voxel == pytest.approx(np.rint(voxel)), "the middle of a voxel"
        shown = view.place((seen.affine @ [*voxel, 1])[:3])
        assert all(abs(s - p) < n for s, p, n in zip(shown, place, view.steps, strict=True))
        grey = seen.get_fdata()[tuple(np.rint(voxel).astype(int))]
        assert grey == pytest.approx(_grey(_scan()[shown]), abs=1)
    outside = [view.place((x, x, x)) for x in (1e4, -1e4)]
    assert outside[0] == (0, 0, 0) and view.has(outside[1])
    assert not view.has((40, 0, 0)) and not view.has((0, -1, 0))


def test_the_viewer_is_told_grey_values_and_nothing_of_whose_they_are(tmp_path: Path) -> None:
    folder = save_series(
        tmp_path / "DOE", _scan(), PatientName="DOE^JANE", PatientID="4711", StudyDate="19610704"
    )
    volume = read_volume(folder, "ct")
    named = replace(volume, facts={**volume.facts, "FileName": "DOE.dcm"}, notes=["DOE"])
    content = view_of(named, "ct").nifti
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(content))
    assert len(content) == 352 + volume.array.size, "a header, and a byte a voxel"
    for name in ("descrip", "db_name", "aux_file", "intent_name"):
        assert bytes(header[name]).strip(b"\0") == b""
    assert not any(word in content for word in (b"DOE", b"4711", b"19610704"))


def test_an_mr_is_shown_from_dark_to_bright_and_unknown_spacing_as_one() -> None:
    values = np.random.default_rng(1).gamma(2, 200, (20, 24, 28)).astype(np.float32)
    volume = Volume(values, (float("nan"), 2.0, 2.0), "dicom")
    view, inverted = (view_of(replace(volume, inverted=i), "mri_t2") for i in (False, True))
    assert view.spacing_mm == (1.0, 2.0, 2.0)
    grey = _seen(view).get_fdata()
    assert grey.min() == 0 and grey.max() == 255 and 20 < np.median(grey) < 160
    assert (_seen(inverted).get_fdata() == 255 - grey).mean() > 0.99


# --- in the panel


class _StandIn(ipywidgets.Label):
    """Of NiiVue: keeps what it is told, and can be moved."""

    def __init__(self) -> None:
        super().__init__()
        self.volumes: list[Any] = []
        self.scene = SimpleNamespace(crosshair_pos=None)

    def load_volumes(self, volumes: list[dict]) -> None:
        self.volumes = [SimpleNamespace(**v, close=lambda: None) for v in volumes]

    def on_location_change(self, hear: Any) -> None:
        self.hear = hear

    def move(self, view: View, place: tuple[int, int, int]) -> None:
        fractions = view.fraction(place)
        seen = _seen(view)
        voxel = [f * n - 0.5 for f, n in zip(fractions, seen.shape, strict=True)]
        self.hear({"mm": [*(seen.affine @ [*voxel, 1])]})


@pytest.fixture
def panel(model: MedM2G, monkeypatch: pytest.MonkeyPatch) -> ExplorerPanel:
    monkeypatch.setattr(viewer_box, "_has_viewer", lambda: True)
    monkeypatch.setattr(viewer_box, "_new_viewer", _StandIn)
    made = ExplorerPanel(quiet(model))
    made.kind.value = "ct"
    return made


def _upload(panel: ExplorerPanel, path: Path) -> None:
    content = memoryview(path.read_bytes())
    file = {"name": "DOE.nii", "type": "", "size": len(content), "content": content}
    panel.upload.set_trait("value", ({**file, "last_modified": datetime.now()},))


def test_number_and_cross_hair_follow_each_other_and_one_press_takes_the_slice(
    panel: ExplorerPanel, tmp_path: Path
) -> None:
    path = save_nifti(tmp_path / "DOE.nii", _scan())
    _upload(panel, path)
    box, given = panel.viewer, panel.state.own["ct"]
    assert given.plane == "coronal" and box.place is not None and box.view is not None
    assert box.place[1] == given.index and panel.slice.value == ""
    box.viewer.move(box.view, (30, 20, 10))
    assert (panel.plane.value, panel.slice.value) == ("coronal", "20"), "the plane that was shown"
    assert "axial 30 of 40, coronal 20 of 64, sagittal 10 of 64" in box.words.value
    panel.plane.value = "axial"
    assert panel.slice.value == "30" and box.place == (30, 20, 10), "another plane, the same place"
    panel.slice.value = "33"
    assert box.place == (33, 20, 10)
    assert box.viewer.scene.crosshair_pos == list(box.view.fraction((33, 20, 10)))
    assert box.buttons["axial"].description == "Take axial slice 33"
    box.buttons["axial"].click()
    taken = panel.state.own["ct"]
    expected = read_stream(path, "ct", size=SIZE, plane="axial", index=33).image
    assert torch.equal(taken.value, expected)  # type: ignore[arg-type]
    assert "axial slice 33 of 40" in panel.file_notes.value
    panel.slice.value = "40"
    assert box.place == (33, 20, 10), "no such slice: nowhere to go"
    assert "DOE" not in repr(panel.state.scan) + panel.file_notes.value + box.words.value


def test_a_number_chosen_in_one_volume_is_not_asked_of_the_next(
    panel: ExplorerPanel, tmp_path: Path
) -> None:
    large, small = (save_nifti(tmp_path / f"{n}.nii", _scan()[:n]) for n in (40, 30))
    _upload(panel, large)
    assert panel.viewer.view is not None
    panel.viewer.viewer.move(panel.viewer.view, (38, 20, 10))
    panel.viewer.buttons["axial"].click()
    _upload(panel, small)
    assert panel.state.own["ct"].plane == "coronal" and "alert" not in panel.file_notes.value
    panel.plane.value, panel.slice.value = "axial", "29"
    _upload(panel, large)
    assert panel.state.own["ct"].index == 29, "but a typed one is"


def test_forgetting_and_flat_pictures_let_the_volume_go(
    panel: ExplorerPanel, tmp_path: Path
) -> None:
    flat = write_stream(body_ct(), "ct", tmp_path / "flat", formats=["nifti"])[0]
    for let_go in (panel.forget.click, lambda: _upload(panel, flat)):
        _upload(panel, save_nifti(tmp_path / "a.nii", _scan()))
        assert panel.viewer.viewer.volumes and panel.state.scan is not None
        let_go()
        assert not panel.viewer.viewer.volumes and panel.state.scan is None
        assert panel.viewer.place is None and panel.viewer.words.value == ""
        panel.viewer.viewer.hear({"mm": [0, 0, 0]})  # of the browser, too late
        assert panel.viewer.row.layout.display == "none"
    with pytest.raises(FileError, match="give the file again"):
        panel.state.take_slice(plane="axial", index=3)


def test_a_volume_that_is_too_large_to_keep_is_read_and_said_to_be(
    panel: ExplorerPanel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewing, "MAX_KEPT_VOXELS", 1000)
    _upload(panel, save_nifti(tmp_path / "a.nii", _scan()))
    assert "ct" in panel.state.own and panel.state.scan is None
    assert TOO_LARGE in panel.viewer.words.value


def test_without_the_package_a_sentence_says_how_to_get_it_and_numbers_still_work(
    model: MedM2G, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer_box, "_has_viewer", lambda: False)
    panel = ExplorerPanel(quiet(model))
    panel.kind.value, panel.plane.value, panel.slice.value = "ct", "axial", "7"
    _upload(panel, save_nifti(tmp_path / "a.nii", _scan()))
    assert panel.state.own["ct"].index == 7 and panel.state.scan is None
    assert MISSING.replace("'", "&#x27;") in panel.viewer.words.value
