"""The tasks that are added to a generated service to measure it."""

import asyncio
from typing import Any

from bench.queue import task
from protocol import NAP, report_start, wait_for_gate


@task
async def noop(ctx: Any) -> None:
    """Do nothing."""


@task
async def nap(ctx: Any) -> None:
    """Sleep for 50 ms."""
    await asyncio.sleep(NAP)


@task
async def probe(ctx: Any, sent: float) -> None:
    """Report the start."""
    report_start(sent)


@task
async def hold(ctx: Any, sent: float) -> None:
    """Keep a slot busy until the gate opens."""
    report_start(sent)
    await wait_for_gate()


@task
async def notify(ctx: Any, user_id: int, message: str) -> None:
    """Take the arguments that the benchmark's route sends."""
