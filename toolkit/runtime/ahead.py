"""Work done ahead of its use, by threads that never keep a command alive."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = 2.0  # seconds that threads in the middle of something get when nobody wants its outcome any more


def in_threads(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Generator[R, None, None]:
    """`function` of each item, in order, worked out by threads, at most `ahead` of them waiting: memory stays flat.

    Not `concurrent.futures`, whose threads Python waits for at its end: one that hangs in a read (a file server that is
    gone) would keep a command alive that was told to stop.
    """
    todo: SimpleQueue[tuple[T, Future[R]] | None] = SimpleQueue()
    waiting: deque[Future[R]] = deque()

    def work() -> None:
        while (job := todo.get()) is not None:
            item, future = job
            try:
                future.set_result(function(item))
            except BaseException as error:  # raised where the result is asked for
                future.set_exception(error)

    def submit(count: int) -> None:
        for item in islice(source, count):
            future: Future[R] = Future()
            waiting.append(future)
            todo.put((item, future))

    source = iter(items)
    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        submit(ahead)
        while waiting:
            result = waiting.popleft().result()
            submit(1)
            yield result
    finally:
        while True:
            try:
                todo.get_nowait()
            except Empty:
                break
        for _ in threads:
            todo.put(None)
        until = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
