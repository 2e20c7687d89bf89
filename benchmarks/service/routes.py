"""The routes that are added to a generated service to measure it: two that differ in one line."""

from bench.api.deps import Queue
from bench.tasks.benchmark import notify
from fastapi import APIRouter
from pydantic import BaseModel

router = APIRouter(prefix="/benchmark")


class Message(BaseModel):
    """The request."""

    user_id: int
    message: str


class Accepted(BaseModel):
    """The answer."""

    job_id: str


@router.post("/enqueue", status_code=202)
async def enqueue(body: Message, queue: Queue) -> Accepted:
    """Enqueue a job."""
    receipt = await queue.enqueue(notify, user_id=body.user_id, message=body.message)
    return Accepted(job_id=receipt.job_id)


@router.post("/empty", status_code=202)
async def empty(body: Message) -> Accepted:
    """Validate the request, and answer as the other route does."""
    return Accepted(job_id=f"{body.user_id:032}")
