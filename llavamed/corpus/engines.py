"""Who makes the work units: this process, a pool of processes, or a Ray cluster. The bytes are the same.

Units are handed out as workers become free and come back in any order; what depends on their order is done by the
caller, after them. Nothing is sent but the unit's description one way and its tally the other.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from llavamed.corpus.output import Output
from llavamed.corpus.tally import Tally
from llavamed.corpus.unit import Unit, make
from llavamed.errors import InputError

ENGINES = ("local", "ray")


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(units: Sequence[Unit], out: Output, engine: str, workers: int | None) -> Iterator[tuple[Unit, Tally]]:
    """Each unit with its tally, as they are finished. `workers` None: as many as there are processors."""
    if engine == "ray":
        yield from _on_ray(units, out, workers)
    elif engine != "local":
        raise InputError(f"engine {engine!r}: unknown; give one of {', '.join(ENGINES)}")
    elif (count := min(workers or cores(), len(units))) > 1:
        yield from _in_pool(units, out, count)
    else:
        for unit in units:
            yield unit, make(unit, out)


def _in_pool(units: Sequence[Unit], out: Output, workers: int) -> Iterator[tuple[Unit, Tally]]:
    # spawned, not forked: a fork copies the locks of whatever threads the caller has
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        futures = {pool.submit(make, unit, out): unit for unit in units}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BrokenProcessPool:
            raise InputError(
                f"{out.place}: a worker was killed, as when memory runs out; run it again with fewer --workers than "
                f"{workers}: what is finished is kept"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing beside the one that resumes."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_ray(units: Sequence[Unit], out: Output, workers: int | None) -> Iterator[tuple[Unit, Tally]]:
    try:
        import ray
    except ImportError:
        raise InputError("engine 'ray': Ray is not installed; pip install 'llavamed[ray]'") from None
    ours = not ray.is_initialized()
    if ours:  # RAY_ADDRESS names a cluster; without it Ray starts on this machine
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or cores(), "include_dashboard": False}
        ray.init(log_to_driver=False, **local)
    task = ray.remote(max_retries=3)(make)  # a node that dies takes nothing with it: units are idempotent
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: dict[Any, Unit] = {}
    left = iter(units)
    try:
        while True:
            while len(waiting) < most and (unit := next(left, None)) is not None:
                waiting[task.remote(unit, out)] = unit
            if not waiting:
                break
            done, _ = ray.wait(list(waiting))
            for one in done:
                yield waiting.pop(one), ray.get(one)
    finally:
        if ours:
            ray.shutdown()
