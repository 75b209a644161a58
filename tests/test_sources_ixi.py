"""IXI from a replica of its tree, with the faults of the real files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from replicas import ixi
from replicas.checks import marker, named, no_subject_twice, well_formed
from replicas.volumes import truncate

from medm2g_core.data.sources.base import SourceDataset, SourceStudy
from medm2g_core.data.sources.ixi import IXI


@pytest.fixture(scope="module")
def london(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ixi.write_ixi(tmp_path_factory.mktemp("ixi"))


@pytest.fixture(scope="module")
def registered(london: Path) -> SourceStudy:
    return named(SourceDataset(IXI(), london, size=48), "IXI002_s020")


@pytest.fixture(scope="module")
def unregistered(london: Path) -> SourceStudy:
    return named(SourceDataset(IXI(register=False), london, size=48), "IXI002_s020")


def block(image: torch.Tensor) -> np.ndarray:
    """(row, column) of the middle of the bright block."""
    return torch.nonzero(image[0] > 0.85).float().mean(0).numpy()


def test_ixi_keeps_people_with_all_three_contrasts(london: Path) -> None:
    found = IXI().scan(london)
    assert [e.id for e in found.entries] == ["IXI002", "IXI012", "IXI035"]
    assert {s.where: s.why for s in found.skips if s.kind == "incomplete"} == {
        "IXI116": "no mri_t2, mri_pd",
        "IXI580": "no mri_t1",
    }
    no_subject_twice(SourceDataset(IXI(), london))


def test_ixi014_with_thick_t2_slices_is_left_out_by_its_shape_with_the_reason(london: Path) -> None:
    (skip,) = (s for s in IXI().scan(london).skips if s.kind == "another protocol")
    assert (
        skip.where == "IXI014-HH-1236-T2.nii.gz"
        and "40 x 40 x 28 voxels, slices 5.0 mm apart" in skip.why
    )


def test_ixi_sagittal_t1_is_shown_in_axial_radiological_slices(registered: SourceStudy) -> None:
    well_formed(registered, 48)
    assert registered.streams == ("mri_t1", "mri_t2", "mri_pd")
    assert marker(registered.images["mri_t1"]) == "upper right"
    assert (
        registered.orientation == "radiological axial"
        and registered.spacing_mm == pytest.approx((3.75, 3.75))
    )
    front = registered.images["mri_t1"][0, :, 24] > -0.5
    assert front.sum() * 3.75 == pytest.approx(152, abs=12)  # the head is 152 mm from front to back


def test_ixi_t2_and_pd_are_registered_to_t1(
    registered: SourceStudy, unregistered: SourceStudy
) -> None:
    target = block(registered.images["mri_t1"])
    for name in ("mri_t2", "mri_pd"):
        moved, stale = (
            np.linalg.norm(block(s.images[name]) - target) * 3.75
            for s in (registered, unregistered)
        )
        assert moved < 5 < 10 < stale, name  # the replica moved by 18 mm; T1's voxels are 5 mm
    assert any("mri_t2 registered to T1" in n for n in registered.notes)
    assert any("mri_pd brought to T1 by the transform of T2" in n for n in registered.notes)


def test_ixi_without_registration_is_marked_in_the_table_and_in_every_study(
    london: Path, unregistered: SourceStudy
) -> None:
    assert (
        "surprising  registration to T1: found off"
        in SourceDataset(IXI(register=False), london).report()
    )
    assert sum("is not registered to T1" in n for n in unregistered.notes) == 2
    assert "registration to T1" not in SourceDataset(IXI(), london).report()


def test_ixi_pairs_by_place_and_never_by_slice_number(
    unregistered: SourceStudy, tmp_path: Path
) -> None:
    for name in ("IXI002-Guys-0828", "IXI003-Guys-0829", "IXI004-Guys-0830"):
        ixi.write_person(tmp_path, name, shift=(0, 0, 0))
    data = SourceDataset(IXI(register=False), tmp_path, size=48)
    assert {e.index for e in data.entries} == set(
        range(8, 32)
    )  # T1's slices within the 119 mm that T2 covers
    still = data[12]  # slice 20 of T1, 2.5 mm below the middle; number 20 of T2 is another place
    for name in ("mri_t2", "mri_pd"):
        assert np.linalg.norm(block(still.images[name]) - block(still.images["mri_t1"])) * 3.75 < 5


def test_ixi_gives_the_middle_slices(london: Path) -> None:
    few = SourceDataset(IXI(count=10), london)
    assert [e.index for e in few.entries if e.subject == "IXI002"] == list(range(15, 25))


def test_ixi_table_is_joined_by_id_and_contradicting_rows_are_unknown(london: Path) -> None:
    found = IXI().scan(london)
    people = {e.id: e for e in found.entries}
    assert (people["IXI002"].age, people["IXI002"].sex) == (35, "female")
    assert (people["IXI012"].age, people["IXI012"].sex) == (38, "")  # two rows of another sex
    assert (people["IXI035"].age, people["IXI035"].sex) == (None, "male")
    assert [s.where for s in found.skips if s.kind == "contradicting age or sex"] == ["IXI012"]


def test_ixi_needs_no_table_and_says_when_only_the_xls_is_there(
    london: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(london, tmp_path / "copy")
    (root / "IXI.csv").unlink()
    assert "ok          table of ages and sexes: found none" in SourceDataset(IXI(), root).report()
    (root / "IXI.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    data = SourceDataset(IXI(), root)
    assert "export it as IXI.csv" in data.report() and data.entries[0].age is None


def test_ixi_corrupt_volume_is_counted_and_the_rest_loads(london: Path, tmp_path: Path) -> None:
    root = shutil.copytree(london, tmp_path / "copy")
    truncate(root / "IXI-PD" / "IXI002-Guys-0828-PD.nii.gz")
    (root / "IXI-T2" / "IXI012-HH-1211-T2.nii.gz").write_bytes(b"not a volume")
    data = SourceDataset(IXI(register=False, count=2), root, size=24)
    assert {s.subject for s in data.studies()} == {"IXI035"}
    kinds = sorted(s.kind for s in data.skipped)
    assert kinds.count("unreadable file") == 2 and kinds.count("unreadable volume") == 1


@pytest.mark.parametrize("separator", [";", "\t"])
def test_ixi_table_of_a_spreadsheet_with_decimal_commas_is_joined(
    london: Path, tmp_path: Path, separator: str
) -> None:
    root = shutil.copytree(london, tmp_path / "copy")
    (root / "IXI.csv").write_text(
        separator.join(("IXI_ID", '"SEX_ID (1=m, 2=f)"', "AGE\n"))
        + separator.join(("2", "2", "35,80\n"))
        + separator.join(("IXI012", "1", "38,78\n"))
    )
    data = SourceDataset(IXI(), root)
    people = {e.subject: (e.age, e.sex) for e in data.entries}
    assert people["IXI002"] == (35, "female") and people["IXI012"] == (38, "male")
    assert "ok          people with age or sex: found 2" in data.report()


def test_ixi_table_that_joins_nobody_is_said(london: Path, tmp_path: Path) -> None:
    root = shutil.copytree(london, tmp_path / "copy")
    (root / "IXI.csv").write_text("id,age\n2,35\n")
    report = SourceDataset(IXI(), root).report()
    assert "surprising  people with age or sex: found 0 (no row of the table is joined" in report


@pytest.mark.parametrize("inner", ["IXI002-Guys-0828-{}.nii", "volume.nii"])
def test_ixi_folders_that_are_called_like_volumes_are_read(tmp_path: Path, inner: str) -> None:
    ixi.write_person(tmp_path / "made", "IXI002-Guys-0828")
    for path in sorted((tmp_path / "made").rglob("*.nii.gz")):
        contrast = path.parent.name[-2:]
        folder = tmp_path / "kaggle" / path.parent.name / path.name.removesuffix(".gz")
        folder.mkdir(parents=True)
        path.rename(folder / inner.format(contrast))
    (entry,) = IXI().scan(tmp_path / "kaggle").entries
    assert entry.id == "IXI002" and entry.extra["site"] == "Guys"
    assert all(p.is_file() for p in entry.files.values())


def test_ixi_volume_that_is_there_twice_is_counted(london: Path, tmp_path: Path) -> None:
    root = shutil.copytree(london, tmp_path / "copy")
    shutil.copytree(root / "IXI-T1", root / "again" / "IXI-T1")
    found = IXI().scan(root)
    assert len(found.entries) == 3 and found.counts()["second copy"] == 5
