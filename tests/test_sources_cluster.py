"""Preparation on a Dask cluster of processes of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from replicas.dots import Dots, prepare, write_dots

from medm2g_core.data.sources.base import SourceError

TESTS = Path(__file__).parent
START_S = 120  # a busy machine takes long to start a few Pythons


def content(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if not p.name.startswith(".")}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[[int], str]]:
    """Starts a scheduler and two workers without nurses; gives the scheduler's address.

    The argument is the number of workers that one task may kill.
    """
    distributed = pytest.importorskip(
        "distributed", reason="Dask is not installed; only --scheduler needs it"
    )
    running: list[subprocess.Popen[bytes]] = []

    def start(*words: str, failures: int) -> None:
        variables = {
            "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)]),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(failures),
        }
        with (tmp_path / f"{len(running)}.log").open("wb") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", *words],
                    env=os.environ | variables,
                    stdout=log,
                    stderr=log,
                    cwd=tmp_path,
                )
            )

    def start_all(failures: int) -> str:
        place = tmp_path / "scheduler.json"
        common = ("--no-dashboard", "--scheduler-file", str(place))
        here = ("--host", "127.0.0.1", "--port", "0")
        start("distributed.cli.dask_scheduler", *here, *common, failures=failures)
        until = time.monotonic() + START_S
        while not (place.is_file() and place.stat().st_size):
            assert time.monotonic() < until, (tmp_path / "0.log").read_text()
            time.sleep(0.2)
        own = ("--no-nanny", "--nthreads", "1", "--local-directory", str(tmp_path))
        for _ in range(2):
            start("distributed.cli.dask_worker", *common, *own, failures=failures)
        address = json.loads(place.read_text())["address"]
        with distributed.Client(address, timeout=START_S, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=START_S)
        return str(address)

    yield start_all
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_gives_the_bytes_of_this_process(
    tmp_path: Path, cluster: Callable[[int], str]
) -> None:
    tree = write_dots(tmp_path / "tree")
    prepare(tree, tmp_path / "straight")
    marker = tmp_path / "died"
    source = Dots(dies_at="dot.015/a", dies_once=marker)
    prepare(tree, tmp_path / "out", source=source, scheduler=cluster(3))
    assert marker.exists()
    assert content(tmp_path / "out") == content(tmp_path / "straight")


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_is_an_error_that_says_what_to_do(
    tmp_path: Path, cluster: Callable[[int], str]
) -> None:
    tree = write_dots(tmp_path / "tree")
    with pytest.raises(SourceError, match="larger workers, finished shards are kept"):
        prepare(tree, tmp_path / "out", source=Dots(dies_at="dot.015/a"), scheduler=cluster(0))


def test_an_address_where_nothing_answers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="Dask is not installed; only --scheduler needs it")
    monkeypatch.setattr("medm2g_core.data.sources.pools.WAIT_S", 2)
    tree = write_dots(tmp_path / "tree", 3, 1)
    with pytest.raises(SourceError, match="no Dask scheduler answers"):
        prepare(tree, tmp_path / "out", scheduler="tcp://127.0.0.1:1")


def test_without_dask_a_cluster_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    tree = write_dots(tmp_path / "tree", 3, 1)
    with pytest.raises(SourceError, match=r"pip install 'medm2g-core\[cluster\]'"):
        prepare(tree, tmp_path / "out", scheduler="tcp://127.0.0.1:1")
