"""Make the next things while the last ones are used.

`ahead(items, count)` gives the items of an iterator, which runs in a thread of its own, at most `count` items before
they are asked for. Decoding images in it overlaps with a model that computes or an endpoint that is waited for.
What the iterator raises is raised to who asks for the item. Closing the generator ends the thread, which is a
daemon: an interrupted program does not wait for it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    made: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()  # None: no more
    room, unwanted = threading.Semaphore(count), threading.Event()

    def work() -> None:
        try:
            for item in items:
                made.put((item,))
                room.acquire()
                if unwanted.is_set():
                    return
            made.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the item is asked for
            made.put(error)

    threading.Thread(target=work, name="ahead", daemon=True).start()
    try:
        while (got := made.get()) is not None:
            room.release()
            if isinstance(got, BaseException):
                raise got
            yield got[0]
    finally:
        unwanted.set()
        room.release()
