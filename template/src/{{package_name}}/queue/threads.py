"""Threads for tasks that are plain functions."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from itertools import count
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_numbers = count(1)


class DaemonThreads(Executor):
    """A thread for each call, which does not keep the process when it ends.

    Slots limit how many run, besides those left behind. Python waits for a `ThreadPoolExecutor` at
    its exit, however long a call takes, and a call that hangs would occupy a thread of the pool.
    """

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call a function in a thread."""
        future: Future[R] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=call, name=f"task-{next(_numbers)}", daemon=True).start()
        return future
