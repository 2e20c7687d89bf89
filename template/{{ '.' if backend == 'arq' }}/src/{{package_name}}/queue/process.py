"""The worker's process: its event loop, its signals, its end."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import uvloop

from .client import TaskQueue
from .task import Task
from .worker import Worker

SIGNALS = (signal.SIGTERM, signal.SIGINT)
logger = logging.getLogger(__name__)


def run(work: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Run a worker's coroutine to its end.

    A job that ignores its cancellation, or a thread that does not return, would keep the process for
    ever: where one is left, the process ends without waiting for it.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        main = loop.create_task(work())
        while not main.done():
            try:
                loop.run_until_complete(main)
            except SystemExit:  # of an asyncio task that a job has started: it ends only the job
                if main.done():
                    raise
        if not main.result():
            logging.shutdown()
            sys.stderr.flush()
            os._exit(1)


async def run_worker(tasks: Iterable[Task[..., Any]], queue: TaskQueue, resources: Any) -> bool:
    """Run a worker until SIGTERM or SIGINT; a second signal ends it without grace.

    Returns:
        Whether all jobs have ended.
    """
    worker = Worker(tasks, queue, resources)
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        logger.info("%s: no more jobs are claimed", number.name)
        worker.stop()

    for number in SIGNALS:
        loop.add_signal_handler(number, stop, number)
    return await worker.run()
