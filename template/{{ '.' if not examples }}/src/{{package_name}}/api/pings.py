"""An example to replace: a route that enqueues a task."""

from fastapi import APIRouter, Response
from pydantic import BaseModel

from ..tasks.ping import ping
from .deps import Queue
from .jobs import JobAccepted, accept

router = APIRouter(tags=["pings"])


class PingRequest(BaseModel):
    """What to send along."""

    message: str = "hello"


@router.post("/pings", status_code=202)
async def request_ping(body: PingRequest, queue: Queue, response: Response) -> JobAccepted:
    """Enqueue a ping; its answer is the job's result."""
    job = await queue.enqueue(ping, message=body.message)
    return accept(job, response)
