"""Who does the work: this process, a pool of processes, or a Ray cluster. What comes out is the same.

Pieces of work (units of articles, shards to audit) are handed out as workers become free and come back in any order;
what depends on their order is done by the caller, after them. A worker is told once what to do; after that nothing is
sent but a piece's description one way and what was counted the other.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any, TypeVar

from llavamed.errors import InputError

ENGINES = ("local", "ray")
Piece = TypeVar("Piece")
Result = TypeVar("Result")


# Never forked from this process: a fork copies the locks of whatever threads the caller has. On Linux they are forked
# from a process that does nothing else and has read the modules already; elsewhere each starts from nothing.
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


def prepare(*modules: str) -> None:
    """Where workers will be wanted: let the process that they are forked from import these, while this one goes on."""
    if _METHOD == "forkserver":
        forkserver.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    work: Callable[[Piece], Result], pieces: Sequence[Piece], engine: str, workers: int | None, where: str
) -> Iterator[tuple[Piece, Result]]:
    """Each piece with what `work` made of it, as they are finished. `workers` None: as many as there are processors;
    `where` names the place in errors."""
    if engine == "ray":
        yield from _on_ray(work, pieces, workers)
    elif engine != "local":
        raise InputError(f"engine {engine!r}: unknown; give one of {', '.join(ENGINES)}")
    elif (count := min(workers or cores(), len(pieces))) > 1:
        yield from _in_pool(work, pieces, count, where)
    else:
        for piece in pieces:
            yield piece, work(piece)


def _in_pool(
    work: Callable[[Piece], Result], pieces: Sequence[Piece], workers: int, where: str
) -> Iterator[tuple[Piece, Result]]:
    context = multiprocessing.get_context(_METHOD)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(work,)) as pool:
        futures = {pool.submit(_do, piece): piece for piece in pieces}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BrokenProcessPool:
            raise InputError(
                f"{where}: a worker was killed, as when memory runs out; run it again with fewer --workers than "
                f"{workers}: what is finished is kept"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_work: Callable[[Any], Any]  # of a worker


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    _end_with_parent()


def _do(piece: Any) -> Any:
    return _work(piece)


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing beside the one that resumes."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_ray(
    work: Callable[[Piece], Result], pieces: Sequence[Piece], workers: int | None
) -> Iterator[tuple[Piece, Result]]:
    try:
        import ray
    except ImportError:
        raise InputError("engine 'ray': Ray is not installed; pip install 'llavamed[ray]'") from None
    ours = not ray.is_initialized()
    if ours:  # RAY_ADDRESS names a cluster; without it Ray starts on this machine
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or cores(), "include_dashboard": False}
        ray.init(log_to_driver=False, **local)
    task = ray.remote(max_retries=3)(
        lambda piece: work(piece)
    )  # a node that dies takes nothing with it: work is idempotent
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: dict[Any, Piece] = {}
    left = iter(pieces)
    try:
        while True:
            while len(waiting) < most and (piece := next(left, None)) is not None:
                waiting[task.remote(piece)] = piece
            if not waiting:
                break
            done, _ = ray.wait(list(waiting))
            for one in done:
                yield waiting.pop(one), ray.get(one)
    finally:
        if ours:
            ray.shutdown()
