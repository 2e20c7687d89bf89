"""The routes that are added to a generated service with Celery to measure it."""

import asyncio
import time

from bench.api.deps import ServiceQueue
from bench.tasks.benchmark import noop
from fastapi import APIRouter

router = APIRouter(prefix="/benchmark")
STEP = 0.001


@router.post("/enqueue", status_code=202)
async def enqueue(queue: ServiceQueue) -> str:
    """Enqueue a job."""
    return (await queue.enqueue(noop)).job_id


@router.get("/lags")
async def lags(seconds: float) -> list[float]:
    """Return how late the event loop was each time that it was to wake, in seconds."""
    found: list[float] = []
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        await asyncio.sleep(STEP)
        found.append(time.monotonic() - now - STEP)
    return found
