"""The tasks that are added to a generated service with Celery to measure it."""

import asyncio
import os
from typing import Any

from bench.queue import task
from protocol import NAP, PIPE

_pipe: list[int] = []


def report() -> None:
    """Report that a job ends."""
    if not _pipe:
        _pipe.append(os.open(os.environ[PIPE], os.O_WRONLY))
    os.write(_pipe[0], b".")


@task
async def noop(ctx: Any) -> None:
    """Do nothing."""
    report()


@task
async def nap(ctx: Any) -> None:
    """Sleep for 50 ms."""
    await asyncio.sleep(NAP)
    report()
