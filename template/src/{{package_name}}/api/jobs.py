"""Jobs: their status, and aborting them."""

from collections.abc import Callable
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel

from ..queue import Job, Receipt
from .deps import Queue

router = APIRouter(tags=["jobs"])


class JobAccepted(BaseModel):
    """A job that will run."""

    job_id: str


async def get_accept(request: Request, response: Response) -> Callable[[Receipt], JobAccepted]:
    """Return a function that answers with a job's id, and its address in `Location`."""

    def accept(receipt: Receipt) -> JobAccepted:
        path = f"/api/v1/jobs/{quote(receipt.job_id, safe='')}"
        response.headers["Location"] = request.scope["root_path"] + path
        return JobAccepted(job_id=receipt.job_id)

    return accept


Accept = Annotated[Callable[[Receipt], JobAccepted], Depends(get_accept)]


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, queue: Queue) -> Job:
    """Return a job's status; a job that failed is an answer too, with its error."""
    job = await queue.job(job_id)
    if job is None:
        raise HTTPException(404, "There is no such job, or its result has expired.")
    return job


@router.delete("/jobs/{job_id}", status_code=202)
async def abort_job(job_id: str, queue: Queue) -> JobAccepted:
    """Abort a job before it starts, or while it runs."""
    job = await get_job(job_id, queue)
    if job.finished_at is not None or not await queue.abort(job_id):
        raise HTTPException(409, f"The job has finished: it is {job.status}.")
    return JobAccepted(job_id=job_id)
