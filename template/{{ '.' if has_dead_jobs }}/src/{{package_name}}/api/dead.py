"""Dead jobs: those that failed permanently."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response

from ..queue import DeadJob
from .deps import ServiceQueue
from .jobs import JobAccepted

router = APIRouter(tags=["dead jobs"])
NOT_FOUND = HTTPException(404, "There is no such dead job.")


@router.get("/dead")
async def list_dead_jobs(
    queue: ServiceQueue,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=1_000_000_000)] = 0,
) -> list[DeadJob]:
    """Return dead jobs, the newest first; `X-Total-Count` is the number of all."""
    response.headers["X-Total-Count"] = str(await queue.dead.count())
    return await queue.dead.list(limit, offset)


@router.post("/dead/{job_id}/retry", status_code=202)
async def retry_dead_job(job_id: str, queue: ServiceQueue) -> JobAccepted:
    """Enqueue a dead job again, under its id."""
    try:
        if not await queue.dead.retry(job_id):
            raise NOT_FOUND
    except ValueError as error:
        raise HTTPException(409, f"{error}.") from error
    return JobAccepted(job_id=job_id)


@router.delete("/dead/{job_id}", status_code=204)
async def delete_dead_job(job_id: str, queue: ServiceQueue) -> None:
    """Forget a dead job."""
    if not await queue.dead.delete(job_id):
        raise NOT_FOUND
