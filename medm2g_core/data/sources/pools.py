"""Where the work of a preparation is done: in this process, in others of this machine, or on a
cluster, by joblib."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from joblib import Parallel, cpu_count, delayed, parallel_config
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

    Args:
        scheduler: its address, such as ``tcp://10.0.0.1:8786``.

    Raises:
        SourceError: Dask is not installed, no scheduler or worker answers, or one task has cost
            several workers their life.
    """
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise SourceError(
            "a cluster needs the package distributed: pip install 'medm2g-core[cluster]'"
        ) from error
    try:
        client = Client(scheduler, timeout=WAIT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SourceError(f"{scheduler}: no Dask scheduler answers there ({error})") from error
    try:
        with parallel_config(backend="dask", client=client, wait_for_workers_timeout=WAIT_S):
            pool = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
            yield from pool(delayed(work)(task) for task in tasks)
    except KilledWorker as error:
        raise SourceError(
            "several workers of the cluster died at one shard, most often for want of memory; start"
            f" again with larger workers, finished shards are kept ({error})"
        ) from error
    except TimeoutError as error:
        raise SourceError(f"{scheduler}: the cluster has no worker ({error})") from error
    finally:
        client.close()
