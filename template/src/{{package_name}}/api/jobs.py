"""Jobs: what has become of them, and ending them."""

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel

from ..job import Job, JobInfo
from .deps import Queue

router = APIRouter(tags=["jobs"])


class JobAccepted(BaseModel):
    """A job that will run."""

    job_id: str


def locate(job: Job, response: Response) -> None:
    """Say in the answer where the job can be asked for."""
    response.headers["Location"] = f"/api/v1/jobs/{job.job_id}"


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, queue: Queue) -> JobInfo:
    """Tell a job's status; a job that failed is told with its error."""
    info = await queue.job(job_id)
    if info is None:
        raise HTTPException(404, "There is no such job, or its outcome has expired.")
    return info


@router.delete("/jobs/{job_id}", status_code=202)
async def abort_job(job_id: str, queue: Queue) -> JobAccepted:
    """End a job before it starts, or while it runs."""
    info = await get_job(job_id, queue)
    if info.finished_at is not None:
        raise HTTPException(409, f"The job has ended: it is {info.status}.")
    await queue.abort(job_id)
    return JobAccepted(job_id=job_id)
