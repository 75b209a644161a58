"""Where the work of a preparation is done: in other processes of this machine, by joblib, or on a
Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, TypeVar

from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from medm2g_core.data.sources.base import SourceError

__all__ = ["on_cluster", "on_this_machine"]

Task = TypeVar("Task")

WAIT_S = 60
"""So long a cluster is waited for until its first worker is there."""


def on_this_machine(
    work: Callable[[Task], dict[str, Any]], tasks: Sequence[Task], workers: int | None
) -> Iterator[dict[str, Any]]:
    """The results of ``work``, in the order in which processes of this machine finish them.

    joblib's processes are started afresh on every system (as ``spawn`` does), and need no ``if
    __name__ == "__main__":`` in the caller's script.

    Args:
        workers: processes, at least 1; ``None`` takes one a processor.

    Raises:
        SourceError: a process was killed.
    """
    pool = Parallel(
        n_jobs=min(cpu_count() if workers is None else workers, len(tasks)),
        backend="loky",
        return_as="generator_unordered",
        batch_size=1,
        max_nbytes=None,
    )
    try:
        yield from pool(delayed(work)(task) for task in tasks)
    except TerminatedWorkerError as error:
        raise SourceError(
            "a worker process was killed, most often for want of memory; start again with fewer"
            f" --workers, finished shards are kept ({error})"
        ) from error
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def on_cluster(
    work: Callable[[Task], dict[str, Any]], tasks: Sequence[Task], scheduler: str
) -> Iterator[dict[str, Any]]:
    """The results of ``work``, in the order in which the workers of a Dask cluster finish them.

    The work of a worker that is lost is given to another one; a cluster that has lost all of them
    is waited for, until new ones join it. Every worker must have this package, and must see the
    data set and the folder of the shards under the same paths.

    Dask is asked itself and not through joblib, whose Dask backend (1.6) waits for ever when a task
    has cost too many workers their life: it hands on what a task raises, and not what the
    scheduler says of it.

    Args:
        scheduler: its address, such as ``tcp://10.0.0.1:8786``.

    Raises:
        SourceError: Dask is not installed, no scheduler or worker answers, or one task has cost
            several workers their life.
    """
    try:
        dask = import_module("distributed")  # an extra
    except ImportError as error:
        raise SourceError(
            "a cluster needs the package distributed: pip install 'medm2g-core[cluster]'"
        ) from error
    try:
        client = dask.Client(scheduler, timeout=WAIT_S)
    except (OSError, ValueError) as error:
        raise SourceError(f"{scheduler}: no Dask scheduler answers there ({error})") from error
    try:
        client.wait_for_workers(1, timeout=WAIT_S)
        for future in dask.as_completed(client.map(work, tasks, pure=False)):
            yield future.result()
    except dask.scheduler.KilledWorker as error:
        raise SourceError(
            "several workers of the cluster died at one shard, most often for want of memory; start"
            f" again with larger workers, finished shards are kept ({error})"
        ) from error
    except TimeoutError as error:
        raise SourceError(f"{scheduler}: the cluster has no worker ({error})") from error
    finally:
        client.close()
