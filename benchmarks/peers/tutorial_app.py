"""FastAPI with ARQ as tutorials show it: a pool opened by the lifespan, and one per request."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from arq import create_pool
from arq.connections import RedisSettings
from fastapi import FastAPI, Request
from pydantic import BaseModel

SETTINGS = RedisSettings.from_dsn(os.environ["REDIS_URL"])


class Message(BaseModel):
    """The request."""

    user_id: int
    message: str


class Accepted(BaseModel):
    """The answer."""

    job_id: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Open one pool per process."""
    app.state.redis = await create_pool(SETTINGS)
    yield
    await app.state.redis.aclose()


app = FastAPI(lifespan=lifespan)


@app.post("/lifespan", status_code=202)
async def enqueue_with_the_lifespans_pool(body: Message, request: Request) -> Accepted:
    """Enqueue with the pool of the process."""
    job = await request.app.state.redis.enqueue_job("notify", body.user_id, body.message)
    return Accepted(job_id=job.job_id)


@app.post("/per-request", status_code=202)
async def enqueue_with_a_pool_per_request(body: Message) -> Accepted:
    """Enqueue with a pool that is opened and closed by each request."""
    redis = await create_pool(SETTINGS)
    try:
        job = await redis.enqueue_job("notify", body.user_id, body.message)
    finally:
        await redis.aclose()
    return Accepted(job_id=job.job_id)
