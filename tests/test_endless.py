"""Patients that are drawn while a model trains."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from medm2g_core.data.cohort import VirtualCohort, cache_plan
from medm2g_core.data.study_cache import SHARD, StudyRecord, cached, extend_cache
from medm2g_core.data.wheels import cache_dir as default_cache_dir
from medm2g_core.profiles import profile
from medm2g_core.training.data import EmbeddedData
from medm2g_core.training.endless import EndlessPatients, studies_there


@pytest.fixture
def quick(monkeypatch, tmp_path) -> Path:
    """A cache of its own, and studies that are copies of one: drawing 64 of them takes a minute."""
    first = VirtualCohort("train", "brain", 1)._records[0]
    monkeypatch.setenv("MEDM2G_DATA", str(tmp_path))
    monkeypatch.setattr(
        "medm2g_core.data.study_cache._render",
        lambda task: StudyRecord(first.images, first.facts | {"index": task.index}),
    )
    monkeypatch.setattr("medm2g_core.data.study_cache._warm", lambda region, size: None)
    return tmp_path


def test_what_was_drawn_in_the_background_is_what_the_cohort_reads(quick):
    folder, tasks = cache_plan("train", "brain", 2 * SHARD)
    assert cached(folder) == 0
    extend_cache(folder, tasks, 0, lambda: True)
    assert cached(folder) == 2 * SHARD == studies_there("brain")
    records = VirtualCohort("train", "brain", 2 * SHARD, workers=0)._records
    assert [r.facts["index"] for r in records] == list(range(2 * SHARD))


def test_drawing_ends_between_two_shards_when_it_is_told_to(quick):
    folder, tasks = cache_plan("train", "brain", 3 * SHARD)
    asked = iter([True, False])
    extend_cache(folder, tasks, 0, lambda: next(asked))
    assert cached(folder) == SHARD


def test_a_shard_that_is_missing_in_the_middle_ends_what_counts_as_drawn(quick):
    folder, tasks = cache_plan("train", "brain", 3 * SHARD)
    extend_cache(folder, tasks, 0, lambda: True)
    (folder / "00001.safetensors").unlink()
    assert cached(folder) == SHARD


def test_a_part_of_a_shard_counts_as_what_it_holds_and_is_completed(quick):
    """A cohort of a few studies leaves one."""
    VirtualCohort("train", "brain", 10, workers=0)
    folder, tasks = cache_plan("train", "brain", 2 * SHARD)
    assert cached(folder) == 10
    extend_cache(folder, tasks, 0, lambda: True)
    assert cached(folder) == 2 * SHARD


def test_a_stage_takes_up_what_was_drawn_since_and_no_more(quick):
    small = profile("smoke").replace(data={"chest_train": 4, "brain_train": 8})
    data, fixed = EmbeddedData(small, endless=True), EmbeddedData(small)
    assert not data.grow()
    folder, tasks = cache_plan("train", "brain", SHARD)
    extend_cache(folder, tasks, 0, lambda: True)
    assert data.grow() and data.profile.data.brain_train == SHARD
    assert data.profile.data.chest_train == 4
    assert not data.grow(), "nothing new"
    assert not fixed.grow() and fixed.profile.data.brain_train == 8


NONE = {"chest": 0, "brain": 0}


def test_with_nothing_to_draw_the_processes_end_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDM2G_DATA", str(tmp_path))
    with EndlessPatients(NONE, 2, val=NONE) as patients:
        assert [process.wait(60) for process in patients._processes] == [0, 0]


def test_after_closing_nothing_draws_any_more(tmp_path, monkeypatch):
    """Neither the processes nor those that they started."""
    atlas = default_cache_dir()
    monkeypatch.setenv("MEDM2G_DATA", str(tmp_path))
    for file in atlas.glob("*_atlas*.npz"):
        (tmp_path / file.name).symlink_to(file)
    endless = EndlessPatients({"chest": 0, "brain": 1000}, 6, val=NONE)
    draws = psutil.Process(endless._processes[1].pid)
    until = time.monotonic() + 60
    while not draws.children(recursive=True) and time.monotonic() < until:
        time.sleep(0.1)
    started = draws.children(recursive=True)
    assert started, "it draws in processes of its own"
    endless.close()
    gone, alive = psutil.wait_procs([draws, *started], timeout=20)
    assert not alive and len(gone) == 1 + len(started)


def test_a_process_that_failed_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDM2G_DATA", str(tmp_path))
    patients = EndlessPatients({"chest": 1, "brain": 0}, 2, val=NONE, persons=["nobody"])
    for process in patients._processes:
        process.wait(60)
    with pytest.warns(UserWarning, match="no new patients"):
        patients.close()
