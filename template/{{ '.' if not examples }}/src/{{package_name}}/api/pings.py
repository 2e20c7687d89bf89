"""An example to replace: a route that enqueues a task."""

from fastapi import APIRouter
from pydantic import BaseModel

from ..tasks.ping import ping
from .deps import IdempotencyKey, Queue
from .jobs import Accept, JobAccepted

router = APIRouter(tags=["pings"])


class PingRequest(BaseModel):
    """What to send along."""

    message: str = "hello"


@router.post("/pings", status_code=202)
async def request_ping(
    body: PingRequest,
    queue: Queue,
    accept: Accept,
    idempotency_key: IdempotencyKey = None,
) -> JobAccepted:
    """Enqueue a ping; the answer to it is the job's result."""
    receipt = await queue.once(idempotency_key).enqueue(ping, message=body.message)
    return accept(receipt)
